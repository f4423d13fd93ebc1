"""The range of a number in the configuration, declared where its field is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

RANGE = "range"
"""Key of a field's metadata."""

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


def range_of(one: dataclasses.Field[Any]) -> Range | None:
    """What a field declares."""
    found: Range | None = one.metadata.get(RANGE)
    return found
