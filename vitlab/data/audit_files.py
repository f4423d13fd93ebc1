"""Inspection of every file of a folder: whether it decodes, its format and size, and a hash of its picture; cached.

A large JPEG is decoded at down to an eighth of its size: all of its data are read, so that a truncated file is noticed,
and most of the arithmetic is saved. Pillow releases Python's lock, so threads are enough to use every core.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from vitlab.data.archives import ArchivedPaths
from vitlab.data.decode import NeedsPackageError, describe_error, register_format, require_regular, stored_depth, to_rgb

SIDE = 8
"""Pixels of the side of a thumbnail."""

DRAFT = 96
"""Pixels of the shorter side down to which a JPEG may be reduced while it is decoded (by 2, 4 or 8)."""

BLOCK = 512  # files between two commits of the cache: at most so many are inspected again after a kill


@dataclass(frozen=True)
class FileInfo:
    """Properties of one file. Of a file that does not decode only ``size``, ``changed`` and ``error`` are known."""

    size: int  # bytes
    changed: int  # time of the last change, ns
    error: str = ""  # why it cannot be read as an image; "": it can
    format: str = ""  # Pillow's name: JPEG, PNG, ...
    mode: str = ""  # as stored: RGB, L, RGBA, CMYK, I;16, P, ...
    width: int = 0  # as stored, before the EXIF rotation
    height: int = 0
    orientation: int = 1  # EXIF: 1 is upright
    frames: int = 1
    content: bytes = b""  # BLAKE2b-128 of the file
    gradient: bytes = b""  # 128 bits: is a pixel of the tiny grey image brighter than its right (lower) neighbour
    thumbnail: bytes = b""  # SIDE x SIDE x 3
    bits: int = 8  # per channel, as stored
    channels: int = 3  # as stored, alpha included


def inspect_file(path: str | Path, archived: ArchivedPaths | None = None, inside: str = "") -> FileInfo:
    """Read one file, or ``inside`` of the class archives. A failure is reported in ``error``; nothing is raised."""
    size = changed = 0
    try:
        if archived is not None and (stamp := archived.stamp(inside)) is not None:
            size, changed = stamp
            data = archived.read(inside)
        else:
            require_regular(path)
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())
                size, changed = stat.st_size, stat.st_mtime_ns
                data = file.read()
        if not data:
            return FileInfo(size, changed, "the file is empty")
        register_format(path)
        with Image.open(io.BytesIO(data)) as image:
            mode, (width, height) = image.mode, image.size
            bits, channels = stored_depth(image)  # first: the EXIF data of a PNG are behind its pixels
            orientation = int(image.getexif().get(0x0112, 1))
            if image.format == "TIFF" and orientation in range(5, 9):  # of these Pillow gives the upright size
                width, height = height, width
            image.draft(None, (DRAFT, DRAFT))  # after the size was read, which it changes; of a JPEG only
            rgb = to_rgb(image)
            rgb.load()
            format = image.format or ""
            gradient, thumbnail = _likeness(rgb)
            frames = _frames(image)  # last: counting moves to the others
    # No file has this size: it is read again, with the package or another dataset.max_pixels.
    except (NeedsPackageError, Image.DecompressionBombError) as error:
        return FileInfo(-1, changed, describe_error(error, path))
    # Pillow's decoders raise exceptions of any type on damaged data, SyntaxError and struct.error among them.
    except Exception as error:
        return FileInfo(size, changed, describe_error(error, path))
    content = hashlib.blake2b(data, digest_size=16).digest()
    seen = (format, mode, width, height, orientation, frames, content, gradient, thumbnail, bits, channels)
    return FileInfo(size, changed, "", *seen)


def _frames(image: Image.Image) -> int:
    """Frames of an animation or pages of a file; 2 where they cannot be counted: the first, which is read, is sound."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # of any kind, as in reading
        return 2


def _likeness(rgb: Image.Image) -> tuple[bytes, bytes]:
    """The gradient hash (dHash, rows and columns) and the thumbnail; nearly equal for copies of another size or
    quality."""
    thumbnail = rgb.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(rgb.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    # Two grey levels of slack: plain areas are plain, whatever a coder's noise there.
    rows, columns = grey[:SIDE, :-1] > grey[:SIDE, 1:] + 2, grey[:-1, :SIDE] > grey[1:, :SIDE] + 2
    return np.packbits(np.stack([rows, columns])).tobytes(), thumbnail.tobytes()


def stored_forms(one: FileInfo) -> list[str]:
    """Plain names of what distinguishes a file from upright RGB."""
    known = {
        "1": "black and white",
        "L": "grey",
        "LA": "grey, transparent",
        "RGBA": "transparent",
        "PA": "palette, transparent",
        "P": "palette",
        "CMYK": "CMYK",
        "YCbCr": "YCbCr",
        "LAB": "Lab",
    }
    forms = []
    if one.bits > 8:
        forms.append(f"{one.bits}-bit {'grey' if one.mode[0] in 'IL' else 'colour'}")
    elif one.mode != "RGB":
        forms.append(known.get(one.mode, one.mode))
    if 2 <= one.orientation <= 8:  # other values are damage, and Pillow turns nothing
        forms.append("turned by EXIF")
    if one.frames > 1:
        forms.append("several frames")
    return forms


def losses(one: FileInfo) -> list[str]:
    """What of a file does not reach the network, however large its input: see :func:`vitlab.data.decode.to_rgb`."""
    found = []
    if one.bits > 8:
        found.append(f"of {one.bits} bits per channel, the upper 8 are read")
    if one.channels > 3 and one.mode == "RGB":
        found.append(f"of {one.channels} channels, the first three are read")
    if one.mode in ("LA", "PA", "RGBA"):
        found.append("with an alpha channel, transparent parts are read as white")
    if one.mode == "CMYK":
        found.append("of CMYK, converted to RGB without its colour profile")
    if one.frames > 1:
        found.append("of several frames, the first is read")
    return found


def inspect_files(
    root: Path,
    paths: Sequence[str],
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    archived: ArchivedPaths | None = None,
) -> dict[str, FileInfo]:
    """Inspect ``paths`` below ``root``; files whose path, size and time are in the cache are not opened.

    Args:
        cache: an SQLite file, created if necessary; several processes may share it.
        workers: threads; None: one for each core of this process.
        progress: called with the number of files done.
        archived: those of the files that lie in class archives.
    """
    seen: dict[str, FileInfo] = {}
    if cache is None:
        for path, found in _look_at(root, paths, workers, archived):
            seen[path] = found
            if progress is not None:
                progress(len(seen))
        return seen
    cache.parent.mkdir(parents=True, exist_ok=True)
    # SQLite and not JSON: a row is added without rewriting the file, and several processes may share it.
    with closing(_open(cache)) as store:
        known = {bytes(row[0]): FileInfo(*row[1:]) for row in store.execute(_SELECT)}
        new = []
        for path in paths:
            one = known.get(_key(path))
            stamp = archived.stamp(path) if archived is not None else None
            if one is not None and _unchanged(root / path, one, stamp):
                seen[path] = one
            else:
                new.append(path)
        pending: list[tuple[object, ...]] = []
        try:
            for path, found in _look_at(root, new, workers, archived):
                seen[path] = found
                pending.append((_key(path), *astuple(found)))
                if len(pending) >= BLOCK:
                    _save(store, pending)
                if progress is not None:
                    progress(len(seen))
        finally:  # also when interrupted: the next audit continues from here
            _save(store, pending)
    return {path: seen[path] for path in paths}


def _look_at(
    root: Path, paths: Sequence[str], workers: int | None, archived: ArchivedPaths | None
) -> Iterator[tuple[str, FileInfo]]:
    """Results in the order of ``paths``; submitted block by block, so that an interrupt does not wait for all files."""
    threads = workers or available_cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="audit") as pool:
        try:
            for start in range(0, len(paths), BLOCK):
                block = paths[start : start + BLOCK]
                files = [root / path for path in block]
                yield from zip(block, pool.map(inspect_file, files, repeat(archived), block), strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_COLUMNS = ", ".join(field.name for field in fields(FileInfo))
_SELECT = f"SELECT path, {_COLUMNS} FROM look"
_VERSION = 2  # of the fields of FileInfo; a cache of another version is emptied


def _open(cache: Path) -> sqlite3.Connection:
    store = sqlite3.connect(cache, timeout=60)
    (version,) = store.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        store.execute("DROP TABLE IF EXISTS look")
        store.execute(f"CREATE TABLE look (path PRIMARY KEY, {_COLUMNS}) WITHOUT ROWID")
        store.execute(f"PRAGMA user_version = {_VERSION}")
        store.commit()
    return store


def _save(store: sqlite3.Connection, pending: list[tuple[object, ...]]) -> None:
    marks = ", ".join("?" * (len(fields(FileInfo)) + 1))
    store.executemany(f"INSERT OR REPLACE INTO look VALUES ({marks})", pending)
    store.commit()
    pending.clear()


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _unchanged(path: Path, known: FileInfo, stamp: tuple[int, int] | None) -> bool:
    if stamp is None:
        try:
            stat = os.stat(path)
        except OSError:
            return False
        stamp = stat.st_size, stat.st_mtime_ns
    return stamp == (known.size, known.changed)
