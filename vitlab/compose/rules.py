"""Rules for single values: one of a list, a range, a number of entries. Each names the key, its place and the cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from vitlab.errors import UserError, nearest

Where = Callable[[str], str]
"""From a key to the words that say where its value stands: ``key`` itself, or file and line."""


def one_of(key: str, value: str, allowed: Iterable[str], where: Where) -> None:
    if value not in allowed:
        near = next((one for one in allowed if value and one.startswith(value)), None) or nearest(value, allowed)
        cure = f"Did you mean {near}? " if near else ""
        raise UserError(f"{where(key)}: '{value}' is none of {', '.join(allowed)}.", cure)


def at_least(key: str, value: int, least: int, where: Where) -> None:
    if value < least:
        raise UserError(f"{where(key)}: {value} is too small.", f"{key} is a whole number from {least} on.")


def within(
    key: str, value: float, low: float, high: float, where: Where, open_low: bool = False, open_high: bool = False
) -> None:
    if not math.isfinite(value):
        raise UserError(f"{where(key)}: {value} is no finite number.", "Give one that is.")
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:
        least = f"larger than {low}" if open_low else f"at least {low}"
        most = "" if high == math.inf else f" and less than {high}" if open_high else f" and at most {high}"
        raise UserError(f"{where(key)}: {value} is out of range.", f"{key} is a number {least}{most}.")


def has_length(key: str, value: list[float], length: int, where: Where) -> None:
    if len(value) != length:
        raise UserError(f"{where(key)}: {value} does not fit.", f"{key} takes {length} numbers.")
