"""Progress that a person can follow: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType

from tqdm import tqdm

from vitlab.signals import closed_terminal_ignored

_PLAIN_EVERY = 10.0  # seconds between two plain lines


class Progress:
    """Counts ``done`` of ``total`` units of one stage and estimates how long the rest will take.

    Args:
        title: printed in front, e.g. the stage's name.
        total: units in all.
        done: units done in an earlier session.
        unit: what is counted, e.g. "step".
        quiet: print nothing (ranks other than 0).
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step", quiet: bool = False) -> None:
        self.title, self.total, self.first, self.done, self.unit = title, total, done, done, unit
        self.quiet = quiet
        self.start = time.monotonic()
        self.printed = self.start
        self.bar: tqdm[None] | None = None
        if not quiet and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, leave=True)

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """``done`` units are done in all; ``values`` are shown beside."""
        advance, self.done = done - self.done, done
        if self.bar is not None:
            if values:
                self.bar.set_postfix_str(_show(values), refresh=False)
            with closed_terminal_ignored():
                self.bar.update(advance)
        elif not self.quiet and time.monotonic() - self.printed >= _PLAIN_EVERY:
            self.print_now(values)

    def print_now(self, values: Mapping[str, float] | None = None) -> None:
        """One plain line now."""
        self.printed = time.monotonic()
        seconds = self.printed - self.start
        rate = (self.done - self.first) / max(seconds, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        shown = f"  {_show(values)}" if values else ""
        print_line(f"{self.title}: {self.done}/{self.total} {self.unit}s, {format_duration(left)} left{shown}")

    def note(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self.bar is not None:
            with closed_terminal_ignored():
                self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print_line(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            with closed_terminal_ignored():
                self.bar.close()


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows progress when it is called with (done, total); the first call opens the bar."""
    with ExitStack() as stack:
        bar: list[Progress] = []

        def update(done: int, total: int) -> None:
            if not bar:
                bar.append(stack.enter_context(Progress(title, total, unit=unit)))
            bar[0].update(done)

        yield update


def format_duration(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds == float("inf"):
        return "unknown time"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def _show(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def print_line(text: str) -> None:
    """A line for the person at the prompt, beside the progress."""
    with closed_terminal_ignored():
        print(text, file=sys.stderr, flush=True)
