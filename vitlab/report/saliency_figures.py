"""Figures of maps over images: where a network looked, and what is left of that when its weights go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitlab.report.compare import clip
from vitlab.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 1.45  # inches of the side of one picture
WORDS = 1.6  # inches of the text beside them
COLOURS = "plasma"  # from dark blue to yellow, even to the eye and safe for the colour-blind


@dataclass
class Shown:
    """One image with its maps."""

    image: NDArray[np.uint8]  # [H, W, 3], what the network saw
    maps: dict[str, NDArray[np.float32]]  # title -> [H, W] in [0, 1]
    caption: str  # the prediction
    detail: str  # the label, the class that is explained
    wrong: bool = False


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """The map over the image, [H, W, 3] in [0, 1]: the image in pale grey where the map is 0, the colour of the map's
    value over it the more the larger that value is.

    Raises:
        ValueError: shapes that do not belong together.
    """
    import matplotlib

    if image.shape[:2] != heat.shape:
        raise ValueError(f"a map {heat.shape} for an image {image.shape}")
    grey = (image.astype(np.float64) @ [0.299, 0.587, 0.114]) / 255
    base = np.repeat((0.2 + 0.75 * grey)[..., None], 3, axis=2)
    colour = matplotlib.colormaps[COLOURS](heat)[..., :3]
    share = (0.7 * np.clip(1.6 * heat, 0, 1))[..., None]
    mixed: NDArray[np.float64] = base * (1 - share) + colour * share
    return mixed


def sheet(shown: Sequence[Shown], theme: Theme, title: str) -> Figure:
    """One row for each image: as it was seen, then each map over it."""
    from matplotlib.figure import Figure

    columns = 1 + len(shown[0].maps)
    side = CELL if shown[0].image.shape[0] >= 64 else 1.15
    drawing = Figure(figsize=(side * columns + WORDS, side * len(shown) + 0.6), layout="constrained")
    drawing.suptitle(title, x=0.012, ha="left")
    shares = [*[side] * columns, WORDS]
    grid = np.asarray(drawing.subplots(len(shown), columns + 1, squeeze=False, width_ratios=shares))
    for row, one in zip(grid, shown, strict=True):
        _picture(row[0], one.image)
        for axes, heat in zip(row[1:], one.maps.values(), strict=False):
            _picture(axes, overlay(one.image, heat))
        row[-1].set_axis_off()
        colour = theme.wrong[1] if one.wrong else theme.ink
        words = {"transform": row[-1].transAxes, "in_layout": False}
        row[-1].text(0.02, 0.95, clip(one.caption, 22), va="top", fontsize=8.5, color=colour, **words)
        row[-1].text(0.02, 0.75, one.detail, va="top", fontsize=7.5, color=theme.quiet, **words)
    for axes, name in zip(grid[0], ["seen", *shown[0].maps], strict=False):
        axes.set_title(name, fontsize=8.5, color=theme.quiet)
    return drawing


def sanity_sheet(
    images: Sequence[NDArray[np.uint8]],
    steps: Sequence[tuple[str, float, Sequence[NDArray[np.float32]]]],
    theme: Theme,
    title: str,
) -> Figure:
    """The maps as ever more weights are random: ``steps`` are (from which layer on, correlation, maps [H, W])."""
    from matplotlib.figure import Figure

    columns = 1 + len(steps)
    side = 1.05
    drawing = Figure(figsize=(side * columns + 0.15, side * len(images) + 1.0), layout="constrained")
    drawing.suptitle(title, x=0.012, ha="left")
    grid = np.asarray(drawing.subplots(len(images), columns, squeeze=False))
    for number, image in enumerate(images):
        _picture(grid[number][0], image)
        for axes, (_, _, maps) in zip(grid[number][1:], steps, strict=True):
            _picture(axes, overlay(image, maps[number]))
    grid[0][0].set_title("seen", fontsize=7.5, color=theme.quiet)
    for axes, (name, correlation, _) in zip(grid[0][1:], steps, strict=True):
        text = (
            "as trained" if not name else f"random from\n{_lines(name)}\n" + f"ρ = {correlation:.2f}".replace("-", "−")
        )
        axes.set_title(text, fontsize=7, color=theme.quiet if not name else theme.ink)
    return drawing


def _picture(axes: Axes, pixels: NDArray[np.uint8] | NDArray[np.float64]) -> None:
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest" if pixels.shape[0] < 64 else "antialiased")


def _lines(name: str, width: int = 15) -> str:
    """A module's name in lines of a narrow column, broken behind its dots."""
    lines = [""]
    for part in [f"{one}." for one in name.split(".")]:
        if lines[-1] and len(lines[-1] + part.rstrip(".")) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines).rstrip(".")
