"""SIGINT and SIGTERM in a process that starts others: their handler counts them, for the process to forward."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

DUPLICATE_SECONDS = 1.0
"""A second signal within so many seconds is a duplicate of the first: a terminal and a parent both send it."""


class SignalListener:
    """Context manager that handles SIGINT and SIGTERM and records when each came, in :attr:`times` (monotonic).

    The first signal is a request to save and stop, the second to stop at once; the process that enters the context
    forwards them to those it has started.

    Args:
        message: printed to stderr at the first signal.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        self.times: list[float] = []

    def __enter__(self) -> SignalListener:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.times and now - self.times[0] < DUPLICATE_SECONDS:
            return
        if not self.times:
            print(f"\n{signal.Signals(number).name}: {self.message}", file=sys.stderr, flush=True)
        self.times.append(now)
