"""Checks of a single value: choice, range, length, elements. Each raises a UserError with key, place and cure."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

from vitlab.compose.schema import describe_hint, hints_of
from vitlab.config.ranges import WHOLE, Range, range_of, words_of
from vitlab.errors import UserError, nearest

Where = Callable[[str], str]
"""Function from a key to the place of its value: the override, or file and line."""


def one_of(key: str, value: str, allowed: Iterable[str], where: Where) -> None:
    """Refuse a ``value`` that is not one of ``allowed``."""
    if value not in allowed:
        near = next((one for one in allowed if value and one.startswith(value)), None) or nearest(value, allowed)
        cure = f"Did you mean {near}? " if near else ""
        raise UserError(f"{where(key)}: '{value}' is none of {', '.join(allowed)}.", cure)


def within(
    key: str, value: float, low: float, high: float, where: Where, open_low: bool = False, open_high: bool = False
) -> None:
    """Refuse a number outside of [low, high]; an open end is excluded."""
    if not math.isfinite(value):
        raise UserError(f"{where(key)}: {value} is not a finite number.", "Give a finite one.")
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:
        least = f"larger than {low:.10g}" if open_low else f"at least {low:.10g}"
        most = "" if high == math.inf else f" and {'less than' if open_high else 'at most'} {high:.10g}"
        raise UserError(f"{where(key)}: {value} is out of range.", f"{key} is a number {least}{most}.")


def has_length(key: str, value: list[float], length: int, where: Where) -> None:
    """Refuse a list of another length."""
    if len(value) != length:
        raise UserError(f"{where(key)}: {value} has the wrong length.", f"{key} takes {length} numbers.")


DROP_RATE = re.compile(r"drop(_\w+)?_rate|drop_path")
"""Arguments of timm's networks that are probabilities of dropping something; 1 would drop everything."""


def check_values(value: Any, key: str, where: Where, declared: Range | None = None) -> None:
    """Refuse the first value in ``value``, which may be a tree of dataclasses, lists and dicts, that its field's
    declaration excludes: a number that is not finite or not in its range (:func:`vitlab.config.ranges.number`), a text
    that is none of its words (:func:`vitlab.config.ranges.choice`), a list within a list of single values.

    A number whose field declares no range, and the value of a free key such as an argument of a network, is finite.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(value.__class__)
        for one in dataclasses.fields(value):
            inner, at = getattr(value, one.name), f"{key}.{one.name}".lstrip(".")
            if inner is not None and (words := words_of(one)):
                one_of(at, inner, words, where)
            _check_elements(inner, hints[one.name], at, where)
            check_values(inner, at, where, range_of(one))
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            # The numbers of a list have the place of the list; its groups of keys have their own.
            inner = f"{key}.{index}" if dataclasses.is_dataclass(one) else key
            check_values(one, inner, where, declared)
    elif isinstance(value, dict):
        for name, one in value.items():
            rate = DROP_RATE.fullmatch(str(name)) is not None
            check_values(one, f"{key}.{name}", where, Range(0, 1, open_high=True) if rate else None)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _in_range(key, value, declared, where)


def _check_elements(value: Any, hint: Any, key: str, where: Where) -> None:
    """Refuse lists and dicts among the elements of a list of single values, which OmegaConf lets pass."""
    if typing.get_origin(hint) is not list or not isinstance(value, list):
        return
    (inner,) = typing.get_args(hint)
    for one in value:
        if inner in (str, int, float, bool) and isinstance(one, (list, dict)):
            raise UserError(f"{where(key)}: {one} is no element of it.", f"{key} takes {describe_hint(hint)}.")
        _check_elements(one, inner, key, where)


def _in_range(key: str, value: float, declared: Range | None, where: Where) -> None:
    if isinstance(value, int):
        allowed = declared or WHOLE
        if not allowed.holds(value) and not (allowed.open_low or allowed.open_high):
            size = "small" if value < allowed.low else "large"
            most = f"from {allowed.low:.0f} to {allowed.high:.0f}"
            raise UserError(f"{where(key)}: {value} is too {size}.", f"{key} is a whole number {most}.")
    allowed = declared or Range()
    within(key, value, allowed.low, allowed.high, where, allowed.open_low, allowed.open_high)
