"""Tables and sentences for the prompt: what a mode prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from vitlab.errors import printable
from vitlab.report.compare import percent

CHANCE = 0.05
"""McNemar p-values from here on are called chance."""


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under a header, the first column to the left, the others to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]  # names of classes and files
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(
        [lines[0].rstrip(), "─" * (sum(widths) + 2 * (len(widths) - 1)), *(one.rstrip() for one in lines[1:])]
    )


def p_value(value: float) -> str:
    """Two significant digits, ``< 0.0001`` below that."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def p_equation(value: float) -> str:
    """``p = 0.031``, or ``p < 0.0001``."""
    return f"p {'' if value < 1e-4 else '= '}{p_value(value)}"


def span(interval: Sequence[float], digits: int = 1) -> str:
    """An interval of shares in percent, ``94.2–98.1``."""
    return "–".join(percent(end, digits) for end in interval)
