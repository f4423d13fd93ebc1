"""Comparison of the runs of a sweep: a table, and mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitlab.files import atomic_write, read_json, write_json
from vitlab.report import markdown
from vitlab.report.data import CLASSIFICATION
from vitlab.report.pieces import Headline, Shown
from vitlab.sweep.folds import fold_table, pool_folds
from vitlab.sweep.statistics import over_seeds
from vitlab.tasks.base import Task, find_task

COST = (
    Shown("params", "Params", lambda value: f"{value:,.0f}"),
    Shown("macs", "MACs", lambda value: f"{value:,.0f}"),
)
"""Columns of the tables besides the task's metrics; the CSV and JSON files contain all metrics."""


@dataclass
class Job:
    """One run of the sweep."""

    number: int  # from 1
    words: list[str]  # its overrides
    values: dict[str, str]  # the swept keys
    run: Path
    state: str = "waiting"  # waiting | finished | pruned | stopped | failed
    reason: str = ""
    seconds: float | None = None  # of this session
    extra: dict[str, float] = field(default_factory=dict)  # metrics of a search


@dataclass
class Group:
    """Jobs that differ only in the seed."""

    values: dict[str, str]
    runs: int
    mean: dict[str, float]
    spread: dict[str, float]  # sample standard deviation, absent for a single run
    points: list[float]  # the headline metric of each


def task_of(jobs: Sequence[Job]) -> Task:
    """The task of a sweep's runs, as the first report names it."""
    paths = (job.run / "report.json" for job in jobs if job.state == "finished")
    first = next((path for path in paths if path.exists()), None)
    return find_task(str(read_json(first).get("task", CLASSIFICATION)) if first is not None else CLASSIFICATION)


def results(job: Job) -> dict[str, float]:
    """Metrics and costs of the result of a finished run, with the paper's top-1; {} if there is none."""
    path = job.run / "report.json"
    if job.state != "finished" or not path.exists():
        return {}
    data: dict[str, Any] = read_json(path)
    row = next((row for row in data["rows"] if row["name"] == data["primary"]), None)
    if row is None:
        return {}
    headline = find_task(str(data.get("task", CLASSIFICATION))).headline.key
    values = {**row["metrics"], **{name: row["cost"].get(name) for name in ("params", "macs", "bytes")}}
    values |= {f"latency_ms_{one['batch']}": one["median_ms"] for one in row["cost"].get("latency", [])}
    for published in data.get("paper_rows", []):
        values |= {f"paper_{name}": value for name, value in published["metrics"].items() if name == headline}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def group_by_seed(jobs: Sequence[Job]) -> list[Group]:
    """Finished jobs, grouped over the seeds, in the order of the grid."""
    by_values: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for job in jobs:
        if values := results(job):
            key = tuple((name, value) for name, value in job.values.items() if name != "seed")
            by_values.setdefault(key, []).append(values)
    headline = task_of(jobs).headline.key
    groups = []
    for key, rows in by_values.items():
        names = [name for name in rows[0] if all(name in row for row in rows)]
        mean = {name: statistics.fmean(row[name] for row in rows) for name in names}
        several = len(rows) > 1
        spread = {name: statistics.stdev(row[name] for row in rows) for name in names} if several else {}
        groups.append(Group(dict(key), len(rows), mean, spread, [row[headline] for row in rows if headline in row]))
    return groups


def write_comparison(
    folder: Path, jobs: Sequence[Job], command: str, *, about: str = "", show: Sequence[str] = ()
) -> str:
    """Write ``comparison.md``, ``.csv``, ``.json`` and ``.png`` into ``folder``; the table for the terminal.

    Args:
        about: report of a search, as Markdown with its plots; its runs are not grouped.
        show: names of metrics that the tables show before the others.
    """
    from vitlab.report.text_tables import text_table

    metrics = [results(job) | job.extra for job in jobs]
    groups = [] if about else group_by_seed(jobs)
    task = task_of(jobs)
    rows = [_row(job, one) for job, one in zip(jobs, metrics, strict=True)]
    columns = [*task.metrics, *COST]
    known = {column.key: column for column in columns}
    first = [known.get(name, Shown(name, name, lambda value: f"{value:.4g}")) for name in show]
    shown = [*first, *(column for column in columns if column.key not in show)]
    shown = [column for column in shown if any(column.key in one for one in metrics)]
    keys = list(jobs[0].values) if jobs else []
    table = [[*keys, "State", *(column.title for column in shown)]]
    for job, one in zip(jobs, metrics, strict=True):
        cells = [column.text(one[column.key]) if column.key in one else "–" for column in shown]
        table.append([*job.values.values(), job.state, *cells])
    seeds = [[*(key for key in keys if key != "seed"), "Runs", *(column.title for column in shown)]]
    for group in groups:
        cells = [
            column.text(group.mean[column.key])
            + (f" ± {column.text(group.spread[column.key])}" if group.spread.get(column.key) else "")
            if column.key in group.mean
            else "–"
            for column in shown
        ]
        seeds.append([*group.values.values(), str(group.runs), *cells])
    seeded = "seed" in keys and any(group.runs > 1 for group in groups)
    parts = [f"# {markdown.plain(folder.name)}", markdown.code(command), *([about] if about else []), _markdown(table)]
    if seeded:
        parts += ["Mean ± standard deviation over seeds:", _markdown(seeds)]
    models, sentences = over_seeds(_same_but_seed(jobs), task) if seeded else ([], [])
    if models:
        parts += ["Every model, mean ± standard deviation over seeds:", _markdown(models), "\n".join(sentences)]
    folds = pool_folds((job.values, job.run) for job in jobs if job.state == "finished")
    fold_rows, fold_lines = fold_table(folds, task)
    if folds:
        parts += ["Cross-validation, out-of-fold predictions pooled:"]
        parts += [*([_markdown(fold_rows)] if len(fold_rows) > 1 else []), "\n".join(fold_lines)]
    failed = [job for job in jobs if job.state == "failed"]
    if failed:
        parts.append(
            "\n".join(
                f"- Run {job.number} failed: {markdown.plain(job.reason)} (logs/{job.number:03d}.err)" for job in failed
            )
        )
    if groups and any(group.points for group in groups):
        atomic_write(folder / "comparison.png", _plot(groups, task.headline))
        parts.append(f"![{task.headline.name} of every run](comparison.png)")
    atomic_write(folder / "comparison.md", "\n\n".join(parts) + "\n")
    record = {"command": command, "runs": rows, "groups": [asdict(one) for one in groups]}
    write_json(folder / "comparison.json", record | ({"folds": [asdict(one) for one in folds]} if folds else {}))
    _write_csv(folder / "comparison.csv", rows)
    summary = text_table(table) + ("\n\nMean ± standard deviation over seeds\n" + text_table(seeds) if seeded else "")
    summary += f"\n\nEvery model, over seeds\n{text_table(models)}\n" + "\n".join(sentences) if models else ""
    if folds:
        shown_rows = f"\n{text_table(fold_rows)}" if len(fold_rows) > 1 else ""
        summary += "\n\nCross-validation, out-of-fold predictions pooled" + shown_rows + "\n" + "\n".join(fold_lines)
    summary += "".join(f"\nrun {job.number} failed: {job.reason}" for job in failed)
    return summary


def _same_but_seed(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The reports of finished jobs if only the seed was swept; else none."""
    if any(set(job.values) != {"seed"} for job in jobs):
        return []
    return [read_json(job.run / "report.json") for job in jobs if results(job)]


def _row(job: Job, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "number": job.number,
        "values": job.values,
        "state": job.state,
        "reason": job.reason,
        "run": str(job.run),
        "words": job.words,
        "results": metrics,
    }


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    flat = [{**row["values"], "state": row["state"], "run": row["run"], **row["results"]} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    atomic_write(path, text.getvalue())


def _markdown(table: Sequence[Sequence[str]]) -> str:
    return markdown.table(table, words=len(table[0]))


def _plot(groups: Sequence[Group], headline: Headline) -> bytes:
    """Plot of the headline metric of every run, and of the mean ± standard deviation of every group, as PNG."""
    from vitlab.report.compare import capitalised
    from vitlab.report.style import LIGHT, figure, png, themed

    drawn = [group for group in groups if group.points]
    with themed(LIGHT):
        drawing, axes = figure(5.6, 1.1 + 0.32 * len(drawn), f"{capitalised(headline.name)} of every run")
        for place, group in enumerate(reversed(drawn)):
            mean = 100 * statistics.fmean(group.points)
            if len(group.points) > 1:
                spread = 100 * statistics.stdev(group.points)
                axes.plot([mean - spread, mean + spread], [place, place], color=LIGHT.series[0], zorder=2)
                axes.plot([mean], [place], "|", color=LIGHT.series[0], markersize=12, markeredgewidth=2, zorder=3)
            points = [100 * point for point in group.points]
            axes.plot(points, [place] * len(points), "o", color=LIGHT.series[2], markersize=4, alpha=0.75, zorder=4)
        names = [" ".join(f"{key}={value}" for key, value in group.values.items()) or "all" for group in drawn]
        axes.set_yticks(range(len(drawn)), list(reversed(names)))
        axes.set_ylim(-0.6, len(drawn) - 0.4)
        several = any(len(group.points) > 1 for group in drawn)
        axes.set_xlabel(f"{headline.name} in %" + ("; line: mean ± standard deviation over seeds" if several else ""))
        return png(drawing)
