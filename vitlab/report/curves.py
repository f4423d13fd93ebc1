"""How the trainings went: loss, learning rate and the headline metric of validation, all stages in one figure.

Lines carry their names at their ends instead of a legend. Colours come from :func:`vitlab.report.style.slots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitlab.report.compare import tick, wrap
from vitlab.report.data import Curve
from vitlab.report.pieces import Headline
from vitlab.report.style import Theme, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINT = 1 / 72  # inch


@dataclass
class Series:
    """One line of a figure."""

    title: str
    colour: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def values(curve: Curve, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and finite values of ``key``, in the order of the record."""
    points = [(p["step"], p[key]) for p in curve.points if key in p and math.isfinite(p[key])]
    table = np.array(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def series(curves: Sequence[Curve], key: str, theme: Theme, colours: Mapping[str, int]) -> list[Series]:
    """The curves that have at least two values of ``key``; ``colours`` maps a stage to its slot."""
    found = []
    for number, curve in enumerate(curves):
        x, y = values(curve, key)
        if len(x) > 1:
            slot = colours.get(curve.stage, (number + 3) % len(theme.series))
            found.append(Series(curve.title, theme.series[slot], x, y))
    return found


def running_mean(y: NDArray[np.float64], share: float = 0.03) -> NDArray[np.float64]:
    """Mean over the neighbours within ``share`` of the points on either side, as many as there are at the ends."""
    reach = max(1, round(len(y) * share))
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(y))
    return (total[last] - total[first]) / (last - first)


def apart(wanted: Sequence[float], heights: Sequence[float], lo: float, hi: float) -> list[float]:
    """Middles of labels of these heights, as near to the wanted ones as they go without overlap.

    Labels that would touch form a block around the mean of where they want to be; blocks stay inside ``[lo, hi]``
    as long as they fit.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []

    def foot(block: list[int]) -> float:
        """Lower edge of a block in its best place."""
        offset, shifts = 0.0, []
        for i in block:
            shifts.append(wanted[i] - heights[i] / 2 - offset)
            offset += heights[i]
        return max(lo, min(sum(shifts) / len(shifts), hi - offset))

    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and foot(blocks[-2]) + sum(heights[j] for j in blocks[-2]) > foot(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    placed = list(wanted)
    for block in blocks:
        edge = foot(block)
        for i in block:
            placed[i] = edge + heights[i] / 2
            edge += heights[i]
    return placed


def line_share(axes: Axes) -> float:
    """The part of the height of ``axes``, once everything has found its room, that a line of a label takes."""
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    drawing.draw_without_rendering()
    return 9.6 * POINT * drawing.dpi / axes.get_window_extent().height


def label_ends(axes: Axes, lines: Sequence[Series]) -> None:
    """Write every line's name right of the axes, at the height where the line ends; a dotted line leads there from
    one that ends early."""
    right = max(line.x[-1] for line in lines)
    axes.set_xlim(0, right)
    for line in lines:
        axes.plot([line.x[-1], right], [line.y[-1]] * 2, color=line.colour, linewidth=0.8, linestyle=":", alpha=0.7)
        axes.plot(line.x[-1:], line.y[-1:], "o", color=line.colour, markersize=3.5, clip_on=False, zorder=3)
    names = [wrap(line.title, 13) for line in lines]
    # First anywhere: the room that the names take decides how large the axes are, and so where the names belong.
    notes = [
        axes.annotate(
            name, (1.0, 0.5), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points",
            color=line.colour, fontsize=8, va="center", linespacing=1.15,
        )
        for name, line in zip(names, lines, strict=True)
    ]  # fmt: skip
    share = line_share(axes)
    heights = [share * (name.count("\n") + 1.4) for name in names]
    lower, upper = axes.get_ylim()
    to_height = axes.transAxes.inverted().transform
    wanted = [float(to_height(axes.transData.transform((0, min(max(line.y[-1], lower), upper))))[1]) for line in lines]
    for note, at in zip(notes, apart(wanted, heights, -0.05, 1.05), strict=True):
        note.xy = (1.0, at)


def _axes(title: str) -> tuple[Figure, Axes]:
    drawing, axes = figure(3.9, 3.1, title)
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    axes.margins(x=0)
    axes.grid(axis="x", visible=False)
    return drawing, axes


def loss(curves: Sequence[Curve], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Training loss: every record faint, its running mean strong; logarithmic when it spans more than 1:20."""
    lines = series(curves, "loss", theme, colours)
    if not lines:
        return None
    drawing, axes = _axes("Training loss")
    low, high = min(line.y.min() for line in lines), max(line.y.max() for line in lines)
    for line in lines:
        axes.plot(line.x, line.y, color=line.colour, linewidth=0.7, alpha=0.3)
        line.y = running_mean(line.y)
        axes.plot(line.x, line.y, color=line.colour)
    if low > 0 and high / low > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(low / 1.3, high * 1.3)
    else:
        axes.set_ylim(min(0.0, low), high * 1.08 if high > 0 else None)
    label_ends(axes, lines)
    return drawing


def accuracy(curves: Sequence[Curve], theme: Theme, colours: Mapping[str, int], headline: Headline) -> Figure | None:
    """The headline metric on validation images, every point of it.

    Where the error falls to less than a quarter, the axis is logarithmic in the error: beginning and end both show.
    """
    lines = series(curves, f"val_{headline.key}", theme, colours)
    if not lines:
        return None
    drawing, axes = _axes(f"Validation {headline.name} %")
    for line in lines:
        line.y = 100 * line.y
        axes.plot(line.x, line.y, color=line.colour)
    _percent_axis(axes, np.concatenate([line.y for line in lines]))
    label_ends(axes, lines)
    return drawing


ERRORS = (100, 80, 60, 40, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Where an axis that is logarithmic in the error has its ticks: percent below 100."""


def _percent_axis(axes: Axes, shown: NDArray[np.float64]) -> None:
    """Limits and scale of a vertical axis for these values in percent."""
    from matplotlib.ticker import NullLocator

    low, high = float(shown.min()), float(shown.max())
    errors = 100 - shown
    floor = max(float(errors[errors > 0].min(initial=100.0)) / 4, 0.001)  # where 100 % lies: it has no logarithm
    if (100 - low) / max(100 - high, floor) <= 4:
        room = max(high - low, 0.5)
        axes.set_ylim(max(0.0, low - 0.1 * room), min(100.0 + 0.03 * room, high + 0.12 * room))
        return

    def height(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return -np.log(np.maximum(100 - np.asarray(value), floor / 2))

    bottom, top = (float(height(np.array(end))) for end in (low, high))
    room = 0.06 * (top - bottom)
    axes.set_yscale("function", functions=(height, lambda at: 100 - np.exp(-np.asarray(at))))
    axes.set_ylim(100 - float(np.exp(-(bottom - room))), 100 - float(np.exp(-(top + room))))
    ticks: list[float] = []
    for error in ERRORS:
        at = float(height(np.array(100 - error)))
        if bottom - room <= at <= top + room and (not ticks or at - float(height(np.array(ticks[-1]))) > 1.2 * room):
            ticks.append(100 - error)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def learning_rate(curves: Sequence[Curve], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """The learning rate that was in force; of schedules that coincide, the later is dashed so that the
    earlier shows through."""
    lines = series(curves, "lr", theme, colours)
    if not lines:
        return None
    drawing, axes = _axes("Learning rate")
    for number, line in enumerate(lines):
        under = any(np.array_equal(line.x, o.x) and np.allclose(line.y, o.y) for o in lines[:number])
        axes.plot(line.x, line.y, color=line.colour, linestyle=(0, (3, 3)) if under else "-")
    axes.set_ylim(0, 1.08 * max(line.y.max() for line in lines))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label_ends(axes, lines)
    return drawing
