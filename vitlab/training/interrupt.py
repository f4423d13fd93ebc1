"""Ctrl-C, SIGTERM and SIGHUP are requests: the work at hand is saved, then the run stops and can be continued."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

from vitlab.errors import Interrupted, StoppedAtOnce
from vitlab.signals import DUPLICATE_SECONDS, announce, stop_signals

if TYPE_CHECKING:
    import torch

_requests: list[float] = []
_quiet = False
_installed = False


def install_signal_handlers(quiet: bool = False) -> None:
    """Take SIGINT, SIGTERM and SIGHUP as a request to save and stop; a second one stops at once.

    Args:
        quiet: print nothing; the process that passes the signals on does.
    """
    global _quiet, _installed
    _quiet, _installed = quiet, True
    for number in stop_signals():
        signal.signal(number, _on_signal)


def reinstall_signal_handlers() -> None:
    """Take the signals back from a library that put itself in front of us.

    Lightning's handler of SIGTERM broadcasts to the other processes, from wherever it interrupts them: they hang.
    """
    if _installed:
        install_signal_handlers(_quiet)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _requests:
        if time.monotonic() - _requests[0] < DUPLICATE_SECONDS:
            return
        signal.signal(number, signal.SIG_DFL)
        raise StoppedAtOnce(AT_ONCE)
    _requests.append(time.monotonic())
    if not _quiet:  # the bar may be in mid-line
        announce(number, SAVING)


SAVING = "saving, then stopping; once more stops at once."
AT_ONCE = "Stopped at once; the same command continues from the last checkpoint."


def stop_requested() -> bool:
    """Whether this process received a signal to stop."""
    return bool(_requests)


def stop_requested_on_any_rank(device: torch.device) -> bool:
    """Whether any rank received a signal to stop; all ranks call this at the same place.

    A signal reaches the ranks at different moments, and a rank that stopped alone would leave the others waiting.
    """
    import torch  # here: designing a network handles signals too, and needs no torch

    from vitlab.training.distributed import all_reduce_sum

    return bool(all_reduce_sum(torch.tensor(float(stop_requested())), device) > 0)


def stop_if_requested() -> None:
    """Raise :class:`Interrupted` after a signal to stop; called where everything done so far is saved."""
    if _requests:
        stop()


def stop() -> None:
    """Raise :class:`Interrupted`.

    Raises:
        Interrupted: always.
    """
    raise Interrupted("Stopped; everything is saved. The same command continues.")
