"""The figures of classification: accuracy with its interval, reliability diagram, confusion matrix.

All are drawn within :func:`vitlab.report.style.themed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitlab.measure.classification import Evaluation, top1_interval
from vitlab.report.compare import clip, percent, wrap
from vitlab.report.data import ModelRow
from vitlab.report.style import WIDTH, Theme, blend, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 15  # confusion matrices of at most this many classes show their counts
NAMED = 40  # ... and of at most this many the names of the classes
DRAWN = 150  # ... and of more than this many nothing is drawn
FEW = 10  # a bin of the reliability diagram with fewer images is pale


def accuracy_intervals(rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Top-1 of the compared models with 95 % intervals: how much of a difference may be chance."""
    known = [(row, row.evaluation) for row in rows if isinstance(row.evaluation, Evaluation)]
    if not known:
        return None
    drawing, axes = figure(WIDTH, 1.15 + 0.52 * len(known), "Top-1 % and its 95 % interval")
    ends: list[float] = []
    for place, (row, found) in enumerate(known):
        lo, hi, _ = top1_interval(found)
        at, colour = 100 * found.top1, theme.series[colours[row.name]]
        axes.plot([100 * lo, 100 * hi], [place, place], color=blend(colour, theme.paper, 0.35), linewidth=5)
        axes.plot([at], [place], "o", color=colour, markersize=7)
        axes.annotate(
            f"{percent(found.top1)}", (at, place), xytext=(0, 7), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color=colour, fontweight="bold",
        )  # fmt: skip
        ends += [100 * lo, 100 * hi]
    room = max(max(ends) - min(ends), 0.5)
    axes.set_xlim(max(0.0, min(ends) - 0.06 * room), min(max(ends) + 0.06 * room, 100.0 + 0.02 * room))
    axes.set_ylim(len(known) - 0.5, -0.7)
    axes.set_yticks(range(len(known)), [wrap(row.name, 20) for row, _ in known])
    for name, (row, _) in zip(axes.get_yticklabels(), known, strict=True):
        name.set_color(theme.series[colours[row.name]])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing


def reliability(name: str, found: Evaluation, theme: Theme, slot: int) -> Figure:
    """Accuracy against confidence: on the diagonal they agree. Below: the share of images in each bin."""
    drawing, axes = figure(3.6, 3.7, wrap(name, 40))
    colour = theme.series[slot]
    pale = blend(colour, theme.paper, 0.35)
    axes.remove()
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    width = 1 / found.bins
    for each in found.reliability:
        if each.n == 0:
            continue
        middle = (each.lo + each.hi) / 2
        above.bar(middle, each.accuracy, width * 0.86, color=colour if each.n >= FEW else pale)
        # the gap to the diagonal, at the mean confidence of the bin
        above.plot(
            [middle - width * 0.43, middle + width * 0.43], [each.confidence] * 2, color=theme.ink, linewidth=1.2
        )
    above.plot([0, 1], [0, 1], color=theme.quiet, linewidth=0.9, linestyle=(0, (4, 3)))
    above.set_xlim(0, 1)
    above.set_ylim(0, 1.02)
    above.set_ylabel("accuracy")
    above.text(0.03, 0.97, f"ECE {percent(found.ece)} %", transform=above.transAxes, va="top", color=theme.ink)
    below.bar(
        [(each.lo + each.hi) / 2 for each in found.reliability],
        [each.n / found.n for each in found.reliability],
        width * 0.86,
        color=blend(theme.quiet, theme.paper, 0.6),
    )
    below.set_ylim(0, 1)
    below.set_yticks([0, 1], ["0", "all"])
    below.set_ylabel("images")
    below.set_xlabel("confidence")
    for panel in (above, below):
        panel.grid(axis="x", visible=False)
    return drawing


def confusion(found: Evaluation, theme: Theme) -> Figure | None:
    """Labels down, predictions across, each row a share of its class. What is right is cool and what is wrong warm,
    each on its own scale: rare mistakes stay visible beside a full diagonal. None for more than DRAWN classes, where
    a cell would be smaller than a pixel and the list of pairs shows more."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    size = len(found.classes)
    if size > DRAWN:
        return None
    counts = found.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    off = np.where(np.eye(size, dtype=bool), 0.0, shares)
    top = max(float(off.max()), 1e-9)
    cool = LinearSegmentedColormap.from_list("right", theme.right)
    warm = LinearSegmentedColormap.from_list("wrong", theme.wrong)
    pixels = np.empty((size, size, 3))
    pixels[:] = to_rgb(blend(theme.faint, theme.paper, 0.45))
    seen = off > 0
    pixels[seen] = warm(off[seen] / top)[:, :3]
    every = np.arange(size)
    pixels[every, every] = cool(shares[every, every])[:, :3]
    side = min(6.2, 2.2 + 0.24 * size)
    drawing, axes = figure(side, side, "Confusion matrix")
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if size <= NAMED:
        short = [clip(name, 16) for name in found.classes]
        axes.set_yticks(every, short, fontsize=8 if size <= 20 else 6)
        axes.set_xticks(every, short, fontsize=8 if size <= 20 else 6, rotation=90 if max(map(len, short)) > 2 else 0)
        axes.set_xticks(every[1:] - 0.5, minor=True)
        axes.set_yticks(every[1:] - 0.5, minor=True)
        axes.grid(which="minor", visible=True, color=theme.paper, linewidth=1.5)
        axes.grid(which="major", visible=False)
    if size <= NUMBERED:
        for label, predicted, count in found.counts:
            dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), pixels[label, predicted], strict=True)) < 0.5
            ink = "#ffffff" if dark else "#14181c"
            axes.text(predicted, label, f"{count}", ha="center", va="center", fontsize=7.5, color=ink)
    return drawing
