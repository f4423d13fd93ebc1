"""Every model of the runs of a sweep, mean and spread over seeds, and said plainly which of them wins."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (("top1", "Top-1 %", 100.0, 2), ("nll", "NLL", 1.0, 3), ("ece", "ECE %", 100.0, 2))


def over_seeds(reports: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """The models of runs that differ in nothing but the seed.

    Args:
        reports: ``report.json`` of each run.

    Returns:
        Rows of a table, the first one its heading, and a sentence for each model beside the result; nothing where
        there are fewer than two runs or models.
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
            told = len(values) == len(rows)
            cells.append(
                f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}" if told else "–"
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
    """Whether ``name`` is better than ``other``: the paired differences over seeds and Student's 95 % interval of
    their mean; a difference whose interval holds 0 is no difference that was shown.
    """
    from scipy.stats import t

    found = [100 * (a - b) for a, b in zip(own, others, strict=True)]
    mean, count = statistics.fmean(found), len(found)
    reach = float(t.ppf(0.975, count - 1)) * statistics.stdev(found) / count**0.5
    numbers = (
        f"{mean:+.2f} points of top-1 over {count} seeds (95 % interval {mean - reach:+.2f} to {mean + reach:+.2f})"
    )
    if mean - reach > 0:
        return f"{name} is better than {other}: {numbers}."
    if mean + reach < 0:
        return f"{name} is worse than {other}: {numbers}."
    return f"{name} does not win against {other}, nor lose: {numbers}; that may be chance."
