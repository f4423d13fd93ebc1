"""The signals that request a stop, and the handler that counts them in a process that starts others."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DUPLICATE_SECONDS = 1.0
"""A second signal within so many seconds is a duplicate of the first: a terminal and a parent both send it."""


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP (the terminal was closed), which ``nohup`` has ignored: then it stays ignored."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # none on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found


def announce(number: int, message: str) -> None:
    """Print the signal's name and ``message`` to stderr; after SIGHUP there is no terminal, and what was printed there
    goes to the null device from now on (a write would raise EIO in the middle of saving)."""
    if number == getattr(signal, "SIGHUP", None):
        _detach_terminal()
    print(f"\n{signal.Signals(number).name}: {message}", file=sys.stderr, flush=True)


@contextmanager
def closed_terminal_ignored() -> Iterator[None]:
    """Print inside the block: to a terminal that was closed it is no error, and nothing is printed from then on.

    Writes fail (EIO) as soon as the terminal is gone, and SIGHUP, the request to save, may come a moment later.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO or not _detach_terminal():
            raise


def _detach_terminal() -> bool:
    """Let stdout and stderr write to the null device where they are a terminal's; files and pipes stay. Whether one
    was."""
    # Not isatty(): it is false for a terminal that has hung up.
    terminals = [descriptor for descriptor in (1, 2) if stat.S_ISCHR(os.fstat(descriptor).st_mode)]
    for descriptor in terminals:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    return bool(terminals)


class SignalListener:
    """Context manager that handles the :func:`stop_signals` and records when each came, in :attr:`times` (monotonic).

    The first signal is a request to save and stop, the second to stop at once; the process that enters the context
    forwards them to those it has started.

    Args:
        message: printed to stderr at the first signal.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        self.times: list[float] = []

    def __enter__(self) -> SignalListener:
        self.previous = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.times and now - self.times[0] < DUPLICATE_SECONDS:
            return
        if not self.times:
            announce(number, self.message)
        self.times.append(now)
