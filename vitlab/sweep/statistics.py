"""Mean and standard deviation over seeds of every model of a sweep, and paired comparisons of the models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (("top1", "Top-1 %", 100.0, 2), ("nll", "NLL", 1.0, 3), ("ece", "ECE %", 100.0, 2))


def over_seeds(reports: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Table and comparisons of the models of runs that differ only in the seed.

    Args:
        reports: ``report.json`` of each run.

    Returns:
        Rows of a table, headings first, and a sentence that compares the result with each other model; empty with
        fewer than two runs or models.
    """
    rows = [{row["name"]: row for row in report["rows"] if "top1" in row["metrics"]} for report in reports]
    names = [name for name in rows[0] if all(name in one for one in rows)] if rows else []
    if len(rows) < 2 or len(names) < 2:
        return [], []
    table = [["Model", "Runs", *(title for _, title, _, _ in COLUMNS), "Params", "MACs"]]
    for name in names:
        cells = [name, str(len(rows))]
        for key, _, unit, digits in COLUMNS:
            values = [unit * one[name]["metrics"][key] for one in rows if key in one[name]["metrics"]]
            complete = len(values) == len(rows)
            cells.append(
                f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}" if complete else "–"
            )
        for key in ("params", "macs"):
            counts = [one[name]["cost"].get(key) for one in rows]
            known = all(isinstance(count, (int, float)) for count in counts)
            cells.append(f"{statistics.fmean(counts):,.0f}" if known else "–")
        table.append(cells)
    result = str(reports[0]["primary"])
    top1 = {name: [float(one[name]["metrics"]["top1"]) for one in rows] for name in names}
    return table, [verdict(result, name, top1[result], top1[name]) for name in names if name != result in top1]


def verdict(name: str, other: str, own: Sequence[float], others: Sequence[float]) -> str:
    """Whether ``name`` is better than ``other``, as a sentence: the mean of the paired differences over seeds with
    Student's 95 % confidence interval. If the interval contains 0, no difference is claimed.

    Args:
        own: top-1 of ``name`` in [0, 1], one value per seed.
        others: top-1 of ``other``, the same seeds.
    """
    from scipy.stats import t

    differences = [100 * (a - b) for a, b in zip(own, others, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    half_width = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    numbers = (
        f"{mean:+.2f} points of top-1 over {count} seeds "
        f"(95 % interval {mean - half_width:+.2f} to {mean + half_width:+.2f})"
    )
    if mean - half_width > 0:
        return f"{name} is better than {other}: {numbers}."
    if mean + half_width < 0:
        return f"{name} is worse than {other}: {numbers}."
    return f"No significant difference between {name} and {other}: {numbers}."
