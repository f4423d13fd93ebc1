"""File locks (flock) that end with the process that acquired them, whatever children it has forked."""

from __future__ import annotations

import fcntl
import os

_HELD: set[int] = set()
"""Descriptors of the locks of this process. A forked child (a loader process) inherits the descriptor and would hold
the lock after its parent is killed, so the child closes it right after the fork."""


def _close_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


def acquire(descriptor: int) -> None:
    """Acquire an exclusive lock on an open file, without waiting.

    Raises:
        BlockingIOError: another process, or another descriptor of this one, holds the lock.
        OSError: the file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _HELD.add(descriptor)


def release(descriptor: int) -> None:
    """Close the file, which releases its lock."""
    _HELD.discard(descriptor)
    os.close(descriptor)
