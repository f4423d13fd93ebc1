"""Mean and standard deviation over seeds of every model of a sweep, and paired comparisons of the models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.report.pieces import Headline
from vitlab.tasks.base import Task


def over_seeds(reports: Sequence[Mapping[str, Any]], task: Task) -> tuple[list[list[str]], list[str]]:
    """Table and comparisons of the models of runs that differ only in the seed.

    Args:
        reports: ``report.json`` of each run.
        task: of the models.

    Returns:
        Rows of a table, headings first, and a sentence that compares the result with each other model; empty with
        fewer than two runs or models.
    """
    key = task.headline.key
    rows = [{row["name"]: row for row in report["rows"] if key in row["metrics"]} for report in reports]
    names = [name for name in rows[0] if all(name in one for one in rows)] if rows else []
    if len(rows) < 2 or len(names) < 2:
        return [], []
    columns = [one for one in task.metrics if not one.key.startswith("paper_")]
    table = [["Model", "Runs", *(column.title for column in columns), "Params", "MACs"]]
    for name in names:
        cells = [name, str(len(rows))]
        for column in columns:
            metrics = [one[name]["metrics"] for one in rows]
            values = [column.unit * one[column.key] for one in metrics if column.key in one]
            digits, known = column.digits, len(values) == len(rows)
            cells.append(
                f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}" if known else "–"
            )
        for cost in ("params", "macs"):
            counts = [one[name]["cost"].get(cost) for one in rows]
            counted = all(isinstance(count, (int, float)) for count in counts)
            cells.append(f"{statistics.fmean(counts):,.0f}" if counted else "–")
        table.append(cells)
    result = str(reports[0]["primary"])
    values_of = {name: [float(one[name]["metrics"][key]) for one in rows] for name in names}
    return table, [
        verdict(result, name, values_of[result], values_of[name], task.headline)
        for name in names
        if name != result in values_of
    ]


def verdict(name: str, other: str, own: Sequence[float], others: Sequence[float], headline: Headline) -> str:
    """Whether ``name`` is better than ``other``, as a sentence: the mean of the paired differences over seeds with
    Student's 95 % confidence interval. If the interval contains 0, no difference is claimed.

    Args:
        own: metric of ``name`` in [0, 1], one value per seed.
        others: metric of ``other``, the same seeds.
        headline: the metric.
    """
    from scipy.stats import t

    differences = [100 * (a - b) for a, b in zip(own, others, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    half_width = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    ends = f"95 % interval {mean - half_width:+.2f} to {mean + half_width:+.2f}"
    numbers = f"{mean:+.2f} points of {headline.name} over {count} seeds ({ends})"
    if mean - half_width > 0:
        return f"{name} is better than {other}: {numbers}."
    if mean + half_width < 0:
        return f"{name} is worse than {other}: {numbers}."
    return f"No significant difference between {name} and {other}: {numbers}."
