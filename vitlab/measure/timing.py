"""Timing of calls: one repeatedly, one for some seconds, or several interleaved.

Calls that are compared are interleaved: every round times each of them once, in a new random order. Load from other
processes then affects all of them alike, and the ratio of two is taken within rounds. Times are wall-clock seconds
unless a name ends in ``_ms``, and torch is imported only where a device is synchronised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.errors import UserError
from vitlab.files import read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

WARMUP = 3
DRAWS = 500  # of the bootstrap behind the interval of a ratio
SAVE_EVERY = 5.0  # seconds between two saves: at most so much timing is lost by a kill
LONGEST = 4  # limit of a sample on a busy machine, in multiples of its intended duration

Call = Callable[[], object]
Clock = Callable[[], float]


# ------------------------------------------------------------------------------------------------------------ one call


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished what was queued."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the type of any other device."""
    if device.type != "cuda":
        return str(device.type)
    import torch

    return torch.cuda.get_device_name(device)


def forward_pass(module: nn.Module, batch: torch.Tensor, wait: bool = True) -> Call:
    """One forward pass of ``module`` in its present mode, without gradients; finished when it returns, unless ``wait``
    is false."""
    import torch

    def run() -> object:
        with torch.inference_mode():
            out = module(batch)
        if wait:
            synchronize(batch.device)
        return out

    return run


def time_calls(call: Call, repeats: int, warmup: int = WARMUP, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each of ``repeats`` calls, after ``warmup`` calls that are not counted.

    Raises:
        ValueError: no repeats.
    """
    if repeats < 1:
        raise ValueError(f"latency needs at least one repeat, not {repeats}")
    for _ in range(warmup):
        call()
    return [time_block(call, 1, clock=clock) for _ in range(repeats)]


def time_for(call: Call, seconds: float, least: int = 1, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each of the calls made until ``seconds`` have passed; at least ``least`` calls."""
    times: list[float] = []
    end = clock() + seconds
    while len(times) < least or clock() < end:
        times.append(time_block(call, 1, clock=clock))
    return times


def time_block(
    call: Call,
    count: int,
    wait: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
    most: float = float("inf"),
) -> float:
    """Mean seconds of ``count`` calls in a row, or of those begun within ``most`` seconds; ``wait`` returns when
    everything that they queued is done."""
    start, made = clock(), 0
    while made < count and (made == 0 or clock() - start < most):
        call()
        made += 1
    wait()
    return (clock() - start) / made


def block_size(
    call: Call,
    seconds: float,
    wait: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
    largest: int = 1000,
) -> int:
    """Number of consecutive calls that take about ``seconds``, between 1 and ``largest``; measured by two calls, which
    also warm up."""
    wait()
    once = min(time_block(call, 1, wait, clock) for _ in range(2))
    return max(1, min(largest, round(seconds / max(once, 1e-7))))


# ------------------------------------------------------------------------------------------------------------ in turns


@dataclass
class Contender:
    """Something to time: one call is one forward pass of ``batch`` images, finished when it returns."""

    name: str
    backend: str
    batch: int
    run: Call


@dataclass
class Timing:
    """Times of one contender over the rounds."""

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


def time_interleaved(
    contenders: Sequence[Contender],
    repeats: int,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time the contenders of one batch size.

    Args:
        contenders: the first is what the others' ratios refer to.
        repeats: rounds.
        seed: of the order within rounds, and of the bootstrap.
        clock: in seconds.
        progress: called with the number of rounds that are done.

    Raises:
        ValueError: no contender, no round, or different batch sizes.
    """
    if not contenders or repeats < 1 or len({one.batch for one in contenders}) != 1:
        raise ValueError(f"{len(contenders)} contenders, {repeats} rounds: one batch size and at least one of each")
    rng = np.random.default_rng(seed)
    spent = np.empty((repeats, len(contenders)))
    first = [1000 * time_block(one.run, 1, clock=clock) for one in contenders]
    for one in contenders:
        for _ in range(WARMUP - 1):
            one.run()
    for number in range(repeats):
        for place in rng.permutation(len(contenders)):
            spent[number, place] = 1000 * time_block(contenders[place].run, 1, clock=clock)
        if progress is not None:
            progress(number + 1)
    drawn = rng.integers(0, repeats, (DRAWS, repeats))
    found = []
    for place, one in enumerate(contenders):
        p10, median, p90 = np.quantile(spent[:, place], [0.1, 0.5, 0.9])
        ratio = spent[:, place] / spent[:, 0]  # within rounds: a slow moment cancels
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


@dataclass
class Samples:
    """Mean seconds of a call, by name and round, and the highest load average meanwhile."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    load: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether more processes ran than the machine has cores, so that times may be too long."""
        return is_busy(self.load, core_count())


def time_in_rounds(
    cells: Mapping[str, Callable[[], Call]],
    rounds: int,
    seconds: float = 0.01,
    *,
    wait: Callable[[], object] = lambda: None,
    seed: int = 0,
    partial: Path | None = None,
    spec: Mapping[str, Any] | None = None,
    clock: Clock = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Time many calls, each once in every round and in a new random order; one of them is in memory at a time.

    Args:
        cells: name to a factory of the call, which is built again in every round.
        rounds: samples of each.
        seconds: that one sample takes at least, as many calls in a row as that needs; calls before it warm up.
        wait: returns when the device has finished.
        seed: of the orders.
        partial: JSON file in which samples are saved during the measurement; a later call continues from it. The
            caller deletes it when the result is saved.
        spec: description of the measurement (device, versions, ...); a partial file of another one is refused.
        clock: in seconds.
        progress: called with the samples done and in all; what it raises ends the timing, and the samples are saved.

    Raises:
        ValueError: no round.
        UserError: ``partial`` is of another measurement, or is no partial file.
    """
    if rounds < 1:
        raise ValueError(f"at least one round, not {rounds}")
    request = {**(spec or {}), "cells": list(cells), "rounds": rounds, "seconds": seconds, "seed": seed}
    samples = _read_partial(partial, request)
    sizes: dict[str, int] = {}
    names = list(cells)
    done, saved = sum(map(len, samples.seconds.values())), time.monotonic()
    try:
        for number in range(rounds):
            samples.load = max(samples.load, load_average())
            for place in np.random.default_rng([seed, number]).permutation(len(cells)):
                name = names[place]
                if len(samples.seconds.setdefault(name, [])) > number:
                    continue  # measured before an interruption; the orders are a function of (seed, round)
                call = cells[name]()
                if name in sizes:  # the block size is known, and one call warms up
                    call()
                    wait()
                else:
                    sizes[name] = block_size(call, seconds, wait, clock)
                samples.seconds[name].append(time_block(call, sizes[name], wait, clock, LONGEST * seconds))
                done += 1
                if partial is not None and time.monotonic() - saved > SAVE_EVERY:
                    _write_partial(partial, request, samples)
                    saved = time.monotonic()
                if progress is not None:
                    progress(done, rounds * len(cells))
        samples.load = max(samples.load, load_average())
    finally:
        if partial is not None:
            _write_partial(partial, request, samples)
    return samples


def _write_partial(path: Path, request: Mapping[str, Any], samples: Samples) -> None:
    write_json(path, {"question": request, "load": samples.load, "seconds": samples.seconds})


def _read_partial(path: Path | None, request: Mapping[str, Any]) -> Samples:
    if path is None or not path.exists():
        return Samples()
    cure = "Delete it to start again."
    try:
        kept = read_json(path)
        samples = Samples({str(k): [float(v) for v in row] for k, row in kept["seconds"].items()}, float(kept["load"]))
        before = kept["question"]
        differ = sorted(key for key in {*request, *before} if before.get(key) != request.get(key))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"'{path}' is no unfinished measurement: {error!r}.", cure) from error
    if differ:
        raise UserError(f"'{path}' is an unfinished measurement with other {', '.join(differ)}.", cure)
    return samples


# -------------------------------------------------------------------------------------------------------- the machine


def load_average() -> float:
    """Processes that ran or waited for a core, on average over the last minute; 0 where the system has no such
    number."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_busy(load: float, cores: int) -> bool:
    """Whether other processes compete for the cores: the load exceeds their number by more than one."""
    return load > cores + 1


def describe_load(load: float, cores: int) -> str:
    """ "load 5.2 on 2 cores" where other processes compete for the cores, else empty."""
    return f"load {load:.1f} on {cores} core{'s' if cores > 1 else ''}" if is_busy(load, cores) else ""


@dataclass(frozen=True)
class Conditions:
    """Conditions of a measurement: device and its CPU threads, images at a time, precision and backend, versions."""

    device: str
    threads: int
    batch: int
    precision: str
    backend: str
    tf32: bool  # whether a GPU may round the inputs of float32 products to TF32
    torch_version: str
    timm_version: str

    @classmethod
    def of(cls, device: torch.device, batch: int, precision: str = "32", backend: str = "eager") -> Conditions:
        """Those of this process."""
        from importlib.metadata import version

        import torch

        from vitlab.run.environment import environment

        name = str(environment("")["cpu"]) if device.type == "cpu" else device_name(device)
        tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        threads = torch.get_num_threads()
        return cls(name, threads, batch, precision, backend, tf32, torch.__version__, version("timm"))
