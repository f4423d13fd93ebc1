"""Small file helpers: nothing half-written is ever read."""

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
    """Make a rename or a new name in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``path`` whole or not at all: temporary name in the same folder, fsync, rename."""
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
    except OSError:  # a full disk is not filled with half a file
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
    """``dataclasses.asdict``, but the same for the same content when the class has grown since.

    The fields that the class names in ``FIRST`` (those of its first version) are always there, later ones only where
    they differ from their default. What is hashed, or compared with a stored copy, is made of this: a field that is
    added with a neutral default then changes no fingerprint. A class without ``FIRST`` gives all its fields.

    Raises:
        TypeError: a later field has no default.
    """
    first = getattr(record, "FIRST", None)
    found = {}
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        if first is not None and one.name not in first:
            if one.default is not dataclasses.MISSING:
                neutral = one.default
            elif one.default_factory is not dataclasses.MISSING:
                neutral = one.default_factory()
            else:
                raise TypeError(f"{type(record).__name__}.{one.name} is not in FIRST, so it needs a neutral default")
            if value == neutral:
                continue
        found[one.name] = _stable(value)
    return found


def _stable(value: Any) -> Any:
    """A field's value with the dataclasses in it as :func:`stable_dict` gives them."""
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
