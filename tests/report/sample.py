"""A small report: three models of known numbers, names that need escaping, every optional part there."""

from __future__ import annotations

import numpy as np

from vitlab.measure.bootstrap import Comparison, Difference
from vitlab.measure.classification import Evaluation, evaluate_logits
from vitlab.measure.cost_record import Cost, Latency, Memory
from vitlab.measure.temperature import Temperature
from vitlab.measure.timing import Timing
from vitlab.report.write import DatasetInfo, Example, ExportFile, ModelRow, PaperRow, ReportData, StageRow, curves_of

CLASSES = ["plain", "pipe|name", "<b>bold</b> & co", "a_rather_long_name_of_a_class", "e", "f"]


def evaluation(seed: int, sure: float) -> Evaluation:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(CLASSES), 240)
    logits = rng.normal(size=(240, len(CLASSES)))
    logits[np.arange(240), label] += sure
    return evaluate_logits(logits, label, CLASSES)


def make(synthetic: bool = False) -> ReportData:
    rows = [
        ModelRow(
            "teacher",
            "teacher",
            "teacher",
            evaluation=evaluation(0, 3.5),
            cost=Cost(
                2_812_345, 312_000_000, 11_260_000, [Latency(1, 9.87, 9.1, 11.2), Latency(32, 151.3, 140.0, 170.9)]
            ),
        ),
        ModelRow(
            "student, stored labels",
            "pretrain",
            "student",
            evaluation=evaluation(1, 3.2),
            cost=Cost(
                301_234, 21_500_000, 1_223_456, [Latency(1, 2.34, 2.2, 2.6), Latency(32, 31.4, 30.0, 33.0)], "CPU"
            ),
            folder="pretrain",
            architecture="tiny_vit_5m_224",
        ),
        ModelRow(
            "same student, labels alone",
            "labels",
            "baseline",
            evaluation=evaluation(2, 2.0),
            cost=Cost(
                301_234, 21_500_000, 1_223_456, [Latency(1, 2.41, 2.25, 2.7), Latency(32, 31.9, 30.2, 35.0)], "CPU"
            ),
        ),
    ]
    record: list[dict[str, float | str]] = []
    for stage, goal in (("teacher", 0.95), ("pretrain", 0.93), ("labels", 0.7)):
        for step in range(1, 41):
            record.append({"stage": stage, "step": step, "loss": 2.0 / step, "lr": 0.001 * (1 - step / 40)})
            if step % 10 == 0:
                record.append({"stage": stage, "step": step, "val_top1": goal * step / 40})
    rows[1].evaluation = evaluation(1, 3.2)
    rows[1].evaluation.temperature = Temperature(1.23, "val split, 450 images", 0.0123, 0.2, 0.4, 0.3)
    rows[1].evaluation.view = "short side 36, centre crop 32 × 32 (crop 0.875), bicubic"
    rows[1].cost.memory = [Memory(32, 524_288)]
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    return ReportData(
        title="TinyViT on <digits>",
        summary="A student learned from stored labels | and was measured.",
        command="python -m vitlab method=tinyvit 'name=a b'",
        run="outputs/tinyvit/digits-1a2b3c4d",
        created="2026-01-02T03:04:05+00:00",
        dataset=DatasetInfo("digits", "Handwritten digits.", 1347, 240, "test", CLASSES, 32, synthetic),
        rows=rows,
        primary="student, stored labels",
        paper_rows=[
            PaperRow(
                "TinyViT-5M, IN-1k",
                "Table 5",
                "student, stored labels",
                {"top1": 0.807},
                Cost(5_392_764, 1_255_000_000),
            )
        ],
        stages=[StageRow("teacher", "teacher", 75.0, "teacher"), StageRow("pretrain", "student", 32.5, "pretrain")],
        curves=curves_of(record, {"pretrain": "student, stored labels"}),
        examples=[Example.of(pixels, CLASSES[2], CLASSES[1], 0.91, 0.02, "test/7")],
        exports=[
            ExportFile("safetensors", "export/model.safetensors", 1_223_456),
            ExportFile("onnx", "export/model.onnx", 1_250_001, 3.6e-7),
        ],
        environment={"commit": "abc", "packages": {"torch": "2.15.0"}},
        comparisons=[
            Comparison(
                "same student, labels alone",
                "student, stored labels",
                240,
                150,
                12,
                41,
                37,
                0.00034,
                {name: Difference(0.1208, 0.0612, 0.1801) for name in ("top1", "nll", "brier", "ece")},
            )
        ],
        timings=[
            Timing("student, stored labels", backend, 1, ms, 0.9 * ms, 1.2 * ms, 30, ms / 2.4, ms / 2.6, ms / 2.2, ms)
            for backend, ms in (("eager", 2.4), ("onnxruntime", 0.8))
        ],
        config="a: 1\nb: <c>\n",
        notes=["One note."],
    )
