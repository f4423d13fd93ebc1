"""Side-by-side timing with a clock of our own: medians, ratios within rounds, order."""

from __future__ import annotations

import pytest

from vitlab.measure.interleave import WARMUP, Contender, interleave


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


def test_ratios_hold_on_a_machine_that_slows_down() -> None:
    machine = Machine()

    def slower(round_: int) -> None:
        machine.load *= 1.1

    a, b = machine.contender("a", 0.010), machine.contender("b", 0.025)
    first, second = interleave([a, b], 21, clock=lambda: machine.now, progress=slower)
    assert (first.ratio, first.ratio_lo, first.ratio_hi) == pytest.approx((1, 1, 1))
    assert (second.ratio, second.ratio_lo, second.ratio_hi) == pytest.approx((2.5, 2.5, 2.5))
    assert first.median_ms == pytest.approx(10 * 1.1**10)
    assert first.p10_ms == pytest.approx(10 * 1.1**2)
    assert first.p90_ms == pytest.approx(10 * 1.1**18)
    assert second.images_per_second == pytest.approx(1000 * 4 / second.median_ms)
    assert (first.first_ms, second.first_ms) == pytest.approx((10, 25))


def test_every_round_times_each_once_in_changing_order() -> None:
    machine = Machine()
    interleave([machine.contender(name, 0.001) for name in "abc"], 40, clock=lambda: machine.now)
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
            interleave(contenders, repeats)
