"""What a page is arranged from: the headline metric, tiles, figures still to be drawn, figures as they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitlab.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Headline:
    """The one number that a task's models are compared by: in validation, checkpoints, sweeps, tables and figures.

    It is a share in [0, 1], shown in percent.
    """

    key: str  # in the metrics of an evaluation; ``val_<key>`` in the record of a training
    name: str  # within a sentence: top-1
    title: str  # where a figure or a tile begins: Top-1 accuracy
    higher: bool = True  # whether more is better


@dataclass(frozen=True)
class Shown:
    """A metric in a table of text: its key, the heading and how a value is written."""

    key: str
    title: str
    text: Callable[[float], str]
    unit: float = 1.0  # values are multiplied by it before they are averaged and written
    digits: int = 3


@dataclass
class Tile:
    """One headline number."""

    label: str
    value: str
    unit: str
    detail: str


@dataclass
class Picture:
    """A figure as it stands on the page."""

    section: str  # compare | curves | reliability | robust | shifted | confusion | cost | mistakes | ...
    file: str  # relative to the report's folder
    title: str
    caption: str
    light: str  # data: URI
    dark: str
    width: int  # CSS pixels
    height: int


@dataclass
class Drawing:
    """A figure still to be drawn: where it stands, what it is called, and how it is drawn in a theme."""

    section: str
    name: str  # file name without .png
    title: str
    caption: str
    draw: Callable[[Theme], Figure | None]
    page: bool = True  # False: for the Markdown only, the page shows the same without a figure
