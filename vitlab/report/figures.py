"""Which figures a report has: those of the task, and those that every run has (training, robustness, cost)."""

from __future__ import annotations

from collections.abc import Mapping

from vitlab.report import curves, plots, robust_plots, style
from vitlab.report.backend_figure import latency_bars
from vitlab.report.compare import busy_note
from vitlab.report.data import ReportData
from vitlab.report.pieces import Drawing
from vitlab.report.robust import of_rows
from vitlab.report.task import ReportTask

Slots = Mapping[str, int]
"""The colour of each model, by its name."""


def drawings(data: ReportData, task: ReportTask) -> list[Drawing]:
    """Every figure that this report may have, in the order of each section; those without data draw None."""
    slots = style.slots(data.rows, data.primary)
    return [
        *task.figures(data, slots),
        *accuracy_and_cost(data, task, slots),
        *training_curves(data, task, slots),
        *robustness(data, slots),
        *latencies(data, slots),
        *backends(data),
    ]


def accuracy_and_cost(data: ReportData, task: ReportTask, slots: Slots) -> list[Drawing]:
    """The headline metric against what it costs."""
    return [
        Drawing(
            "compare",
            "accuracy-cost",
            f"{task.headline.title} against cost",
            "Further up is better, further left is cheaper; the cost is on a logarithmic scale.",
            lambda theme: plots.cost_accuracy(data.rows, theme, slots, task.headline),
        )
    ]


def training_curves(data: ReportData, task: ReportTask, slots: Slots) -> list[Drawing]:
    """Validation, loss and learning rate over the steps."""
    val = data.dataset.val
    validated = f"{val:,} validation images" if val else "evaluated split"
    stages = {row.stage: slots[row.name] for row in data.rows}
    return [
        Drawing(
            "curves",
            "validation",
            f"Validation {task.headline.name} during training",
            f"Measured on the {validated} as training went. The axis does not begin at zero; where it spans much, it "
            "is logarithmic in the error.",
            lambda theme: curves.accuracy(data.curves, theme, stages, task.headline),
        ),
        Drawing(
            "curves",
            "loss",
            "Training loss",
            "Faint: single records; strong: running mean. Losses of different objectives do not compare in height.",
            lambda theme: curves.loss(data.curves, theme, stages),
        ),
        Drawing(
            "curves",
            "learning-rate",
            "Learning rate during training",
            "The rate in force at each step.",
            lambda theme: curves.learning_rate(data.curves, theme, stages),
        ),
    ]


def robustness(data: ReportData, slots: Slots) -> list[Drawing]:
    """Corruptions and shifted sets, where they were measured."""
    robust = of_rows(data.rows)
    shifted = [(row.name, row.shifted) for row in data.rows if row.shifted is not None]
    out = []
    if robust:
        out += [
            Drawing(
                "robust",
                "corruptions",
                "Top-1 under each corruption",
                "Mean over the severities; further out is better. Dashed rings: the same images, not corrupted.",
                lambda theme: robust_plots.radar(robust, theme, slots),
            ),
            Drawing(
                "robust",
                "severities",
                "Top-1 and calibration error by severity",
                "Means over the corruptions; severity 0 is the image as it is.",
                lambda theme: robust_plots.by_severity(robust, theme, slots),
            ),
        ]
    if shifted:
        out.append(
            Drawing(
                "shifted",
                "shifted",
                "Top-1 on shifted sets",
                "The prediction is the largest of all logits.",
                lambda theme: robust_plots.shifted_bars(shifted, theme, slots),
            )
        )
    return out


def latencies(data: ReportData, slots: Slots) -> list[Drawing]:
    """A figure for each batch size that was timed."""
    return [
        Drawing(
            "cost",
            f"latency-{batch}",
            f"Latency of a batch of {batch}",
            " ".join(
                ["Median of one forward pass; the line spans 10 to 90 % of the repetitions.", busy_note(data.rows)]
            ),
            lambda theme, batch=batch: plots.latency(data.rows, theme, slots, batch),  # type: ignore[misc]
        )
        for batch in sorted({each.batch for row in data.rows for each in row.cost.latency})
    ]


def backends(data: ReportData) -> list[Drawing]:
    """The same models in several backends, where mode=benchmark timed more than one."""
    titles = {row.name: row.name for row in data.rows}
    if len({one.backend for one in data.timings}) < 2:
        return []
    out = []
    for batch in sorted({one.batch for one in data.timings}):
        here = [one for one in data.timings if one.batch == batch and one.name in titles]
        out.append(
            Drawing(
                "cost",
                f"backends-{batch}",
                f"Backends, a batch of {batch}",
                "Every round timed each bar once, in random order; the line spans 10 to 90 % of the rounds.",
                lambda theme, here=here: latency_bars(here, titles, theme) if here else None,  # type: ignore[misc]
            )
        )
    return out
