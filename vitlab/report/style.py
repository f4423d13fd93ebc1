"""One look for every figure and the page: two themes, colours that a colour-blind reader can distinguish.

The series colours are those of Okabe and Ito, lightened for the dark theme. A model keeps its colour in every figure
and has the same one as a dot in the table: the primary model is blue, a teacher green, a baseline vermilion.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitlab.report.data import ModelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
WIDTH = 4.6  # inches of an ordinary figure


@dataclass(frozen=True)
class Theme:
    """The colours of a page; ``series`` in the order of :data:`SLOTS`."""

    name: str
    paper: str  # behind everything
    ink: str  # text
    quiet: str  # axes, notes
    faint: str  # grid lines
    series: tuple[str, ...]
    right: tuple[str, str]  # confusion matrix, diagonal: from none to all
    wrong: tuple[str, str]  # off the diagonal


SLOTS = ("blue", "green", "vermilion", "purple", "amber", "sky")

LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1d2329",
    quiet="#5f6b76",
    faint="#e6e9ec",
    series=("#0072b2", "#009e73", "#d55e00", "#b4568f", "#b58500", "#3a9bd8"),
    right=("#eef5fa", "#0072b2"),
    wrong=("#fbe9dd", "#d55e00"),
)
DARK = Theme(
    name="dark",
    paper="#191d21",
    ink="#e8ebee",
    quiet="#98a3ad",
    faint="#2b3238",
    series=("#56b4e9", "#2fc49a", "#f0925a", "#d79bc0", "#e5c64a", "#9ad1f5"),
    right=("#1f2b35", "#3f9fd8"),
    wrong=("#3a2a20", "#f0925a"),
)


def slots(rows: Sequence[ModelRow], primary: str) -> dict[str, int]:
    """The colour of every model, as an index into ``Theme.series``; further models share what is left in turn."""
    wanted = {"teacher": 1, "baseline": 2}
    taken: dict[str, int] = {primary: 0}
    free = [slot for slot in range(1, len(SLOTS)) if slot not in {wanted.get(row.role) for row in rows}]
    spare = 0
    for row in rows:
        if row.name in taken:
            continue
        slot = wanted.get(row.role)
        if slot is None or slot in taken.values():
            slot = free[spare % len(free)]
            spare += 1
        taken[row.name] = slot
    return taken


def blend(colour: str, under: str, share: float) -> str:
    """``share`` of one ``#rrggbb`` colour over another: what transparency would show, without what lies between."""
    pairs = [(int(colour[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Matplotlib with this theme's colours and our sizes; restores what was set before."""
    import matplotlib

    settings: dict[Any, object] = {  # matplotlib types its keys as one Literal of hundreds
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "text.color": theme.ink,
        "figure.titlesize": 9.5,
        "figure.titleweight": "bold",
        "axes.labelsize": 8.5,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.quiet,
        "axes.linewidth": 0.7,
        "axes.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.8,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "figure.facecolor": theme.paper,
        "figure.dpi": 100,
        "savefig.facecolor": theme.paper,
    }
    with matplotlib.rc_context(settings):
        yield


def figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, drawn without a display, its title at the left edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle(title, x=0.012, ha="left")
    return drawing, drawing.add_subplot()


def mark_synthetic(drawing: Figure, theme: Theme) -> None:
    """Mark the figure itself as one of synthetic data."""
    drawing.text(
        0.995, 0.995, "synthetic data", ha="right", va="top", fontsize=7.5, color=theme.wrong[1], weight="bold"
    )


def png(drawing: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure (no date, no version inside)."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
