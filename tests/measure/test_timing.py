"""Timing with a clock of our own: medians, ratios within rounds, order, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitlab.errors import UserError
from vitlab.measure.timing import (
    WARMUP,
    Call,
    Contender,
    Samples,
    block_size,
    core_count,
    time_block,
    time_calls,
    time_for,
    time_in_rounds,
    time_interleaved,
)


class Machine:
    """A machine whose speed changes: everything takes ``load`` times as long as it should."""

    def __init__(self) -> None:
        self.now = 0.0
        self.load = 1.0
        self.calls: list[str] = []

    def contender(self, name: str, seconds: float) -> Contender:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * self.load

        return Contender(name, "eager", 4, run)

    def clock(self) -> float:
        return self.now

    def cells(self, **seconds: float) -> dict[str, Callable[[], Call]]:
        """For rounds: what builds each call; building takes time as well."""

        def cell(name: str) -> Callable[[], Call]:
            def build() -> Call:
                self.now += 100
                return self.contender(name, seconds[name]).run

            return build

        return {name: cell(name) for name in seconds}


def test_ratios_hold_on_a_machine_that_slows_down() -> None:
    machine = Machine()

    def slower(round_: int) -> None:
        machine.load *= 1.1

    a, b = machine.contender("a", 0.010), machine.contender("b", 0.025)
    first, second = time_interleaved([a, b], 21, clock=lambda: machine.now, progress=slower)
    assert (first.ratio, first.ratio_lo, first.ratio_hi) == pytest.approx((1, 1, 1))
    assert (second.ratio, second.ratio_lo, second.ratio_hi) == pytest.approx((2.5, 2.5, 2.5))
    assert first.median_ms == pytest.approx(10 * 1.1**10)
    assert first.p10_ms == pytest.approx(10 * 1.1**2)
    assert first.p90_ms == pytest.approx(10 * 1.1**18)
    assert second.images_per_second == pytest.approx(1000 * 4 / second.median_ms)
    assert (first.first_ms, second.first_ms) == pytest.approx((10, 25))


def test_every_round_times_each_once_in_changing_order() -> None:
    machine = Machine()
    time_interleaved([machine.contender(name, 0.001) for name in "abc"], 40, clock=lambda: machine.now)
    timed = machine.calls[3 * WARMUP :]
    rounds = ["".join(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 40
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6, "all orders occur"


def test_refuses_what_does_not_compare() -> None:
    machine = Machine()
    one = machine.contender("a", 1)
    other = Contender("b", "eager", 8, one.run)
    for contenders, repeats in (([], 3), ([one], 0), ([one, other], 3)):
        with pytest.raises(ValueError, match="one batch size"):
            time_interleaved(contenders, repeats)


def test_one_call_over_and_over() -> None:
    machine = Machine()
    run = machine.contender("a", 0.25).run
    assert time_calls(run, 4, warmup=2, clock=machine.clock) == [0.25] * 4
    assert len(machine.calls) == 6
    assert time_for(run, 1.0, clock=machine.clock) == [0.25] * 4
    assert time_for(run, 0.0, least=3, clock=machine.clock) == [0.25] * 3
    with pytest.raises(ValueError, match="at least one repeat"):
        time_calls(run, 0)


def test_a_block_of_calls_is_waited_for() -> None:
    """On a GPU a call returns before its work is done: here waiting takes what the calls queued."""
    machine, queue = Machine(), [0.0]

    def call() -> None:
        queue[0] += 0.01

    def wait() -> None:
        machine.now += queue.pop()
        queue.append(0.0)

    call()  # of before: not part of what is timed
    size = block_size(call, 0.2, wait, machine.clock)
    assert size == 20
    assert time_block(call, size, wait, machine.clock) == pytest.approx(0.01)
    assert block_size(lambda: None, 1.0, clock=machine.clock, largest=7) == 7


def test_a_sample_in_a_busy_moment_does_not_take_forever() -> None:
    machine = Machine()

    def slow(done: int, total: int) -> None:
        machine.load = 1000.0

    found = time_in_rounds(machine.cells(a=0.001), 2, 1.0, clock=machine.clock, progress=slow)
    assert found.seconds["a"] == pytest.approx([0.001, 1.0])
    assert len(machine.calls) == 2 + 1000 + 1 + 4


def test_rounds_time_each_once_in_changing_order() -> None:
    machine = Machine()
    found = time_in_rounds(machine.cells(a=0.5, b=2.0, c=1.0), 40, 1.0, clock=machine.clock)
    assert found.seconds == {"a": [0.5] * 40, "b": [2.0] * 40, "c": [1.0] * 40}
    first, later = machine.calls[: 3 * 3 + 1], machine.calls[3 * 3 + 1 :]  # a takes two calls to fill a second
    assert sorted(first) == [*"aaaa", *"bbb", *"ccc"]
    rounds = ["".join(dict.fromkeys(later[i : i + 7])) for i in range(0, len(later), 7)]  # a warm-up call each
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6, "all orders occur"


def test_medians_of_rounds_hold_on_a_machine_that_is_slow_for_a_while() -> None:
    machine = Machine()

    def slow_for_a_while(done: int, total: int) -> None:
        machine.load = 9.0 if 2 <= done < 4 else 1.0

    found = time_in_rounds(machine.cells(a=0.5, b=2.0), 5, 1.0, clock=machine.clock, progress=slow_for_a_while)
    assert {name: np.median(row) for name, row in found.seconds.items()} == {"a": 0.5, "b": 2.0}
    assert max(found.seconds["b"]) == 18.0


def test_an_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    machine, file = Machine(), tmp_path / "partial.json"

    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_in_rounds(
            machine.cells(a=0.5, b=2.0), 3, 1.0, clock=machine.clock, partial=file, spec={"x": 1}, progress=stop
        )
    kept = json.loads(file.read_text())["seconds"]
    assert sum(map(len, kept.values())) == 3
    machine.load = 10  # distinguishes new samples from those in the file
    calls: list[int] = []
    found = time_in_rounds(
        machine.cells(a=0.5, b=2.0), 3, 1.0, clock=machine.clock, partial=file, spec={"x": 1},
        progress=lambda done, total: calls.append(done),
    )  # fmt: skip
    assert calls == [4, 5, 6]
    assert {name: row[: len(kept[name])] for name, row in found.seconds.items()} == kept
    assert sorted(len(row) for row in found.seconds.values()) == [3, 3]
    again = time_in_rounds(machine.cells(a=0.5, b=2.0), 3, 1.0, partial=file, spec={"x": 1})
    assert again.seconds == found.seconds, "nothing is left to time"
    with pytest.raises(UserError, match="other x"):
        time_in_rounds(machine.cells(a=0.5, b=2.0), 3, 1.0, partial=file, spec={"x": 2})
    with pytest.raises(UserError, match="other cells"):
        time_in_rounds(machine.cells(a=0.5), 3, 1.0, partial=file, spec={"x": 1})
    file.write_text("[]")
    with pytest.raises(UserError, match="no unfinished measurement"):
        time_in_rounds(machine.cells(a=0.5), 3, 1.0, partial=file)
    with pytest.raises(ValueError, match="at least one round"):
        time_in_rounds({}, 0)


def test_busy_is_more_than_one_process_beyond_the_cores() -> None:
    assert not Samples(load=core_count() + 1.0).busy
    assert Samples(load=core_count() + 1.1).busy
