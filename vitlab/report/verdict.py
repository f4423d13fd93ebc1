"""Whether a method paid: the result beside the run's own baseline, said first, with what is known to make it pay."""

from __future__ import annotations

from vitlab.report.compare import capitalised, percent
from vitlab.report.data import ModelRow, ReportData
from vitlab.report.task import ReportTask
from vitlab.report.text_tables import CHANCE


def best_baseline(data: ReportData, task: ReportTask) -> ModelRow | None:
    """The baseline with the best headline metric; None where the run has none beside its result."""
    key, sign = task.headline.key, 1 if task.headline.higher else -1
    rows = [row for row in data.rows if row.role == "baseline" and row.name != data.primary and key in row.metrics]
    return max(rows, key=lambda row: sign * row.metrics[key], default=None) if key in data.main.metrics else None


def is_worse(data: ReportData, task: ReportTask) -> bool:
    """Whether the result is below the run's own baseline, by chance or not."""
    return (best := best_baseline(data, task)) is not None and _gain(data, task, best) < 0


def verdict(data: ReportData, task: ReportTask) -> list[str]:
    """Sentences on a result that is not better than the run's own baseline; [] where it is, or there is none.

    Better means by more than chance: the paired interval of the headline metric without 0, and McNemar's p below 0.05;
    without a paired comparison, a larger value.
    """
    best = best_baseline(data, task)
    if best is None:
        return []
    key, main, gain = task.headline.key, data.main, _gain(data, task, best)
    chance = _may_be_chance(data, task, best)
    if gain > 0 and not chance:
        return []
    values = f"{percent(main.metrics[key])} % {task.headline.name} against {percent(best.metrics[key])} %"
    if gain < 0:
        sentence = f"{main.name} is worse than {best.name}: {values}" + (", which may be chance" if chance else "")
    else:
        sentence = f"the method brought nothing that is more than chance: {main.name} has {values} of {best.name}"
    out = [f"{sentence}."]
    for row in data.rows:
        if row.role == "teacher" and row.metrics.get(key, 0.0) <= best.metrics[key] and task.headline.higher:
            out.append(
                f"its {row.name} is no better than that baseline ({percent(row.metrics[key])} %), so that there was "
                "nothing to gain from it: a stronger one comes first."
            )
    return [capitalised(one) for one in out] + [f"To try: {one}" for one in data.advice]


def _gain(data: ReportData, task: ReportTask, best: ModelRow) -> float:
    key = task.headline.key
    return (data.main.metrics[key] - best.metrics[key]) * (1 if task.headline.higher else -1)


def _may_be_chance(data: ReportData, task: ReportTask, best: ModelRow) -> bool:
    pair = {data.main.name, best.name}
    one = next((one for one in data.comparisons if {one.first, one.second} == pair), None)
    if one is None:
        return False
    difference = one.differences.get(task.headline.key)
    return one.p_value >= CHANCE or (difference is not None and difference.lo <= 0 <= difference.hi)
