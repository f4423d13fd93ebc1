"""Locks on folders: one process works in a run's or a sweep's folder at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from vitlab.errors import UserError
from vitlab.locks import acquire, release
from vitlab.run.environment import now


@contextlib.contextmanager
def locked(folder: Path, cure: str) -> Iterator[None]:
    """Own a folder that several commands may write into, for as long as the block lasts.

    Raises:
        UserError: another process owns it; ``cure`` is what to do then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = acquire_folder(folder / "lock", folder, cure)
    try:
        yield
    finally:
        release(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether some process works in a run's folder just now."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def acquire_folder(
    path: Path, folder: Path, cure: str = "Wait for it or stop it; fresh=true starts a run of its own."
) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        acquire(descriptor)
    except OSError as error:
        owner = os.read(descriptor, 4096).decode(errors="replace")
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise UserError(
                f"{folder} cannot be locked: {error.strerror}.", "Choose a file system with locks: output=<folder>."
            ) from error
        raise UserError(
            f"{folder} is being worked on by {owner.strip() or 'a process that has just started'}.",
            cure,
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode())
    return descriptor
