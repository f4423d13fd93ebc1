"""How every run ends: its models are evaluated and measured, the result is exported, the report is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlab.config import Config
from vitlab.data.module import VisionData
from vitlab.files import write_json
from vitlab.help import conf_dir, head
from vitlab.measure.classification import evaluate_logits, predict
from vitlab.measure.cost import measure_cost
from vitlab.methods.base import Stage
from vitlab.models.artifact import load_model, read_meta
from vitlab.report.collect import collect
from vitlab.report.compare import compare
from vitlab.report.data import DatasetInfo, Example
from vitlab.report.write import write_report
from vitlab.run import Run
from vitlab.training.assemble import make_data
from vitlab.training.devices import device_of
from vitlab.training.interrupt import stop_if_asked

EXAMPLES = 24  # worst mistakes that the report shows


def close(run: Run, config: Config, stages: list[Stage], command: str) -> None:
    """Evaluate, benchmark, export and report; each is skipped where an earlier session finished it."""
    measured = [stage for stage in stages if (run.folder / stage.name / "model.json").exists()]
    notes = [
        f"The {stage.title} was loaded, not trained here, and is not in the table."
        for stage in stages
        if stage.makes == "model" and stage not in measured
    ]
    students = [stage for stage in measured if stage.role == "student"]
    primary = (students or measured)[-1]
    if not run.is_done("evaluation"):
        run.mark_done("evaluation", evaluate(run, config, measured, primary))
        stop_if_asked()
    if not run.is_done("benchmark"):
        run.mark_done("benchmark", benchmark(run, config, measured))
        stop_if_asked()
    if config.export.formats and not run.is_done("export"):
        run.mark_done("export", export_result(run, config, primary))
        stop_if_asked()
    data = collect(run, stages, primary, command, notes)
    paths = write_report(run.folder, data)
    table = compare(data.rows, data.paper_rows, data.primary, data.dataset.synthetic).text()
    told = [table, "", f"report   {paths.html}", f"model    {run.folder / primary.name}"]
    told += [f"{one.format:<8} {run.folder / one.path}" for one in data.exports if one.format != "safetensors"]
    run.finish({"table": "\n".join(told)})
    print("\n" + "\n".join(told))


def eval_data(config: Config, folder: Path) -> VisionData:
    """The data as the model artifact in ``folder`` wants to see them."""
    meta = read_meta(folder)
    return make_data(config, config.recipe, tuple(meta.mean), tuple(meta.std))


def evaluate(run: Run, config: Config, stages: list[Stage], primary: Stage) -> dict[str, Any]:
    """Logits of every model on the test split, kept in ``evaluation/``, and what follows from them."""
    folder, device = run.stage_folder("evaluation"), device_of(config)
    metrics = {}
    for stage in stages:
        artifact = run.folder / stage.name
        data = eval_data(config, artifact)
        network = load_model(artifact).to(device)
        logits, label, index = predict(network, data.test_dataloader(), device)
        result = evaluate_logits(logits.numpy(), label.numpy(), data.classes, config.evaluation.bins)
        write_json(folder / f"{stage.name}.json", result.to_dict())
        with open(folder / f"{stage.name}.npz", "wb") as file:
            np.savez(file, logits=logits.numpy(), label=label.numpy(), index=index.numpy())
        metrics[stage.name] = result.metrics()
        if stage is primary:
            mistakes = worst_mistakes(data, logits.numpy(), label.numpy(), index.numpy())
            write_json(folder / "mistakes.json", [asdict(one) for one in mistakes])
            write_json(folder / "dataset.json", asdict(describe_dataset(run, config, data)))
    return {"metrics": metrics}


def describe_dataset(run: Run, config: Config, data: VisionData) -> DatasetInfo:
    """The data that every number of the report speaks about."""
    return DatasetInfo(
        name=config.dataset.name,
        description=about("dataset", run),
        train=data.sizes["train"],
        test=data.sizes["test"],
        split=data.split_names["test"],
        classes=list(data.classes),
        size=config.dataset.size,
        synthetic=config.dataset.name == "fake",
        fingerprint=data.fingerprint,
    )


def about(group: str, run: Run) -> str:
    """The line with which the chosen configuration file introduces itself; "" for one that is gone."""
    choices = run.identity["choices"]
    assert isinstance(choices, dict)
    path = conf_dir() / group / f"{choices[group]}.yaml"
    return head(path) if path.exists() else ""


def worst_mistakes(
    data: VisionData, logits: NDArray[np.float32], label: NDArray[np.int64], index: NDArray[np.int64]
) -> list[Example]:
    """The images that were called by a wrong name with the most confidence, worst first."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    prob = shifted / shifted.sum(1, keepdims=True)
    predicted = logits.argmax(1)
    wrong = np.flatnonzero(predicted != label)
    wrong = wrong[np.argsort(-prob[wrong, predicted[wrong]], kind="stable")][:EXAMPLES]
    examples = []
    for row in wrong:
        image, _ = data.sources["test"][int(index[row])]
        image.thumbnail((160, 160))
        examples.append(
            Example.of(
                np.asarray(image.convert("RGB")),
                data.classes[label[row]],
                data.classes[predicted[row]],
                float(prob[row, predicted[row]]),
                float(prob[row, label[row]]),
                str(data.sources["test"].keys[int(index[row])]),
            )
        )
    return examples


def benchmark(run: Run, config: Config, stages: list[Stage]) -> dict[str, Any]:
    """Parameters, multiply-adds, size and latency of every model."""
    device = device_of(config)
    costs = {}
    for stage in stages:
        artifact, spec = run.folder / stage.name, config.evaluation
        cost = measure_cost(
            load_model(artifact).to(device),
            read_meta(artifact).size,
            spec.latency_batches if spec.latency else (),
            spec.latency_repeats,
            artifact / "model.safetensors",
        )
        costs[stage.name] = asdict(cost)
    return {"costs": costs}


def export_result(run: Run, config: Config, stage: Stage) -> dict[str, Any]:
    """The method's result in every asked format, checked on real images of the test split."""
    from vitlab.report.export import export  # ONNX takes seconds to import

    artifact = run.folder / stage.name
    sample = next(iter(eval_data(config, artifact).test_dataloader())).image[:3]
    files = export(
        load_model(artifact),
        read_meta(artifact),
        run.stage_folder("export"),
        config.export.formats,
        sample,
        config.export.tolerance,
    )
    return {"files": files}
