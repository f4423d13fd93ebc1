"""A later release in this process: one field more in a dataclass, as if its line had been added to the source."""

from __future__ import annotations

import dataclasses

import pytest

from vitlab.compose import schema


def grow(patch: pytest.MonkeyPatch, cls: type, name: str, hint: str, default: object) -> None:
    """Add the line ``name: hint = default`` to the dataclass ``cls``, until ``patch`` is undone.

    The class itself changes, not a subclass, so that everything which knows it sees the new field.
    """
    parts = {"__annotations__": {name: hint}, name: default, "__module__": cls.__module__}
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    grown: type = dataclasses.dataclass(frozen=frozen)(type(cls.__name__, (cls,), parts))
    for part in ("__init__", "__repr__", "__eq__", "__match_args__", "__dataclass_fields__"):
        patch.setattr(cls, part, grown.__dict__[part])
    patch.setattr(cls, name, default, raising=False)
    patch.setitem(cls.__annotations__, name, hint)
    forget()


def forget() -> None:
    """Clear what was remembered of a class, after it has changed in either direction."""
    for remembered in (schema.fields, schema.hints_of, schema.typed_tree):
        remembered.cache_clear()
