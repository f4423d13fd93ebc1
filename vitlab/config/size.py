"""The size of what a network sees: one side of a square, or height and width, in pixels."""

from __future__ import annotations

from collections.abc import Sequence

Size = int | Sequence[int]
"""The side of a square, or (height, width); a list where it came from YAML or JSON."""


def hw(size: Size) -> tuple[int, int]:
    """(height, width).

    Raises:
        ValueError: neither an integer nor two of them, or one is below 1.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise ValueError(f"a size is a side, or [height, width], in pixels from 1; not {size!r}")
    return sides[0], sides[1]


def plain_size(size: Size) -> int | list[int]:
    """``size`` as files hold it: the side where height and width are equal, else [height, width]."""
    height, width = hw(size)
    return height if height == width else [height, width]


def same_size(one: Size, other: Size) -> bool:
    """Whether both are the same height and width, however they are written."""
    return hw(one) == hw(other)


def size_text(size: Size) -> str:
    """For a line of text: ``224`` for a square, ``256 × 448`` (height × width) for anything else."""
    height, width = hw(size)
    return str(height) if height == width else f"{height} × {width}"


def sides_text(size: Size) -> str:
    """Height × width for a line of text, of a square too: ``224 × 224``."""
    height, width = hw(size)
    return f"{height} × {width}"
