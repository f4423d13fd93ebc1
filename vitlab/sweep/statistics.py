"""Mean and standard deviation over seeds of every model of a sweep, and paired comparisons of the models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.report.pieces import Headline
from vitlab.report.text_tables import p_equation
from vitlab.tasks.base import Task

SIGNIFICANT = 0.05
"""A difference is claimed below this probability of claiming any where there is none."""


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
    others = {name: values for name, values in values_of.items() if name != result}
    return table, verdicts(result, values_of[result], others, task.headline) if result in values_of else []


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with Student's 95 % confidence interval and two-sided p-value (paired t-test)."""

    mean: float
    lo: float
    hi: float
    p_value: float  # of a mean of 0
    count: int  # pairs; the degrees of freedom are one less


def paired(own: Sequence[float], others: Sequence[float]) -> Difference:
    """The difference of two rows of numbers, pair by pair, such as the metrics of two models over the same seeds.

    The differences are taken as normal. Of a single pair nothing is known: an unbounded interval, and p = 1.
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(own, others, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, -math.inf, math.inf, 1.0, count)
    error = statistics.stdev(differences) / count**0.5
    half = float(t.ppf(0.975, count - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, in their order: below 0.05 means that all such claims together are wrong
    with a probability of at most 5 % (Holm, A simple sequentially rejective multiple test procedure, 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def verdicts(name: str, own: Sequence[float], others: Mapping[str, Sequence[float]], headline: Headline) -> list[str]:
    """Whether ``name`` is better than each of ``others``, as sentences: the mean of the paired differences over seeds
    with Student's 95 % interval. A difference is claimed where its p-value, corrected for the number of comparisons,
    is below 0.05.

    Args:
        own: metric of ``name`` in [0, 1], one value per seed.
        others: metric of each other model, the same seeds.
        headline: the metric.
    """
    found = {other: paired([100 * a for a in own], [100 * b for b in values]) for other, values in others.items()}
    lines = []
    for (other, one), p in zip(found.items(), holm([one.p_value for one in found.values()]), strict=True):
        chance = p_equation(p)
        chance += f", corrected for {len(found)} comparisons" if len(found) > 1 else ""
        numbers = (
            f"{one.mean:+.2f} points of {headline.name} over {one.count} seeds "
            f"(95 % interval {one.lo:+.2f} to {one.hi:+.2f}; {chance})"
        )
        if p >= SIGNIFICANT:
            lines.append(f"No significant difference between {name} and {other}: {numbers}.")
        else:
            lines.append(f"{name} is {'better' if one.mean > 0 else 'worse'} than {other}: {numbers}.")
    return lines
