"""The signals that request a stop, and the handler that counts them in a process that starts others."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
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
        for descriptor in (1, 2):
            _detach(descriptor)
    print(f"\n{signal.Signals(number).name}: {message}", file=sys.stderr, flush=True)


def _detach(descriptor: int) -> None:
    """Let ``descriptor`` write to the null device if it is a terminal's; files and pipes stay."""
    # Not isatty(): it is false for a terminal that has hung up.
    if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


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
