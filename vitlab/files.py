"""Atomic writes, JSON, hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.errors import written_to


def fsync_dir(folder: Path) -> None:
    """fsync ``folder``, so that a rename or a new file in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``path`` completely or not at all: temporary file in the same folder, fsync, rename."""
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with written_to(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError:  # a full disk must not keep the partial file
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def stable_dict(record: Any) -> dict[str, Any]:
    """``dataclasses.asdict`` for hashes and comparisons with stored copies: a field added later does not change it.

    The fields listed in the class's ``FIRST`` (those of its first version) are always included, later ones only if
    they differ from their default, so that a field added with a neutral default changes no fingerprint. Fields that
    the class lists in ``FORMER`` are gone and keep their neutral values here. A class without ``FIRST`` gives all its
    fields.

    Raises:
        TypeError: a later field has no default.
    """
    first = getattr(record, "FIRST", None)
    values: dict[str, Any] = dict(getattr(record, "FORMER", {}))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if first is not None and field.name not in first:
            if field.default is not dataclasses.MISSING:
                neutral = field.default
            elif field.default_factory is not dataclasses.MISSING:
                neutral = field.default_factory()
            else:
                raise TypeError(f"{type(record).__name__}.{field.name} is not in FIRST, so it needs a neutral default")
            if value == neutral:
                continue
        values[field.name] = _stable(value)
    return values


def _stable(value: Any) -> Any:
    """A field's value, with :func:`stable_dict` applied to the dataclasses in it."""
    if dataclasses.is_dataclass(value):
        return stable_dict(value)
    if isinstance(value, Mapping):
        return {key: _stable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_stable(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(_stable(inner) for inner in value)
    return value


def sha256(data: bytes | Path) -> str:
    """Hex digest of bytes or of a file's content."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
