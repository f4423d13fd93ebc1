"""Atomic writes, JSON, hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitlab.errors import DamagedError, UserError, written_to

Value = TypeVar("Value")


def fsync_dir(folder: Path) -> None:
    """fsync ``folder``, so that a rename or a new file in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(folder: Path, key: str) -> None:
    """Refuse, before the work, a folder into which nothing could be written; nothing is made.

    Args:
        key: that names it, for the message.

    Raises:
        UserError: a part of the path is a file, too long, or not to be written by this user.
    """
    place = folder.absolute()
    for part in place.parts:
        if len(os.fsencode(part)) > _NAME_MAX:
            raise UserError(f"'{part[:40]}...' is too long for the name of a file or folder.", f"Shorten {key}.")
    there = place
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "is a file, not a folder" if there.exists() else "is a symbolic link to what does not exist"
        raise UserError(f"{there} {what}, so nothing can be written into {folder}.", f"Move it away, or change {key}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} is not writable for this user, so {folder} cannot be.", f"Change {key}.")


def check_file(path: Path, key: str) -> None:
    """The same for a file that will be written; an existing one is replaced.

    Raises:
        UserError: as :func:`check_folder`, or a folder of this name.
    """
    check_folder(path.parent, key)
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder, not a file.", f"Give a name in it: {key}={path / 'NAME'}.")
    if len(os.fsencode(path.name)) > _NAME_MAX:
        raise UserError(f"'{path.name[:40]}...' is too long for the name of a file.", f"Shorten {key}.")


_NAME_MAX = 255 - len(".") - len(".4194304.tmp")
"""Bytes of a name with the additions of :func:`atomic_write`, on the usual file systems."""


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``path`` completely or not at all: temporary file in the same folder, fsync, rename.

    Text is written as UTF-8; in names of files, bytes that are none (surrogateescape) as they are.
    """
    data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
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


def readable_json(value: Any, indent: int | None = None) -> str:
    """JSON with names as people write them; only bytes of file names that are not UTF-8 become escapes."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def read_json(path: Path, kind: type | None = None) -> Any:
    """Read a JSON file.

    Args:
        kind: type of the value, dict or list; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: not a JSON file, or a value of another type.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise DamagedError(path, "a folder of that name is in its place") from None
    except RecursionError:
        raise DamagedError(path, "nested too deeply") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise DamagedError(path, str(error)) from None
    if kind is not None and not isinstance(value, kind):
        raise DamagedError(path, f"it holds {_KINDS.get(type(value), 'a number or text')}")
    return value


def read_as(path: Path, read: Callable[[Any], Value], cure: str, kind: type = dict) -> Value:
    """What ``read`` makes of the JSON in ``path``: a file without a key, or with a value of another type, is damaged.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: with this ``cure``.
    """
    try:
        return read(read_json(path, kind))
    except DamagedError as error:
        raise DamagedError(path, error.why, cure) from None
    except KeyError as error:
        raise DamagedError(path, f"it lacks {error}", cure) from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise DamagedError(path, f"{type(error).__name__}: {error}", cure) from None


_KINDS: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "null"}


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
