"""Ctrl-C and SIGTERM in a process that only looks after others: what was heard, for it to pass on."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

SAME = 1.0
"""Seconds within which a second signal is the first one told twice: a terminal and its parent both deliver it."""


class SignalListener:
    """While entered, the first signal is answered with ``answer`` on stderr; :attr:`times` holds when each came.

    The first one asks to save and stop, the second one to stop at once; who looks after others passes them on.
    """

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.times: list[float] = []

    def __enter__(self) -> SignalListener:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.times and now - self.times[0] < SAME:
            return
        if not self.times:
            print(f"\n{signal.Signals(number).name}: {self.answer}", file=sys.stderr, flush=True)
        self.times.append(now)
