"""Ctrl-C and SIGTERM ask politely: the work at hand is saved, then the run stops and can be continued."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from vitlab.errors import Interrupted

_asked: list[int] = []


def listen() -> None:
    """Take SIGINT and SIGTERM as a request to save and stop; a second one stops at once."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _asked:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
    _asked.append(number)
    # The bar may be in mid-line.
    print(f"\n{signal.Signals(number).name}: saving, then stopping; once more stops at once.", file=sys.stderr)


def asked() -> bool:
    """Whether somebody asked to stop."""
    return bool(_asked)


def stop_if_asked() -> None:
    """Raise :class:`Interrupted` if somebody asked to stop; called where everything done so far is saved."""
    if _asked:
        raise Interrupted("Stopped; everything is saved.")
