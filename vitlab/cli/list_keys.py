"""``mode=list key=...``: the keys of a group with their types, values and descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitlab.compose.schema import Field, fields, find, format_value, suggest
from vitlab.errors import UserError
from vitlab.methods.base import find_method

LONGEST = 40
"""Maximum characters of a cell; a longer value is shown after the description."""

DEMO_METHOD = "tinyvit"
"""The method whose keys ``key=method`` shows if no other is given."""


def describe(key: str, words: list[str], wrapped: Callable[[str, str], str]) -> str:
    """The keys under ``key``, or at the top when it is empty.

    Args:
        key: dotted; a key without keys below it is shown alone.
        words: the other overrides. If there are any, the values are those of the composed configuration, else the
            defaults of the schema.
        wrapped: fills (indent, text) to the width of the page.

    Raises:
        UserError: there is no such key, or a mistake in ``words``.
    """
    method, tree = DEMO_METHOD, None
    if words:
        from vitlab.compose.load import load

        composed = load(words)
        method, tree = composed.config.method.name, composed.tree
    known = fields(find_method(method).Options)
    field = find(key, known) if key else None
    if key and field is None:
        near = suggest(key, known)
        top_level = ", ".join(one for one in known if "." not in one)
        raise UserError(
            f"There is no key '{key}'.", f"Did you mean key={near}?" if near else f"There are: {top_level}."
        )
    shown = _below(key, known) or [one for one in [field] if one]
    table = [("key", "kind", "default" if tree is None else "value", "meaning")]
    table += [(one.key, _kind(one, known), _value(one, tree), _meaning(one, known)) for one in shown]
    widths = [max(len(row[column]) for row in table if len(row[column]) <= LONGEST) for column in range(3)]
    rows = []
    for row in table:
        cells = [cell if len(cell) <= LONGEST else "(below)" for cell in row[:3]]
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        text = row[3] + (f" = {row[2]}" if len(row[2]) > LONGEST else "")
        rows.append(wrapped(f"  {start}", text or " ").rstrip() or f"  {start}".rstrip())
    title = f"{key}: {field.meaning}" if field and field.branch and field.meaning else ""
    if key.partition(".")[0] == "method" and len(shown) > 1:
        title = f"{key}: the keys of method={method}; for another method add method=NAME."
    foot = "" if tree is not None else _foot(key)
    return "\n".join([*([title, ""] if title else []), *rows, *(["", wrapped("", foot)] if foot else [])])


def _below(key: str, known: dict[str, Field]) -> list[Field]:
    """The keys under ``key`` and in groups below it, with a single line for a recipe."""
    if not key:
        return [one for one in known.values() if "." not in one.key]
    below = [one for one in known.values() if one.key.startswith(f"{key}.")]
    recipes = [one.key for one in below if f"{one.key}.duration" in known]
    below = [one for one in below if not any(one.key.startswith(f"{recipe}.") for recipe in recipes)]
    return [
        one
        for one in below
        if one.free or one.key in recipes or not any(x.key.startswith(f"{one.key}.") for x in below)
    ]


def _kind(field: Field, known: dict[str, Field]) -> str:
    if f"{field.key}.duration" in known:
        return "recipe"
    if field.free:
        return "keys"
    for article in ("a ", "an "):
        if field.kind.startswith(article):
            return field.kind.removeprefix(article).partition(" such as ")[0]
    return field.kind


def _value(field: Field, tree: dict[str, Any] | None) -> str:
    if field.branch and not field.free:
        return ""
    if tree is None:
        return field.default
    value: Any = tree
    for part in field.key.split("."):
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return format_value(value)


def _meaning(field: Field, known: dict[str, Field]) -> str:
    if f"{field.key}.duration" in known and "." in field.key and "recipe@" not in field.meaning:
        return f"{field.meaning}; choose with recipe@{field.key}=NAME"
    return field.meaning


def _foot(key: str) -> str:
    return (
        f"Values without a default are set in conf/. Composed values: mode=list key={key or 'recipe'} dataset=digits."
    )
