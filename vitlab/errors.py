"""What the command line answers without a stack trace: mistakes, a stop that was asked for, a full disk."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike


class UserError(Exception):
    """A mistake that the person at the prompt can mend: what is wrong, and the cure (exit code 2)."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} {cure}".strip())
        self.what = what
        self.cure = cure


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: everything is saved and the same command continues (exit code 130)."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota or a largest file size is exhausted."""


class NoRoom(OSError):
    """What the operating system said of a write, with the file that it was meant for and the bytes of it."""

    def __init__(self, cause: OSError, path: str, wanted: int | None) -> None:
        super().__init__(cause.errno, cause.strerror, path)
        self.wanted = wanted


@contextmanager
def written_to(path: PathLike[str], wanted: int | None = None) -> Iterator[None]:
    """A write inside the block that finds no room says to which file it was, and how many bytes were to go there.

    Raises:
        NoRoom: in place of the operating system's error, which names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, NoRoom):
            raise
        raise NoRoom(error, os.fspath(path), wanted) from error


def full_disk(error: BaseException) -> UserError | None:
    """The answer where ``error`` comes of a disk, a quota or a largest file size that is exhausted."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            where, room = (f" {cause.filename}" if cause.filename else ""), []
            if isinstance(cause, NoRoom) and cause.wanted is not None:
                room.append(f"{cause.wanted / 1e6:,.3f} MB to write")
            if cause.filename and cause.errno == errno.ENOSPC:
                with suppress(OSError):
                    free = shutil.disk_usage(os.path.dirname(os.path.abspath(cause.filename))).free
                    room.append(f"{free / 1e6:,.3f} MB free on its disk")
            told = f" ({', '.join(room)})" if room else ""
            return UserError(
                f"Writing{where} failed: {cause.strerror}{told}.",
                "Make room; nothing half-written was kept, and the same command continues from what is saved.",
            )
        cause = cause.__cause__ or cause.__context__
    return None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most like ``word``, or None when nothing is near enough to suggest."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return found[0] if found else None


def list_names(words: Iterable[str], limit: int = 24) -> str:
    """Comma-separated, cut after ``limit`` words, with the number of the others."""
    every = list(words)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
