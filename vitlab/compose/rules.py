"""Checks of a single value: choice, lower bound, range, length. Each raises a UserError with key, place and cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from vitlab.errors import UserError, nearest

Where = Callable[[str], str]
"""Function from a key to the place of its value: the override, or file and line."""


def one_of(key: str, value: str, allowed: Iterable[str], where: Where) -> None:
    """Refuse a ``value`` that is not one of ``allowed``."""
    if value not in allowed:
        near = next((one for one in allowed if value and one.startswith(value)), None) or nearest(value, allowed)
        cure = f"Did you mean {near}? " if near else ""
        raise UserError(f"{where(key)}: '{value}' is none of {', '.join(allowed)}.", cure)


def at_least(key: str, value: int, least: int, where: Where) -> None:
    """Refuse an integer below ``least``."""
    if value < least:
        raise UserError(f"{where(key)}: {value} is too small.", f"{key} is a whole number from {least} on.")


def within(
    key: str, value: float, low: float, high: float, where: Where, open_low: bool = False, open_high: bool = False
) -> None:
    """Refuse a number outside of [low, high]; an open end is excluded."""
    if not math.isfinite(value):
        raise UserError(f"{where(key)}: {value} is not a finite number.", "Give a finite one.")
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:
        least = f"larger than {low}" if open_low else f"at least {low}"
        most = "" if high == math.inf else f" and less than {high}" if open_high else f" and at most {high}"
        raise UserError(f"{where(key)}: {value} is out of range.", f"{key} is a number {least}{most}.")


def has_length(key: str, value: list[float], length: int, where: Where) -> None:
    """Refuse a list of another length."""
    if len(value) != length:
        raise UserError(f"{where(key)}: {value} has the wrong length.", f"{key} takes {length} numbers.")
