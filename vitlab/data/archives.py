"""Class archives: pictures read out of one uncompressed tar per class, as ImageNet-22k is downloaded (n00004475.tar).

Nothing is unpacked. The headers of every archive are read once; where each picture lies is kept in ``.vitlab-index``
beside the archives (in memory where that is read-only), with size and time of the archive, and an archive that changes
is read again. A picture is then one open and one read, in any process. Its key is the path that it would have if every
archive were unpacked into a folder of its name: splits, stored labels and fingerprints are those of such folders.

Names inside an archive are keys, never paths that are opened or written.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tarfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitlab.data.decode import EXTENSIONS, Files, read_rgb, require_regular
from vitlab.data.sources import Labels, Strings
from vitlab.errors import UserError
from vitlab.files import atomic_write

SUFFIX = ".tar"
INDEX = ".vitlab-index"
"""Folder of the index, beside the archives."""

VERSION = 1
_WNID = re.compile(r"n\d{8}")

SAVE_EVERY = 60.0  # seconds between two writes of the index while archives are read: what a kill can lose
MANY = 200  # archives: from here on a line announces that reading them takes a while

Numbers = npt.NDArray[np.int64]


@dataclass
class Archive:
    """One archive, and the pictures in it."""

    size: int  # bytes of the file
    changed: int  # time of its last change, ns
    names: list[str] = field(default_factory=list)  # of the pictures inside, sorted
    offsets: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))  # of their bytes in the file
    sizes: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: dict[str, list[str]] = field(default_factory=dict)  # other members, by kind


def read_archive(path: Path) -> Archive:
    """List the pictures of a tar file from its headers.

    Links, devices and sparse files are passed over and noted, as files of other kinds and hidden ones are; of two
    members of one name the later counts, as for tar itself.

    Raises:
        UserError: no plain tar file, one that is cut short or holds something after its end, one that holds archives
            again, or a name that leads out of the archive.
    """
    again = "Fetch it again; a compressed archive must be decompressed first (gunzip)."
    found: dict[str, tuple[int, int]] = {}
    inner = ""
    try:
        require_regular(path)
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            made = Archive(stat.st_size, stat.st_mtime_ns)
            with tarfile.open(fileobj=file, mode="r:") as members:
                for member in members:
                    if member.isdir():
                        continue
                    name = _inside(path, member.name)
                    kind = _kind(name) if member.isreg() and not member.issparse() else "link or special file"
                    inner = inner or (name if kind == SUFFIX else "")
                    if kind in EXTENSIONS:
                        if name in found:
                            made.skipped.setdefault("earlier file of the same name", []).append(name)
                        found[name] = member.offset_data, member.size
                    else:
                        made.skipped.setdefault(kind, []).append(name)
                end = members.offset
            _check_end(path, file, end, stat.st_size, again)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a tar file: {error}.", again) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.", "Check the file.") from None
    if inner and not found:
        raise UserError(
            f"{path} holds archives ({inner}, ...) and no picture.",
            "Unpack it once (tar -xf): the archives of the classes in it are read as they are.",
        )
    made.names = sorted(found)
    spans = np.array([found[name] for name in made.names], np.int64).reshape(-1, 2)
    made.offsets, made.sizes = spans[:, 0], spans[:, 1]
    return made


def _inside(path: Path, name: str) -> str:
    """The name of a member below the folder that its archive would be unpacked into."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\n" in name or "\0" in name:
        raise UserError(f"{path} holds a file named {name!r}.", "That is no archive of pictures: fetch it again.")
    parts = tuple(part for part in parts if part != ".")
    # Some archives hold the folder of the class, others its pictures alone.
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == path.name.removesuffix(SUFFIX) else parts)


def _kind(name: str) -> str:
    if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
        return "hidden"
    return PurePosixPath(name).suffix.lower() or "no suffix"


def _check_end(path: Path, file: io.BufferedReader, end: int, size: int, cure: str) -> None:
    """A tar file ends with a block of zeros; without it the file may be cut short exactly between two pictures."""
    file.seek(min(end, size))
    if not (rest := file.read(1 << 20)):
        raise UserError(f"{path} is cut short: the mark of its end is missing.", cure)
    while rest:
        if rest.strip(b"\0"):
            raise UserError(f"{path} is damaged: what follows byte {end:,} is no file and not its end.", cure)
        rest = file.read(1 << 20)


class ArchiveIndex:
    """Where the pictures of all class archives in ``folder`` lie.

    Args:
        root: of the data set; keys are relative to it.
        paths: of the archives, relative to ``folder``.

    Attributes:
        found: name of a class to its archive, in the order of ``paths``.
    """

    def __init__(self, root: Path, folder: Path, paths: Sequence[str]) -> None:
        self.files = [str(folder / path) for path in paths]
        self.prefixes = [_relative(root, folder / path).removesuffix(SUFFIX) for path in paths]
        self.found = _indexed(folder, paths)

    def rows(self) -> tuple[Numbers, Numbers, Numbers]:
        """Archive, offset and size, each ``[N]``, of all pictures, archive by archive."""
        every = list(self.found.values())
        number = np.repeat(np.arange(len(every)), [len(one.names) for one in every]).astype(np.int64)
        offsets, sizes = _joined([one.offsets for one in every]), _joined([one.sizes for one in every])
        return number, offsets, sizes

    def stamps(self) -> Numbers:
        """``[archives, 2]`` size and time of each archive as it was indexed."""
        return np.array([[one.size, one.changed] for one in self.found.values()], dtype=np.int64).reshape(-1, 2)


def _joined(parts: Sequence[Numbers]) -> Numbers:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _relative(root: Path, path: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _indexed(folder: Path, paths: Sequence[str]) -> dict[str, Archive]:
    """The content of every archive: from the index where that is not older, else read and added to it."""
    cache = folder / INDEX / "archives.npz"
    known = _load(cache)
    result: dict[str, Archive] = {}
    fresh, saved = 0, time.monotonic()
    try:
        for path in paths:
            stat = os.stat(folder / path)
            old = known.get(path)
            if old is not None and (old.size, old.changed) == (stat.st_size, stat.st_mtime_ns):
                result[path] = old
                continue
            if fresh == 0 and len(paths) - len(result) >= MANY:
                logging.getLogger(__name__).warning(
                    "data     %s: the headers of up to %s class archives are read, once", folder, f"{len(paths):,}"
                )
            result[path] = read_archive(folder / path)
            fresh += 1
            if time.monotonic() - saved > SAVE_EVERY:
                _save(cache, known | result)
                saved = time.monotonic()
    finally:  # also when interrupted: the next command continues from here
        if fresh:
            _save(cache, known | result)
    return result


def _save(path: Path, archives: dict[str, Archive]) -> None:
    def packed(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
        return np.frombuffer("\n".join(texts).encode("utf-8", "surrogateescape"), np.uint8)

    every = list(archives.values())
    skipped = [f"{number}\t{kind}\t{name}" for number, one in enumerate(every) for kind in one.skipped
               for name in one.skipped[kind]]  # fmt: skip
    buffer = io.BytesIO()
    np.savez(
        buffer,
        version=np.array(VERSION),
        paths=packed(list(archives)),
        stamps=np.array([[one.size, one.changed, len(one.names)] for one in every], np.int64).reshape(-1, 3),
        names=packed([name for one in every for name in one.names]),
        offsets=_joined([one.offsets for one in every]),
        sizes=_joined([one.sizes for one in every]),
        skipped=packed(skipped),
    )
    content = buffer.getvalue()
    try:
        atomic_write(path, hashlib.sha256(content).digest() + content)
    except OSError:  # a read-only folder: read again next time
        return


def _load(path: Path) -> dict[str, Archive]:
    """The archives of the index; none where there is no index, or a damaged one, or one of another version."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return {}
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as stored:
            if int(stored["version"]) != VERSION:
                return {}
            texts = {
                key: stored[key].tobytes().decode("utf-8", "surrogateescape").split("\n") if stored[key].size else []
                for key in ("paths", "names", "skipped")
            }
            stamps, offsets, sizes = stored["stamps"].tolist(), stored["offsets"], stored["sizes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    archives, start = {}, 0
    for name, (size, changed, count) in zip(texts["paths"], stamps, strict=True):
        part = slice(start, start + count)
        archives[name] = Archive(size, changed, texts["names"][part], offsets[part], sizes[part])
        start += count
    every = list(archives.values())
    for line in texts["skipped"]:
        number, kind, name = line.split("\t", 2)
        every[int(number)].skipped.setdefault(kind, []).append(name)
    return archives


@dataclass(frozen=True)
class Places:
    """Where pictures lie, in arrays that loader processes share.

    ``files``: the archives. ``stamps``: [archives, 2] their sizes and times. ``archive``, ``offset``, ``size``: [N] of
    each picture.
    """

    files: Strings
    stamps: Numbers
    archive: Numbers
    offset: Numbers
    size: Numbers

    @classmethod
    def of(cls, indices: Sequence[ArchiveIndex]) -> Places:
        """All pictures of several folders of archives, in order."""
        first = np.cumsum([0, *(len(one.files) for one in indices)])
        rows = [one.rows() for one in indices]
        archive, offset, size = (_joined([row[part] for row in rows]) for part in range(3))
        archive = archive + np.repeat(first[:-1], [len(row[0]) for row in rows])
        stamps = np.concatenate([np.zeros((0, 2), np.int64), *(one.stamps() for one in indices)])
        return cls(Strings(name for one in indices for name in one.files), stamps, archive, offset, size)

    def take(self, numbers: Sequence[int]) -> Places:
        """Those of the pictures ``numbers``; -1 is a picture in no archive, whose ``archive`` is -1."""
        at = np.asarray(numbers, dtype=np.int64)
        return Places(self.files, self.stamps, np.where(at < 0, -1, self.archive[at]), self.offset[at], self.size[at])

    def time_of(self, number: int) -> int:
        """Time of the last change of a picture's archive, ns."""
        return int(self.stamps[self.archive[number], 1])

    def read(self, number: int) -> bytes:
        """The file of a picture.

        Raises:
            UserError: the archive is gone, or has changed since it was indexed.
        """
        which = int(self.archive[number])
        path = self.files[which]
        try:
            with open(path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                if (stat.st_size, stat.st_mtime_ns) != tuple(self.stamps[which].tolist()):
                    raise UserError(f"{path} has changed since its pictures were listed.", "Start the command again.")
                content = os.pread(file.fileno(), int(self.size[number]), int(self.offset[number]))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.", "Put it back.") from None
        if len(content) != self.size[number]:
            raise UserError(f"{path} is cut short.", "Fetch it again.")
        return content


class ArchivedFiles(Files):
    """A source of pictures in class archives, or beside them in class folders; keys, labels and order are those that it
    would have if all archives were unpacked."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | Labels,
        classes: list[str],
        split_name: str,
        places: Places,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(root, paths, labels, classes, split_name, groups=groups)
        self.places = places

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Decode image ``index``.

        Raises:
            UserError: naming archive and picture, if it does not decode; if the archive is gone or changed.
        """
        if self.places.archive[index] < 0:
            return super().__getitem__(index)
        content = self.places.read(index)
        return read_rgb(self.root / self.keys[index], self.upright, content), int(self.labels[index])


def find_archives(folders: Sequence[str], files: Sequence[str]) -> list[str]:
    """Which of the ``files`` of a folder are class archives, sorted: all tar files where it has no class folders;
    beside ``folders`` only those named by a WordNet id, of classes that are not unpacked: any other may be anything."""
    tars = [name for name in files if name.endswith(SUFFIX) and not name.startswith(".")]
    tars.sort(key=lambda name: name.removesuffix(SUFFIX))  # as the folders of the classes are sorted
    if not folders:
        return tars
    there = set(folders)
    stems = [name.removesuffix(SUFFIX) for name in tars]
    return [name for name, stem in zip(tars, stems, strict=True) if _WNID.fullmatch(stem) and stem not in there]


class ArchivedPaths:
    """Pictures in archives by the path, relative to the root, that they would have unpacked.

    Args:
        numbers: path to number in ``places``.
    """

    def __init__(self, places: Places, numbers: dict[str, int]) -> None:
        self.places, self.numbers = places, numbers

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Bytes of a picture and time of its archive, ns; None for one in no archive."""
        number = self.numbers.get(path)
        return None if number is None else (int(self.places.size[number]), self.places.time_of(number))

    def read(self, path: str) -> bytes:
        """See :meth:`Places.read`."""
        return self.places.read(self.numbers[path])
