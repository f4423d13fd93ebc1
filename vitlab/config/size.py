"""Input size of a network in pixels: the side of a square, or height and width."""

from __future__ import annotations

from collections.abc import Sequence

Size = int | Sequence[int]
"""The side of a square, or (height, width); a list if it was read from YAML or JSON."""

MOST_PIXELS = 1 << 15
"""The longest side of an input: of a typed size, and of a model.json of someone else."""


def hw(size: Size) -> tuple[int, int]:
    """(height, width).

    Raises:
        ValueError: neither one nor two integers, or one below 1.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise ValueError(f"a size is a side, or [height, width], in pixels from 1; not {size!r}")
    return sides[0], sides[1]


def plain_size(size: Size) -> int | list[int]:
    """``size`` for YAML and JSON: the side if height and width are equal, else [height, width]."""
    height, width = hw(size)
    return height if height == width else [height, width]


def same_size(one: Size, other: Size) -> bool:
    """Whether height and width are equal."""
    return hw(one) == hw(other)


def size_text(size: Size) -> str:
    """``224`` for a square, else ``256 × 448`` (height × width)."""
    height, width = hw(size)
    return str(height) if height == width else f"{height} × {width}"


def sides_text(size: Size) -> str:
    """``224 × 224``: height × width, also for a square."""
    height, width = hw(size)
    return f"{height} × {width}"
