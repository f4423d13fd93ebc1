"""From a run's folder to the data of its report: reads files only, so a report can be rebuilt at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.files import read_json
from vitlab.measure.classification import Evaluation
from vitlab.methods.base import Stage, find_method
from vitlab.recorder import read_rows
from vitlab.report.compare import file_size
from vitlab.report.data import (
    Cost,
    DatasetInfo,
    Example,
    ExportFile,
    Latency,
    ModelRow,
    ReportData,
    StageRow,
    curves_of,
)
from vitlab.run import Run


def collect(run: Run, stages: Sequence[Stage], primary: Stage, command: str, notes: Sequence[str]) -> ReportData:
    """Everything that the report of a finished run says.

    Args:
        run: its folder holds ``evaluation/`` and ``benchmark/``.
        stages: of the method, in order.
        primary: the stage whose model the run is about.
        command: exactly what was typed.
        notes: decisions worth telling, a sentence each.
    """
    folder = run.folder
    dataset = DatasetInfo(**read_json(folder / "evaluation" / "dataset.json"))
    costs = _dict(run.read_done("benchmark")["costs"])
    rows = [_row(run, stage, costs) for stage in stages if (folder / "evaluation" / f"{stage.name}.json").exists()]
    tree = run.tree
    few = _dict(tree["dataset"])["labels_per_class"]
    told = f"{dataset.train:,} training images" + (f" ({few} of each class)" if few else "")
    return ReportData(
        title=f"{find_method(str(_dict(tree['method'])['name'])).__name__} on {dataset.name}",
        summary=_summary(rows, primary.title, told, dataset),
        command=command,
        run=str(folder),
        created=run.created,
        dataset=dataset,
        rows=rows,
        primary=primary.title,
        stages=[_stage(run, stage) for stage in stages],
        curves=curves_of(read_rows(folder / "metrics.jsonl"), {stage.name: stage.title for stage in stages}),
        examples=[Example(**one) for one in read_json(folder / "evaluation" / "mistakes.json")],
        exports=_exports(run),
        environment=json.loads((folder / "environment.jsonl").read_text().splitlines()[-1]),
        config=(folder / "config.yaml").read_text(),
        notes=list(notes),
    )


def _row(run: Run, stage: Stage, costs: dict[str, Any]) -> ModelRow:
    record = run.read_done(stage.name)
    cost = costs[stage.name]
    model = read_json(run.folder / stage.name / "model.json")
    return ModelRow(
        name=stage.title,
        stage=stage.name,
        role=stage.role,
        evaluation=Evaluation.from_dict(read_json(run.folder / "evaluation" / f"{stage.name}.json")),
        cost=Cost(
            params=cost["params"],
            macs=cost["macs"],
            bytes=cost["bytes"],
            latency=[Latency(one["batch"], one["median_ms"], one["p10_ms"], one["p90_ms"]) for one in cost["latency"]],
            device=f"{cost['device']}, {cost['threads']} thread(s)",
        ),
        folder=stage.name,
        architecture=model["name"],
        steps=record.get("steps"),  # type: ignore[arg-type]  # an int, written by the stage
    )


def _summary(rows: Sequence[ModelRow], primary: str, told: str, dataset: DatasetInfo) -> str:
    main = next(row for row in rows if row.name == primary)
    text = f"{main.name[0].upper()}{main.name[1:]}: {main.metrics['top1']:.2%} top-1 on {dataset.test:,} images after "
    text += f"learning from {told}"
    others = [f"{row.name} {row.metrics['top1']:.2%}" for row in rows if row is not main]
    return text + (f"; {', '.join(others)}." if others else ".")


def _stage(run: Run, stage: Stage) -> StageRow:
    record = run.read_done(stage.name)
    seconds = record.get("seconds")
    told = []
    for name in ("params", "steps", "views", "images"):
        if isinstance(record.get(name), int):
            told.append(f"{record[name]:,} {name}")
    if isinstance(record.get("bytes"), int):
        told.append(file_size(float(str(record["bytes"]))))
    return StageRow(
        stage.name,
        stage.title,
        seconds=float(str(seconds)) if seconds is not None else None,
        artifact=stage.name,
        summary=", ".join(told),
    )


def _exports(run: Run) -> list[ExportFile]:
    if not run.is_done("export"):
        return []
    files = run.read_done("export")["files"]
    assert isinstance(files, list)
    return [ExportFile(**{**one, "path": _inside(run, str(one["path"]))}) for one in files]


def _inside(run: Run, path: str) -> str:
    """A path below the run's folder, seen from there, also when the run has moved since it was noted."""
    parts = Path(path).parts
    start = len(parts) - 1 - parts[::-1].index("export") if "export" in parts else len(parts) - 1
    return str(Path(*parts[start:]))


def _dict(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value
