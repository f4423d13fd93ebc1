"""From a run's folder to the data of its report: reads files only, so a report can be rebuilt at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vitlab.config import DatasetConfig
from vitlab.config.words import dataset_title, describe_network, describe_own_images
from vitlab.files import read_as, read_json
from vitlab.measure.bootstrap import Comparison
from vitlab.measure.cost_record import Cost, Latency, Memory
from vitlab.measure.record import Record
from vitlab.measure.robustness import Robustness, Shifted
from vitlab.measure.timing import Timing
from vitlab.report.compare import capitalised, device, file_size, percent
from vitlab.report.data import (
    DatasetInfo,
    Example,
    ExportFile,
    ModelRow,
    PaperRow,
    ReportData,
    StageRow,
    comparison,
    curves_of,
)
from vitlab.report.task import ReportTask
from vitlab.run.recorder import read_rows
from vitlab.run.run import Run
from vitlab.stage import Stage


def collect(
    run: Run,
    task: ReportTask,
    method: str,
    stages: Sequence[Stage],
    primary: Stage,
    command: str,
    notes: Sequence[str],
    advice: Sequence[str] = (),
) -> ReportData:
    """Everything that stands in the report of a finished run.

    Args:
        run: its folder holds ``evaluation/`` and ``benchmark/``.
        task: of its models.
        method: as the title calls it.
        stages: of the method, in order.
        primary: the stage whose model the run is about.
        command: exactly what was typed.
        notes: decisions worth telling, a sentence each; what the stages' records have under ``notes`` follows.
        advice: what is known to make the method pay, with its command; shown where the method brought nothing.
    """
    folder = run.folder
    dataset = _named(_dataset(folder / "evaluation" / "dataset.json"), _dict(run.tree["dataset"]))
    measured = [stage for stage in stages if (folder / "evaluation" / f"{stage.name}.json").exists()]
    costs = read_as(
        folder / "benchmark" / "done.json",
        lambda record: {one.name: (_cost(record["costs"][one.name]), record["costs"][one.name]) for one in measured},
        TIME_AGAIN,
    )
    rows = [_row(run, task, stage, costs[stage.name][0]) for stage in measured]
    tree = run.tree
    per_class = _dict(tree["dataset"])["labels_per_class"]
    notes = list(notes)
    if len({costs[row.stage][1].get("session") for row in rows if row.cost.latency}) > 1:
        notes.append(
            "The times in the table are of different sessions; taken in turns they compare better: mode=benchmark "
            f"run={folder}, then this report again."
        )
    stated = f"{dataset.train:,} training images" + (f" ({per_class} of each class)" if per_class else "")
    return ReportData(
        title=f"{method} on {dataset.name}",
        summary=_summary(rows, primary.title, stated, dataset, task),
        command=command,
        run=str(folder),
        created=run.created,
        dataset=dataset,
        rows=rows,
        primary=primary.title,
        paper_rows=paper_rows(run, primary.title),
        comparisons=_comparisons(folder / "evaluation" / "comparisons.json"),
        timings=_timings(folder / "benchmark" / "benchmark.json", rows),
        stages=[_stage(run, stage) for stage in stages],
        curves=curves_of(read_rows(folder / "metrics.jsonl"), {stage.name: stage.title for stage in stages}),
        examples=read_as(
            folder / "evaluation" / "mistakes.json", lambda value: [Example(**one) for one in value], AGAIN, list
        ),
        exports=_exports(run),
        environment=json.loads((folder / "environment.jsonl").read_text().splitlines()[-1]),
        config=(folder / "config.yaml").read_text(),
        notes=[
            *notes,
            *elsewhere(run, task),
            *(str(note) for stage in stages for note in _list(run.read_done(stage.name).get("notes"))),
        ],
        task=task.name,
        advice=list(advice),
        predictions=f"evaluation/{primary.name}-predictions.csv"
        if (folder / "evaluation" / f"{primary.name}-predictions.csv").is_file()
        else "",
    )


def elsewhere(run: Run, task: ReportTask) -> list[str]:
    """A sentence for each measurement of the run's models on other images than those of its own result."""
    lines = []
    for path in sorted(run.folder.glob("evaluation-*/about.json")):
        about, folder = read_json(path), path.parent
        data = _dataset(folder / "dataset.json")
        place = about["images"].get("csv") or about["images"].get("root") or data.name
        for stem, title in about["models"].items():
            metrics = _evaluation(folder / f"{stem}.json", task).metrics()
            share = f"{percent(metrics[task.headline.key])} % {task.headline.name}"
            lines.append(
                f"Measured on other images, {title}: {share} on {data.test:,} images of {place} ({data.split} split); "
                f"{folder.name}/."
            )
    return lines


def training_command(run: Run) -> str:
    """The last command that trained the run (others, such as mode=evaluate, are noted in the same file)."""
    typed = [json.loads(line)["command"] for line in (run.folder / "commands.jsonl").read_text().splitlines()]
    return str([one for one in typed if " mode=" not in one or " mode=train" in one][-1])


def paper_rows(run: Run, beside: str) -> list[PaperRow]:
    """The published row that the run's experiment gives, where the run was on that data and was not cut short."""
    stated, debug = _dict(run.tree.get("paper", {})), _dict(run.tree["debug"])
    cut = any(debug.get(name) is not None for name in ("max_steps", "max_images", "max_slots"))
    data, model = _dict(run.tree["dataset"]), _dict(run.tree["model"])
    same = (data["name"], model["name"], data["size"]) == (
        stated.get("dataset"),
        stated.get("model"),
        stated.get("size"),
    )
    if not stated.get("name") or cut or not same:
        return []
    metrics = {name: stated[name] / 100 for name in ("top1", "top5") if stated.get(name) is not None}
    cost = Cost(
        params=round(stated["params"] * 1e6) if stated.get("params") else None,
        macs=round(stated["macs"] * 1e9) if stated.get("macs") else None,
    )
    return [PaperRow(str(stated["name"]), str(stated["source"]), beside, metrics, cost)]


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def _comparisons(path: Path) -> list[Comparison]:
    if not path.exists():
        return []
    return read_as(path, lambda value: [comparison(one) for one in value], AGAIN, list)


def _timings(path: Path, rows: Sequence[ModelRow]) -> list[Timing]:
    """What mode=benchmark timed of these models, under their names here."""
    if not path.exists():
        return []
    names = {row.stage: row.name for row in rows}

    def timing(one: dict[str, Any]) -> Timing:
        return Timing(**{**{key: one[key] for key in one if key != "images_per_second"}, "name": names[one["name"]]})

    return read_as(path, lambda value: [timing(one) for one in value["timings"] if one["name"] in names], TIME_AGAIN)


def _cost(found: dict[str, Any]) -> Cost:
    return Cost(
        params=found["params"],
        macs=found["macs"],
        bytes=found["bytes"],
        latency=[Latency(one["batch"], one["median_ms"], one["p10_ms"], one["p90_ms"]) for one in found["latency"]],
        memory=[Memory(**one) for one in found.get("memory", [])],
        device=device(str(found["device"]), int(found["threads"])),
        extra_macs=found.get("extra_macs", {}),
        busy=found.get("busy", ""),
    )


def _row(run: Run, task: ReportTask, stage: Stage, cost: Cost) -> ModelRow:
    record = run.read_done(stage.name)
    model = read_json(run.folder / stage.name / "model.json")
    return ModelRow(
        name=stage.title,
        stage=stage.name,
        role=stage.role,
        evaluation=_evaluation(run.folder / "evaluation" / f"{stage.name}.json", task),
        cost=cost,
        folder=stage.name,
        architecture=describe_network(model["name"], model.get("args") or {}),
        steps=record.get("steps"),  # type: ignore[arg-type]  # an int, written by the stage
        robust=_measured(run, stage, "robust", model, Robustness),
        shifted=_measured(run, stage, "shifted", model, Shifted),
    )


AGAIN = "mode=evaluate makes it again."
MEASURE_AGAIN = "Delete it; the evaluation that measured it, such as mode=evaluate evaluation=robust, measures again."
TIME_AGAIN = "Delete it; mode=benchmark makes it again."


def _evaluation(path: Path, task: ReportTask) -> Record:
    """
    Raises:
        DamagedError: not what an evaluation wrote.
    """
    return read_as(path, task.read_evaluation, AGAIN)


def _dataset(path: Path) -> DatasetInfo:
    return read_as(path, lambda value: DatasetInfo(**value), AGAIN)


def _named(info: DatasetInfo, stored: dict[str, Any]) -> DatasetInfo:
    """The data of an older run with ``dataset=folder`` under the name that they have now."""
    if info.name != "folder":
        return info
    own = DatasetConfig(name="folder", root=stored.get("root"), csv=stored.get("csv"))
    title = dataset_title(own.name, own.root, own.csv)
    return replace(info, name=title, description=describe_own_images(own), origin="")


Kind = TypeVar("Kind", Robustness, Shifted)


def _measured(run: Run, stage: Stage, kind: str, model: dict[str, Any], read: type[Kind]) -> Kind | None:
    """The evaluation of these weights under corruptions or on shifted sets; None where that was not measured."""
    path = run.folder / "evaluation" / f"{stage.name}-{kind}.json"
    if not path.exists():
        return None
    found = read_as(path, read.from_dict, MEASURE_AGAIN)
    return found if found.model == model["sha256"] else None


def _summary(rows: Sequence[ModelRow], primary: str, stated: str, dataset: DatasetInfo, task: ReportTask) -> str:
    main = next(row for row in rows if row.name == primary)
    key, name = task.headline.key, task.headline.name
    text = f"{capitalised(main.name)}: {percent(main.metrics[key])} % {name} on {dataset.test:,} images "
    text += f"after learning from {stated}"
    others = [f"{row.name} {percent(row.metrics[key])} %" for row in rows if row is not main]
    return text + (f"; {', '.join(others)}." if others else ".")


def _stage(run: Run, stage: Stage) -> StageRow:
    record = run.read_done(stage.name)
    seconds = record.get("seconds")
    stated = []
    for name in ("params", "steps", "views", "images"):
        if isinstance(record.get(name), int):
            stated.append(f"{record[name]:,} {name}")
    if isinstance(record.get("bytes"), int):
        stated.append(file_size(float(str(record["bytes"]))))
    return StageRow(
        stage.name,
        stage.title,
        seconds=float(str(seconds)) if seconds is not None else None,
        artifact=stage.name,
        summary=", ".join(stated),
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
