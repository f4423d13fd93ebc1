"""Groups of units that an event prunes, and what a unit saves (specification 6 and 7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.nvit.reference import analytic_cost
from vitlab.methods.nvit.gains import adjust, dims_of, macs_cost, params_cost, relative_eta, unit_gains
from vitlab.methods.nvit.selection import official_count, select_exact, select_official
from vitlab.models.vit_structure import TokenLayout, VitStructure, count_macs, count_params


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def live(*units: int) -> list[Tensor]:
    return [torch.ones(one, dtype=torch.bool) for one in units]


def test_the_official_count_adds_two_groups_an_event() -> None:
    assert [official_count(event, 32, 16, 2616) + 1 for event in range(6)] == [1, 2, 4, 6, 8, 10]
    assert official_count(10**6, 32, 16, 2616) == 39_000 // 16 - 1 == 2436  # its cap
    assert official_count(5, 32, 16, 4) == 3


def test_the_official_rule_keeps_the_last_group_of_an_axis_and_counts_it() -> None:
    one, two = scores(1, 1, 2, 2), scores(3, 9, 9, 9)
    found = select_official([one, two], live(4, 4), [2, 2], event=2, units=4, divisor=4)
    assert found.threshold == 4  # groups 2, 4 | 12, 18: the second smallest, which is the last of its axis
    assert [gate.tolist() for gate in found.gates] == [[False, False, True, True], [True] * 4]
    assert [units.tolist() for units in found.pruned] == [[0, 1], []]


def test_the_exact_rule_prunes_live_groups_only() -> None:
    """The official one would spend the event on the group that is pruned already."""
    gates = [torch.tensor([False, False, True, True, True, True]), *live(4)]
    values = [scores(0, 0, 1, 2, 9, 9), scores(1, 1, 1, 2)]
    found = select_exact(values, gates, [2, 2], count=2, least=[2, 2])
    assert [units.tolist() for units in found.pruned] == [[2, 3], [0, 1]] and found.threshold == 3
    assert found.gates[0].tolist() == [False] * 4 + [True] * 2
    again = select_exact(values, found.gates, [2, 2], count=2, least=[2, 2])
    assert [len(units) for units in again.pruned] == [0, 0]  # one group is left of each


def test_ties_are_broken_by_axis_then_unit() -> None:
    found = select_exact([scores(1, 1, 1, 1)] * 2, live(4, 4), [2, 2], count=1, least=[2, 2])
    assert [units.tolist() for units in found.pruned] == [[0, 1], []]


def test_a_short_last_group_can_be_the_one_that_stays() -> None:
    found = select_exact([scores(1, 2, 3, 4, 5)], live(5), [2], count=9, least=[1])
    assert found.gates[0].tolist() == [False] * 4 + [True]


DEIT = VitStructure(768, (12,) * 12, (64,) * 12, (64,) * 12, (3072,) * 12)
LEAST = {"head": 2, "qk": 8, "v": 8, "mlp": 16}


def test_gains_are_differences_of_the_cost() -> None:
    gains = unit_gains(analytic_cost, dims_of(DEIT), LEAST)
    block = 1e-3 * (1 + 0.5 + 2)
    assert gains["embedding"] == pytest.approx([12 * block / 768])
    np.testing.assert_allclose(gains["head"], 1e-3 * 0.5 / 12)
    np.testing.assert_allclose(gains["qk"], 1e-3 * 0.5 / 128)
    np.testing.assert_allclose(gains["mlp"], 1e-3 * 2 / 3072)
    smallest = VitStructure(16, (2,) * 12, (8,) * 12, (9,) * 12, (16,) * 12)
    gains = unit_gains(analytic_cost, dims_of(smallest), {**LEAST, "embedding": 16})
    assert not any(gains[kind].any() for kind in ("embedding", "head", "qk", "mlp")) and gains["v"].all()


def test_costs_of_blocks_are_those_of_the_network() -> None:
    layout = TokenLayout()
    other = VitStructure(480, (8,) * 12, (40,) * 12, (64,) * 12, (1312,) * 12)
    for cost, count in ((macs_cost(layout.tokens), count_macs), (params_cost, count_params)):
        found = float(cost(dims_of(DEIT)).sum() - cost(dims_of(other)).sum())
        outside = VitStructure(768, (1,), (1,), (1,), (1,)), VitStructure(480, (1,), (1,), (1,), (1,))
        rest = [count(one, layout) - float(cost(dims_of(one)).sum()) for one in outside]
        assert found == count(DEIT, layout) - count(other, layout) - (rest[0] - rest[1])


def test_the_relative_weight_does_not_depend_on_units() -> None:
    values, gates, gains = [scores(1, 2), scores(3, 4)], live(2, 2), [0.5, 0.25]
    eta = relative_eta(values, gates, gains, 0.3)
    assert eta == pytest.approx(0.3 * 10 / 1.5)
    expected = adjust(values, gains, eta)
    for loss, seconds in ((100.0, 1.0), (1.0, 1e-6)):
        scaled, times = [loss * one for one in values], [seconds * one for one in gains]
        found = adjust(scaled, times, relative_eta(scaled, gates, times, 0.3))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, loss * other)
    assert relative_eta(values, gates, [0.0, 0.0], 1.0) == 0
