"""Exceptions that the command line reports without a stack trace: user mistakes, a requested stop, a full disk."""

from __future__ import annotations

import errno
import os
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


@contextmanager
def keys_below(key: str, usual: str = "model") -> Iterator[None]:
    """Name the keys of a network below ``key``, such as ``teacher.members.0``, in a UserError of the block, which was
    raised where those of any network are called ``usual``."""
    import re  # for a mistake only

    try:
        yield
    except UserError as error:
        keys = re.compile(rf"\b{usual}\.(?=(name|args|pretrained|checkpoint|mean|std)\b)")
        raise UserError(keys.sub(f"{key}.", error.what), keys.sub(f"{key}.", error.cure)) from error


class DamagedError(UserError, ValueError):
    """A file of vitlab's own that cannot be read as what it is; a ValueError for readers that have their own message.

    Attributes:
        path: of the file.
        why: in a few words.
    """

    def __init__(self, path: PathLike[str], why: str, cure: str = "") -> None:
        name = os.fspath(path)
        cure = cure or "Restore it from a copy, or move it away and give the command that wrote it again."
        super().__init__(f"{name} is damaged ({why}).", cure)
        self.path = path
        self.why = why


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
    import shutil

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


_PLACE = "Choose another place (output=FOLDER)"

SYSTEM_ERRORS: dict[int, str] = {
    errno.ENOTDIR: f"A file is where a folder should be: move it away. {_PLACE} if it is the output.",
    errno.EEXIST: f"A file is where a folder should be: move it away. {_PLACE} if it is the output.",
    errno.EISDIR: "A folder is where a file should be: move it away, or give another name.",
    errno.EACCES: f"Its owner and permissions (ls -ld) do not allow this. {_PLACE}, or change them.",
    errno.EPERM: f"Its owner and permissions (ls -ld) do not allow this. {_PLACE}, or change them.",
    errno.EROFS: f"The file system can only be read. {_PLACE}.",
    errno.ENAMETOOLONG: "Give shorter names: name=, output=.",
    errno.ELOOP: "Symbolic links lead in a circle there: remove one of them.",
    errno.EMFILE: "Raise the limit (ulimit -n 8192), or lower hardware.workers.",
    errno.ENFILE: "The system has no file handles left: stop other programs, or lower hardware.workers.",
    errno.EIO: "The disk or the network drive failed; look at the system's log. The same command continues.",
    errno.ESTALE: "The network drive was mounted anew; the same command continues.",
    errno.ENOTCONN: "The network drive is not connected; the same command continues.",
}
"""errno of a failure of the place or the system, and the cure. A missing file is not among them: it may be an error of
this program, whose stack trace is then needed."""


def system_error(error: BaseException) -> UserError | None:
    """The message for the user if ``error`` comes from the file system or the operating system, else None."""
    if (full := full_disk(error)) is not None:
        return full
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in SYSTEM_ERRORS:
            names = [os.fsdecode(name) for name in (cause.filename, cause.filename2) if isinstance(name, (str, bytes))]
            where = f"{' and '.join(names)}: " if names else ""
            return UserError(f"{where}{cause.strerror}.", SYSTEM_ERRORS[cause.errno])
        cause = cause.__cause__
    return None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most similar to ``word``; None if none is similar enough to suggest."""
    import difflib

    matches = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return matches[0] if matches else None


def list_names(words: Iterable[str], limit: int = 24) -> str:
    """``words`` separated by commas, cut after ``limit`` of them, with the number of the others."""
    names = list(words)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def printable(text: str) -> str:
    """One line of text for a terminal, in which a name of a file or class may stand: control characters, which could
    move the cursor or colour what follows, and bytes that are not UTF-8 are written as escapes such as ``\\x1b``."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
