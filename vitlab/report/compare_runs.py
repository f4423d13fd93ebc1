"""Several runs on one page: their results side by side, measured on the same images. Reads files only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.measure.bootstrap import Comparison
from vitlab.report.compare import percent
from vitlab.report.data import Curve, ModelRow, ReportData, StageRow
from vitlab.report.task import ReportTask
from vitlab.run.identity import leaves


def side_by_side(
    reports: Sequence[ReportData], names: Sequence[str], command: str, resamples: int, task: ReportTask
) -> ReportData:
    """One report of the results of several runs; the first is the one that the others are compared with.

    Args:
        reports: of the runs, each with its ``run`` folder.
        names: short and different, one a run.
        command: what was typed.
        resamples: of the bootstrap.
        task: of all runs.

    Raises:
        UserError: two runs were measured on different images.
    """
    first = reports[0]
    for name, one in zip(names, reports, strict=True):
        if _measured(one) != _measured(first):
            raise UserError(
                f"{names[0]} was measured on {_measured(first)}, {name} on {_measured(one)}: their numbers do not "
                "belong into one table.",
                f"Measure both on the same images first: mode=evaluate run=[{first.run},{one.run}] dataset=NAME.",
            )
    rows = [_row(name, one, first) for name, one in zip(names, reports, strict=True)]
    answers = [_answers(one) for one in reports]
    comparisons: list[Comparison] = []
    notes = [
        f"{name}: {one.run}, of {one.created[:10]}: {one.command}" for name, one in zip(names, reports, strict=True)
    ]
    for name, own in zip(names[1:], answers[1:], strict=True):
        same = np.array_equal(own[0], answers[0][0]) and np.array_equal(own[1], answers[0][1])
        if same:
            found = first.main.evaluation
            assert found is not None  # the files of an evaluation are there
            comparisons.append(task.compare_logits(names[0], name, answers[0][2], own[2], found, resamples))
        else:
            notes.append(
                f"{name} answered other images than {names[0]} (another sample or order): not compared in pairs."
            )
    if len({_session(one) for one in reports}) > 1:
        places = ",".join(one.run for one in reports)
        notes.append(
            f"The times are of different sessions; taken in turns they compare better: mode=benchmark run=[{places}], "
            "then this report again."
        )
    headline = task.headline
    best = max(rows, key=lambda row: row.metrics[headline.key] * (1 if headline.higher else -1))
    dataset = first.dataset
    return replace(
        first,
        title=f"{len(reports)} runs on {dataset.name}",
        summary=f"{len(reports)} runs on the same {dataset.test:,} images; the best {headline.name} is that of "
        f"{best.name}, {percent(best.metrics[headline.key])} %.",
        command=command,
        rows=rows,
        primary=names[0],
        paper_rows=[
            replace(paper, beside=name)
            for name, one in zip(names, reports, strict=True)
            for paper in one.paper_rows
            if paper.beside == one.primary
        ],
        stages=[
            StageRow(f"{name} · {stage.name}", stage.title, stage.seconds, stage.artifact, stage.summary)
            for name, one in zip(names, reports, strict=True)
            for stage in one.stages
        ],
        curves=[curve for name, one in zip(names, reports, strict=True) for curve in _curves(name, one)],
        comparisons=comparisons,
        timings=[],
        advice=[],
        predictions="",
        config=differences([one.config for one in reports], names),
        notes=notes,
    )


def _row(name: str, one: ReportData, first: ReportData) -> ModelRow:
    """The result of a run under the run's name; its folder seen from the first run, which the page belongs to."""
    folder = one.main.folder if one is first else str(Path(one.run) / one.main.folder)
    return replace(one.main, name=name, stage=f"{name}/{one.main.stage}", folder=folder)


def _session(one: ReportData) -> str:
    """When the run's times were taken; the same for models that were timed in turns."""
    record = read_json(Path(one.run) / "benchmark" / "done.json")
    return str(record.get("session", record["time"]))


def _measured(one: ReportData) -> str:
    data = one.dataset
    return f"{data.name} ({data.split} split, {data.test:,} images, {len(data.classes)} classes)"


def _answers(one: ReportData) -> tuple[Any, Any, dict[str, Any]]:
    """Image numbers and labels in the order of the images, and the file that they are from."""
    with np.load(Path(one.run) / "evaluation" / f"{one.main.stage}.npz", allow_pickle=False) as file:
        kept = {name: file[name] for name in ("logits", "label", "index", "group") if name in file}
    order = np.argsort(kept["index"], kind="stable")
    return kept["index"][order], kept["label"][order], kept


def _curves(name: str, one: ReportData) -> list[Curve]:
    return [Curve(f"{name}/{c.stage}", name, c.points) for c in one.curves if c.stage == one.main.stage]


def differences(configs: Sequence[str], names: Sequence[str]) -> str:
    """The keys in which the configurations (YAML) differ, with every run's value, as YAML."""
    import yaml

    flat = [_values(yaml.safe_load(text)) for text in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    lines = []
    for key in keys:
        values = [one.get(key, "absent") for one in flat]
        if any(value != values[0] for value in values):
            lines.append(f"{key}:")
            lines += [f"  {name}: {value}" for name, value in zip(names, values, strict=True)]
    return "\n".join(["# what differs", *lines]) if lines else "# the configurations are the same\n"


def _values(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key → value as JSON."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in leaves(tree).items()}
