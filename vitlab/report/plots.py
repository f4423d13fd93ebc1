"""The figures about finished models, whatever their task: one idea a function, labelled directly.

All are drawn within :func:`vitlab.report.style.themed`. Widths are chosen so that a figure still reads when a
telephone shrinks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitlab.report.compare import capitalised, clip, milliseconds, tick, wrap
from vitlab.report.curves import apart, line_share
from vitlab.report.data import Example, ModelRow
from vitlab.report.pieces import Headline
from vitlab.report.style import WIDTH, Theme, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_axis(rows: Sequence[ModelRow]) -> str | None:
    """What the cost of these models is measured by in a figure: the first kind that all of them have and that
    differs between at least two."""
    for kind in ("macs", "params", "bytes"):
        found = [getattr(row.cost, kind) for row in rows]
        if all(found) and len(set(found)) > 1:
            return kind
    return None


def cost_accuracy(
    rows: Sequence[ModelRow], theme: Theme, colours: Mapping[str, int], headline: Headline
) -> Figure | None:
    """The headline metric against cost (logarithmic): up and to the left is better. None where all have the same
    cost."""
    known = [row for row in rows if headline.key in row.metrics]
    kind = cost_axis(known)
    if kind is None:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    drawing, axes = figure(WIDTH, 1.15 + 0.52 * max(3, len(known)), f"{capitalised(headline.name)} % and cost")
    x = [float(getattr(row.cost, kind)) for row in known]
    y = [100 * row.metrics[headline.key] for row in known]
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
    across, down, top, text = 1.25, 1.5, 0.35, 0.34  # inches: a cell, above the cells, below a picture
    width, height = across * max(columns, 3), down * lines + top
    drawing = Figure(figsize=(width, height))
    drawing.suptitle("Worst mistakes", x=0.012, y=1 - 0.06 / height, ha="left", va="top")
    axes = drawing.add_axes((0, 0, 1, 1))  # one for all, in inches from the top left: axes of their own are slow
    axes.set_axis_off()
    cell = width / columns
    for place, example in enumerate(examples):
        pixels = example.pixels()
        tall, wide = pixels.shape[:2]
        scale = min(0.9 * cell / wide, (down - text) / tall)
        left = (place % columns + 0.5) * cell - scale * wide / 2
        bottom = top + (place // columns + 1) * down - text
        axes.imshow(
            pixels, interpolation="nearest" if example.small else "antialiased", aspect="auto",
            extent=(left, left + scale * wide, bottom, bottom - scale * tall),
        )  # fmt: skip
        lines_below = (
            (clip(example.label, 14), theme.ink),
            (
                f"→ {clip(example.predicted, 9)}, {100 * example.confidence:.0f} %",
                theme.wrong[1],
            ),
        )
        start = (place % columns + 0.05) * cell
        for number, (line, colour) in enumerate(lines_below):
            axes.text(start, bottom + 0.04 + 0.14 * number, line, va="top", fontsize=7.5, color=colour)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawing
