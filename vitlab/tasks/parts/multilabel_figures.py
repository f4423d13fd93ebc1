"""The figures of several labels an image: mAP with its interval, reliability, precision-recall curves, AP by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitlab.measure.multilabel import MultilabelEvaluation
from vitlab.report.compare import clip, percent, wrap
from vitlab.report.data import ModelRow
from vitlab.report.style import WIDTH, Theme, blend, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 5  # precision-recall curves that are drawn: the labels of the lowest average precision
BARS = 40  # labels whose average precision is drawn: the lowest
FEW = 10  # a bin with fewer pairs is pale


def intervals(rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """mAP of the compared models with bootstrap intervals; None where none has an interval."""
    known = [(row, e) for row in rows if isinstance(e := row.evaluation, MultilabelEvaluation) and "map" in e.intervals]
    if not known:
        return None
    drawing, axes = figure(WIDTH, 1.15 + 0.52 * len(known), "mAP % and its 95 % interval")
    ends: list[float] = []
    for place, (row, found) in enumerate(known):
        lo, hi = found.intervals["map"]
        at, colour = 100 * found.map, theme.series[colours[row.name]]
        axes.plot([100 * lo, 100 * hi], [place, place], color=blend(colour, theme.paper, 0.35), linewidth=5)
        axes.plot([at], [place], "o", color=colour, markersize=7)
        axes.annotate(
            percent(found.map), (at, place), xytext=(0, 7), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color=colour, fontweight="bold",
        )  # fmt: skip
        ends += [100 * lo, 100 * hi, at]
    room = max(max(ends) - min(ends), 0.5)
    axes.set_xlim(max(0.0, min(ends) - 0.06 * room), min(max(ends) + 0.06 * room, 100.0 + 0.02 * room))
    axes.set_ylim(len(known) - 0.5, -0.7)
    axes.set_yticks(range(len(known)), [wrap(row.name, 20) for row, _ in known])
    for name, (row, _) in zip(axes.get_yticklabels(), known, strict=True):
        name.set_color(theme.series[colours[row.name]])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing


def reliability(name: str, found: MultilabelEvaluation, theme: Theme, slot: int) -> Figure:
    """Share of (image, label) pairs that have the label against its probability, all labels together."""
    drawing, axes = figure(3.6, 3.1, wrap(name, 40))
    colour = theme.series[slot]
    pale = blend(colour, theme.paper, 0.35)
    width = 1 / found.bins
    for each in found.reliability:
        if each.n:
            middle = (each.lo + each.hi) / 2
            axes.bar(middle, each.accuracy, width * 0.86, color=colour if each.n >= FEW else pale)
            axes.plot(
                [middle - width * 0.43, middle + width * 0.43], [each.confidence] * 2, color=theme.ink, linewidth=1.2
            )
    axes.plot([0, 1], [0, 1], color=theme.quiet, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability")
    axes.set_ylabel("share that has the label")
    axes.text(0.03, 0.97, f"mean ECE {percent(found.ece)} %", transform=axes.transAxes, va="top", color=theme.ink)
    axes.grid(axis="x", visible=False)
    return drawing


def precision_recall(found: MultilabelEvaluation, theme: Theme) -> Figure | None:
    """Precision against recall of the labels with the lowest average precision; a dot marks each threshold."""
    known = sorted((one for one in found.labels if one.ap is not None and one.curve), key=lambda one: one.ap or 0.0)
    if not known:
        return None
    drawing, axes = figure(WIDTH, 3.8, "Precision and recall, lowest labels")
    for number, one in enumerate(known[:CURVES]):
        colour = theme.series[number % len(theme.series)]
        title = f"{clip(one.name, 18)} ({percent(one.ap or 0.0, 1)} %)"
        axes.plot(*zip(*one.curve, strict=True), color=colour, label=title, drawstyle="steps-post")
        if one.recall is not None and one.precision is not None:
            axes.plot([one.recall], [one.precision], "o", color=colour, markersize=5)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.legend(loc="lower left", frameon=False, fontsize=8, labelcolor="linecolor", title="average precision")
    return drawing


def average_precisions(found: MultilabelEvaluation, theme: Theme) -> Figure | None:
    """Average precision of every label, lowest first; at most BARS."""
    known = sorted((one for one in found.labels if one.ap is not None), key=lambda one: one.ap or 0.0)[:BARS]
    if not known:
        return None
    drawing, axes = figure(WIDTH, 1.0 + 0.24 * len(known), "Average precision % of each label")
    for place, one in enumerate(known):
        share = 100 * (one.ap or 0.0)
        axes.barh(place, share, 0.7, color=theme.series[0])
        axes.annotate(
            f"{share:.1f}", (share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7,
            color=theme.ink,
        )  # fmt: skip
    axes.set_yticks(range(len(known)), [clip(one.name, 20) for one in known])
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.grid(axis="y", visible=False)
    return drawing
