"""Locks on open files that end with the process that took them, whatever it had forked."""

from __future__ import annotations

import fcntl
import os

_HELD: set[int] = set()
"""Descriptors of the locks of this process. A forked child (a loader's process) shares a lock through its copy and
would keep it for as long as it outlives a killed parent, so it closes the copy first thing."""


def _forget() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


def acquire(descriptor: int) -> None:
    """Lock an open file for this process alone, at once.

    Raises:
        BlockingIOError: another process, or another descriptor of this one, has it locked.
        OSError: the file system knows no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _HELD.add(descriptor)


def release(descriptor: int) -> None:
    """Close the file, and so free it."""
    _HELD.discard(descriptor)
    os.close(descriptor)
