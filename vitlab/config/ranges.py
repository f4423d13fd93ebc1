"""The range of a number, and the allowed words of a text, in the configuration, declared where their field is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

RANGE, WORDS = "range", "words"
"""Keys of a field's metadata."""

REQUIRED: Any = "???"
"""OmegaConf's marker of a required value."""


@dataclass(frozen=True)
class Range:
    """The finite numbers from ``low`` to ``high``; an open end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is finite and in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below


WHOLE = Range(-(2**31), 2**31 - 1)
"""Whole numbers whose field declares no range: what 32 bits hold."""


def number(
    default: Any = REQUIRED,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """A dataclass field of a number, or of a list of numbers, in a range."""
    metadata = {RANGE: Range(low, high, open_low, open_high)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def integer(default: Any = REQUIRED, low: int = 1) -> Any:
    """A dataclass field of a whole number from ``low`` to a thousand million."""
    return number(default, low, 10**9)


def positive(default: Any = REQUIRED) -> Any:
    """A dataclass field of a number above 0, to a million."""
    return number(default, 0, 1e6, open_low=True)


def share(default: Any = REQUIRED, *, open_low: bool = False, open_high: bool = False) -> Any:
    """A dataclass field of a number in [0, 1]; an open end is excluded."""
    return number(default, 0, 1, open_low=open_low, open_high=open_high)


def range_of(one: dataclasses.Field[Any]) -> Range | None:
    """What a field declares."""
    found: Range | None = one.metadata.get(RANGE)
    return found


def choice(*words: str, default: Any = REQUIRED) -> Any:
    """A dataclass field of a text that is one of ``words``."""
    return field(default=default, metadata={WORDS: words})


def words_of(one: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The words that a field declares; () for one that takes any."""
    found: tuple[str, ...] = one.metadata.get(WORDS, ())
    return found
