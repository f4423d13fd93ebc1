"""The figures about finished models. Each function draws one idea, labelled directly, as a matplotlib figure.

All are drawn within :func:`vitlab.report.style.themed`. Widths are chosen so that a figure still reads when a
telephone shrinks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitlab.measure.classification import Evaluation, wilson
from vitlab.report.compare import clip, milliseconds, percent, tick, wrap
from vitlab.report.curves import apart, line_share
from vitlab.report.data import Example, ModelRow
from vitlab.report.style import WIDTH, Theme, blend, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 15  # confusion matrices of at most this many classes show their counts
NAMED = 40  # ... and of at most this many the names of the classes
DRAWN = 150  # ... and of more than this many nothing is drawn
FEW = 10  # a bin of the reliability diagram with fewer images is pale


def accuracy_intervals(rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Top-1 of the compared models with Wilson's 95 % intervals: how much of a difference may be chance."""
    known = [row for row in rows if row.evaluation is not None]
    if not known:
        return None
    drawing, axes = figure(WIDTH, 1.15 + 0.52 * len(known), "Top-1 % and its 95 % interval")
    ends: list[float] = []
    for place, row in enumerate(known):
        assert row.evaluation is not None
        lo, hi = wilson(round(row.evaluation.top1 * row.evaluation.n), row.evaluation.n)
        at, colour = 100 * row.evaluation.top1, theme.series[colours[row.name]]
        axes.plot([100 * lo, 100 * hi], [place, place], color=blend(colour, theme.paper, 0.35), linewidth=5)
        axes.plot([at], [place], "o", color=colour, markersize=7)
        axes.annotate(
            f"{percent(row.evaluation.top1)}", (at, place), xytext=(0, 7), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color=colour, fontweight="bold",
        )  # fmt: skip
        ends += [100 * lo, 100 * hi]
    room = max(max(ends) - min(ends), 0.5)
    axes.set_xlim(max(0.0, min(ends) - 0.06 * room), min(max(ends) + 0.06 * room, 100.0 + 0.02 * room))
    axes.set_ylim(len(known) - 0.5, -0.7)
    axes.set_yticks(range(len(known)), [wrap(row.name, 20) for row in known])
    for name, row in zip(axes.get_yticklabels(), known, strict=True):
        name.set_color(theme.series[colours[row.name]])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing


def reliability(name: str, found: Evaluation, theme: Theme, slot: int) -> Figure:
    """Accuracy against confidence: on the diagonal a network is as right as it says. Below: how often it says so."""
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
    a cell would be smaller than a pixel and the list of pairs says more."""
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


def cost_axis(rows: Sequence[ModelRow]) -> str | None:
    """What the cost of these models is measured by in a figure: the first kind that all of them have and that
    tells at least two apart."""
    for kind in ("macs", "params", "bytes"):
        found = [getattr(row.cost, kind) for row in rows]
        if all(found) and len(set(found)) > 1:
            return kind
    return None


def cost_accuracy(rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Accuracy against cost (logarithmic): up and to the left is better. None when no cost tells the models apart."""
    known = [row for row in rows if "top1" in row.metrics]
    kind = cost_axis(known)
    if kind is None:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    drawing, axes = figure(WIDTH, 1.15 + 0.52 * max(3, len(known)), "Top-1 % and cost")
    x = [float(getattr(row.cost, kind)) for row in known]
    y = [100 * row.metrics["top1"] for row in known]
    axes.set_xscale("log")
    span = max(x) / min(x)
    axes.set_xlim(min(x) / span**0.12, max(x) * span**0.5)
    room = max(max(y) - min(y), 0.5)
    low, high = max(0.0, min(y) - 0.2 * room), max(y) + 0.2 * room
    axes.set_ylim(low, high)
    names = [wrap(row.name, 20) for row in known]
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel({"macs": "multiply-adds for one image", "params": "parameters", "bytes": "bytes of weights"}[kind])
    share = line_share(axes) * (high - low)
    heights = [share * (name.count("\n") + 1.4) for name in names]
    places = list(y)
    order = sorted(range(len(known)), key=lambda i: x[i])
    while order:  # only names of neighbours can collide: a name is about 0.35 of the span wide
        near = [i for i in order if x[i] <= x[order[0]] * span**0.35]
        order = [i for i in order if i not in near]
        moved = apart([y[i] for i in near], [heights[i] for i in near], low, high)
        for i, at in zip(near, moved, strict=True):
            places[i] = at
    for row, name, at, across, up in zip(known, names, places, x, y, strict=True):
        colour = theme.series[colours[row.name]]
        axes.plot([across], [up], "o", color=colour, markersize=8, clip_on=False)
        axes.annotate(
            name, (across, at), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8,
            color=colour, linespacing=1.15,
        )  # fmt: skip
    return drawing


def latency(rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int], batch: int) -> Figure | None:
    """Median time of a forward pass with its 10 to 90 % range."""
    known = [(row, found) for row in rows if (found := row.cost.at(batch)) is not None]
    if not known:
        return None
    drawing, axes = figure(WIDTH, 1.0 + 0.4 * len(known), f"Milliseconds for a batch of {batch}")
    for place, (row, found) in enumerate(known):
        colour = theme.series[colours[row.name]]
        axes.barh(place, found.median_ms, 0.56, color=colour)
        lo, hi = found.p10_ms or found.median_ms, found.p90_ms or found.median_ms
        axes.plot([lo, hi], [place, place], color=theme.ink, linewidth=1.1)
        axes.annotate(
            milliseconds(found.median_ms), (max(hi, found.median_ms), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=8, color=colour, fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(known)), [wrap(row.name, 20) for row, _ in known])
    for name, (row, _) in zip(axes.get_yticklabels(), known, strict=True):
        name.set_color(theme.series[colours[row.name]])
    axes.set_ylim(len(known) - 0.45, -0.55)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing


def mistakes(examples: Sequence[Example], theme: Theme, columns: int = 6) -> Figure | None:
    """The given images in a grid: its label, and what it was taken for with which confidence."""
    if not examples:
        return None
    from matplotlib.figure import Figure

    columns = min(columns, len(examples))
    lines = -(-len(examples) // columns)
    drawing = Figure(figsize=(1.25 * max(columns, 3), 1.5 * lines + 0.35), layout="constrained")
    drawing.suptitle("Worst mistakes", x=0.012, ha="left")
    grid = np.atleast_1d(drawing.subplots(lines, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, example in zip(grid, examples, strict=False):
        pixels = example.pixels()
        axes.imshow(pixels, interpolation="nearest" if example.small else "antialiased")
        axes.text(
            0.0, -0.05, clip(example.label, 16), transform=axes.transAxes, va="top",
            fontsize=7.5, color=theme.ink,
        )  # fmt: skip
        axes.text(
            0.0, -0.2, f"→ {clip(example.predicted, 11)}, {100 * example.confidence:.0f} %",
            transform=axes.transAxes, va="top", fontsize=7.5, color=theme.wrong[1],
        )  # fmt: skip
    return drawing
