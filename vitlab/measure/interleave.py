"""Timing several models so that their ratios hold although the machine is not quiet.

Every round times each contender once, in a new random order. A moment in which the machine is busy then falls on all
of them alike, and the ratio of two is taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARMUP = 3
DRAWS = 500  # of the bootstrap behind the interval of a ratio


@dataclass
class Contender:
    """Something to time: one call is one forward pass of ``batch`` images, finished when it returns."""

    name: str
    backend: str
    batch: int
    run: Callable[[], object]


@dataclass
class Timing:
    """What the rounds say about one contender."""

    name: str
    backend: str
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    ratio: float  # median over rounds of (its time / the first contender's time) at this batch size
    ratio_lo: float  # 95 % interval of that median
    ratio_hi: float
    first_ms: float  # of the very first call, which may compile

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch / self.median_ms


def interleave(
    contenders: Sequence[Contender],
    repeats: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time the contenders of one batch size.

    Args:
        contenders: the first is what the others' ratios refer to.
        repeats: rounds.
        seed: of the order within rounds, and of the bootstrap.
        clock: in seconds.
        progress: told how many rounds are done.

    Raises:
        ValueError: no contender, no round, or different batch sizes.
    """
    if not contenders or repeats < 1 or len({one.batch for one in contenders}) != 1:
        raise ValueError(f"{len(contenders)} contenders, {repeats} rounds: one batch size and at least one of each")
    rng = np.random.default_rng(seed)
    spent = np.empty((repeats, len(contenders)))
    first = [_time(one, clock) for one in contenders]
    for one in contenders:
        for _ in range(WARMUP - 1):
            one.run()
    for number in range(repeats):
        for place in rng.permutation(len(contenders)):
            spent[number, place] = _time(contenders[place], clock)
        if progress is not None:
            progress(number + 1)
    drawn = rng.integers(0, repeats, (DRAWS, repeats))
    found = []
    for place, one in enumerate(contenders):
        p10, median, p90 = np.quantile(spent[:, place], [0.1, 0.5, 0.9])
        ratio = spent[:, place] / spent[:, 0]
        lo, hi = np.quantile(np.median(ratio[drawn], axis=1), [0.025, 0.975])
        found.append(
            Timing(
                name=one.name,
                backend=one.backend,
                batch=one.batch,
                median_ms=float(median),
                p10_ms=float(p10),
                p90_ms=float(p90),
                repeats=repeats,
                ratio=float(np.median(ratio)),
                ratio_lo=float(lo),
                ratio_hi=float(hi),
                first_ms=first[place],
            )
        )
    return found


def _time(one: Contender, clock: Callable[[], float]) -> float:
    """Milliseconds of one call."""
    start = clock()
    one.run()
    return 1000 * (clock() - start)
