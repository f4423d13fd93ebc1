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
    """Hold the lock of a folder inside the block; the folder is created if it does not exist.

    Raises:
        UserError: another process holds the lock; ``cure`` says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = acquire_folder(folder / "lock", folder, cure)
    try:
        yield
    finally:
        release(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run's folder."""
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
    path: Path, folder: Path, cure: str = "Wait for it or stop it; fresh=true starts another run."
) -> int:
    """Lock the file ``path`` and write this process into it; its descriptor, for :func:`vitlab.locks.release`.

    Raises:
        UserError: another process holds the lock of ``folder``, or the file system has no locks.
    """
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
            f"{folder} is locked by {owner.strip() or 'a process that has just started'}.",
            cure,
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode())
    return descriptor
