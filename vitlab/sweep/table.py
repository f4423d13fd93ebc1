"""What a sweep found: the runs side by side, and where a seed was varied, their mean and spread."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitlab.files import atomic_write, read_json, write_json
from vitlab.sweep.folds import fold_table, pooled
from vitlab.sweep.statistics import over_seeds

SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("top1", "Top-1 %", lambda value: f"{100 * value:.2f}"),
    ("paper_top1", "Paper's top-1 %", lambda value: f"{100 * value:.1f}"),
    ("nll", "NLL", lambda value: f"{value:.3f}"),
    ("ece", "ECE %", lambda value: f"{100 * value:.2f}"),
    ("params", "Params", lambda value: f"{value:,.0f}"),
    ("macs", "MACs", lambda value: f"{value:,.0f}"),
)
"""What the tables show, with heading and format; the CSV and JSON files hold everything that was measured."""


@dataclass
class Job:
    """One run of the sweep."""

    number: int  # from 1
    words: list[str]  # its own command line
    values: dict[str, str]  # the swept keys
    run: Path
    state: str = "waiting"  # waiting | finished | pruned | stopped | failed
    reason: str = ""
    seconds: float | None = None  # of this session
    extra: dict[str, float] = field(default_factory=dict)  # what a search was for


@dataclass
class Group:
    """Jobs that differ in nothing but the seed."""

    values: dict[str, str]
    runs: int
    mean: dict[str, float]
    spread: dict[str, float]  # sample standard deviation, absent for a single run
    points: list[float]  # top-1 of each


def results(job: Job) -> dict[str, float]:
    """What the method's result measured in a finished run, and what its paper says of it; {} where there is none."""
    path = job.run / "report.json"
    if job.state != "finished" or not path.exists():
        return {}
    data: dict[str, Any] = read_json(path)
    row = next((row for row in data["rows"] if row["name"] == data["primary"]), None)
    if row is None:
        return {}
    found = {**row["metrics"], **{name: row["cost"].get(name) for name in ("params", "macs", "bytes")}}
    found |= {f"latency_ms_{one['batch']}": one["median_ms"] for one in row["cost"].get("latency", [])}
    for published in data.get("paper_rows", []):
        found["paper_top1"] = published["metrics"].get("top1")
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def grouped(jobs: Sequence[Job]) -> list[Group]:
    """Finished jobs, those of all seeds taken together, in the order of the grid."""
    together: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for job in jobs:
        if found := results(job):
            key = tuple((name, value) for name, value in job.values.items() if name != "seed")
            together.setdefault(key, []).append(found)
    groups = []
    for key, rows in together.items():
        names = [name for name in rows[0] if all(name in row for row in rows)]
        mean = {name: statistics.fmean(row[name] for row in rows) for name in names}
        several = len(rows) > 1
        spread = {name: statistics.stdev(row[name] for row in rows) for name in names} if several else {}
        groups.append(Group(dict(key), len(rows), mean, spread, [row["top1"] for row in rows if "top1" in row]))
    return groups


def write_comparison(
    folder: Path, jobs: Sequence[Job], command: str, *, about: str = "", show: Sequence[str] = ()
) -> str:
    """Write ``comparison.md``, ``.csv``, ``.json`` and ``.png`` into ``folder``; the table for the prompt.

    Args:
        about: of a search, what it found, as Markdown with its own pictures; the runs are then no groups.
        show: names of results that stand in the tables before the usual ones.
    """
    from vitlab.report.text_tables import text_table

    found = [results(job) | job.extra for job in jobs]
    groups = [] if about else grouped(jobs)
    rows = [_row(job, one) for job, one in zip(jobs, found, strict=True)]
    known = {name: (title, format) for name, title, format in SHOWN}
    first = [(name, *known.get(name, (name, lambda value: f"{value:.4g}"))) for name in show]
    shown = [*first, *(column for column in SHOWN if column[0] not in show)]
    shown = [column for column in shown if any(column[0] in one for one in found)]
    keys = list(jobs[0].values) if jobs else []
    table = [[*keys, "State", *(title for _, title, _ in shown)]]
    for job, one in zip(jobs, found, strict=True):
        cells = [show(one[name]) if name in one else "–" for name, _, show in shown]
        table.append([*job.values.values(), job.state, *cells])
    seeds = [[*(key for key in keys if key != "seed"), "Runs", *(title for _, title, _ in shown)]]
    for group in groups:
        cells = [
            show(group.mean[name]) + (f" ± {show(group.spread[name])}" if group.spread.get(name) else "")
            if name in group.mean
            else "–"
            for name, _, show in shown
        ]
        seeds.append([*group.values.values(), str(group.runs), *cells])
    many = "seed" in keys and any(group.runs > 1 for group in groups)
    parts = [f"# {folder.name}", f"`{command}`", *([about] if about else []), _markdown(table)]
    if many:
        parts += ["Mean ± standard deviation over seeds:", _markdown(seeds)]
    models, sentences = over_seeds(_same_but_seed(jobs)) if many else ([], [])
    if models:
        parts += ["Every model, mean ± standard deviation over seeds:", _markdown(models), "\n".join(sentences)]
    folds = pooled((job.values, job.run) for job in jobs if job.state == "finished")
    fold_rows, fold_lines = fold_table(folds)
    if folds:
        parts += ["Cross-validation, out-of-fold predictions pooled:"]
        parts += [*([_markdown(fold_rows)] if len(fold_rows) > 1 else []), "\n".join(fold_lines)]
    failed = [job for job in jobs if job.state == "failed"]
    if failed:
        parts.append(
            "\n".join(f"- Run {job.number} failed: {job.reason} (logs/{job.number:03d}.err)" for job in failed)
        )
    if groups and any(group.points for group in groups):
        atomic_write(folder / "comparison.png", _picture(groups))
        parts.append("![top-1 of every run](comparison.png)")
    atomic_write(folder / "comparison.md", "\n\n".join(parts) + "\n")
    summary = {"command": command, "runs": rows, "groups": [asdict(one) for one in groups]}
    write_json(folder / "comparison.json", summary | ({"folds": [asdict(one) for one in folds]} if folds else {}))
    _write_csv(folder / "comparison.csv", rows)
    told = text_table(table) + ("\n\nMean ± standard deviation over seeds\n" + text_table(seeds) if many else "")
    told += f"\n\nEvery model, over seeds\n{text_table(models)}\n" + "\n".join(sentences) if models else ""
    if folds:
        shown_rows = f"\n{text_table(fold_rows)}" if len(fold_rows) > 1 else ""
        told += "\n\nCross-validation, out-of-fold predictions pooled" + shown_rows + "\n" + "\n".join(fold_lines)
    told += "".join(f"\nrun {job.number} failed: {job.reason}" for job in failed)
    return told


def _same_but_seed(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The reports of finished jobs, where nothing but the seed was swept; else none."""
    if any(set(job.values) != {"seed"} for job in jobs):
        return []
    return [read_json(job.run / "report.json") for job in jobs if results(job)]


def _row(job: Job, found: dict[str, float]) -> dict[str, Any]:
    return {
        "number": job.number,
        "values": job.values,
        "state": job.state,
        "reason": job.reason,
        "run": str(job.run),
        "words": job.words,
        "results": found,
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
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def _picture(groups: Sequence[Group]) -> bytes:
    """Top-1 of every run as a dot, of every group the mean and one standard deviation to both sides."""
    from vitlab.report.style import LIGHT, figure, png, themed

    drawn = [group for group in groups if group.points]
    with themed(LIGHT):
        drawing, axes = figure(5.6, 1.1 + 0.32 * len(drawn), "Top-1 of every run")
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
        axes.set_xlabel("top-1 in %" + ("; line: mean ± standard deviation over seeds" if several else ""))
        return png(drawing)
