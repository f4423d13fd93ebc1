"""The two exceptions that the command line answers without a stack trace."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the person at the prompt can mend: what is wrong, and the cure (exit code 2)."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} {cure}".strip())
        self.what = what
        self.cure = cure


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: everything is saved and the same command continues (exit code 130)."""


def full_disk(error: BaseException) -> UserError | None:
    """The answer where ``error`` comes of a disk, a quota or a largest file size that is exhausted."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" ({cause.filename})" if cause.filename else ""
            return UserError(
                f"Writing failed{where}: {cause.strerror}.",
                "Make room; nothing half-written was kept, and the same command continues from what is saved.",
            )
        cause = cause.__cause__ or cause.__context__
    return None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most like ``word``, or None when nothing is near enough to suggest."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return found[0] if found else None
