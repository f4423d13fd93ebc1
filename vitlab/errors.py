"""Exceptions that the command line reports without a stack trace: user mistakes, a requested stop, a full disk."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike


class UserError(Exception):
    """A mistake that the user can fix: what is wrong, and the cure (exit code 2)."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} {cure}".strip())
        self.what = what
        self.cure = cure


OVERFLOW = "Its weights overflow: use another model, or train it again with a lower recipe.lr."
"""The cure for a model whose logits are not finite although its weights are."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP: everything is saved, and the same command continues (exit code 130)."""


class StoppedAtOnce(BaseException):
    """A second signal: nothing more is saved (exit code 130).

    Not an Exception, so that no handler of errors on the way keeps it; and not a KeyboardInterrupt, at which Lightning
    ends the process with exit code 1.
    """


DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""errno of a write that exceeds the disk, a quota or the largest file size."""


class DiskFullError(OSError):
    """A failed write, with its file and its size.

    Attributes:
        size: of the data in bytes; None: unknown.
    """

    def __init__(self, cause: OSError, path: str, size: int | None) -> None:
        super().__init__(cause.errno, cause.strerror, path)
        self.size = size


@contextmanager
def written_to(path: PathLike[str], size: int | None = None) -> Iterator[None]:
    """Add ``path`` and the size of the data in bytes to an error of a full disk inside the block.

    Raises:
        DiskFullError: instead of the operating system's error, which names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(error, os.fspath(path), size) from error


def full_disk(error: BaseException) -> UserError | None:
    """The message for the user if ``error`` was caused by one of :data:`DISK_FULL_ERRORS`, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRORS:
            where, sizes = (f" {cause.filename}" if cause.filename else ""), []
            if isinstance(cause, DiskFullError) and cause.size is not None:
                sizes.append(f"{cause.size / 1e6:,.3f} MB to write")
            if cause.filename and cause.errno == errno.ENOSPC:
                with suppress(OSError):
                    free = shutil.disk_usage(os.path.dirname(os.path.abspath(cause.filename))).free
                    sizes.append(f"{free / 1e6:,.3f} MB free on its disk")
            details = f" ({', '.join(sizes)})" if sizes else ""
            return UserError(
                f"Writing{where} failed: {cause.strerror}{details}.",
                "Free some space; no partial file was kept, and the same command continues from what is saved.",
            )
        cause = cause.__cause__ or cause.__context__
    return None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most similar to ``word``; None if none is similar enough to suggest."""
    matches = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return matches[0] if matches else None


def list_names(words: Iterable[str], limit: int = 24) -> str:
    """``words`` separated by commas, cut after ``limit`` of them, with the number of the others."""
    names = list(words)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
