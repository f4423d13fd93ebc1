"""Scores and schedule against traces of the official code (specification 13, A4 and A5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.nvit.reference import analytic_cost, backward, fixture
from vitlab.methods.nvit.gains import dims_of
from vitlab.methods.nvit.pruner import Event, GlobalPruner, PruningRule
from vitlab.models.pruning.gates import NormStats, attach_gates

OFFICIAL = PruningRule(scope="official", norm="official", correct_bias=False, eta_scale="absolute", schedule="official")


def values(text: str) -> Tensor:
    return torch.tensor([float(one) for one in text.split()], dtype=torch.float64)


SCORES = (
    "5.591122e-05 8.374803e-05 6.823396e-05 1.007853e-05 1.799962e-05 2.186565e-05 9.720502e-06 1.879752e-04",
    "1.008130e-05 6.808930e-05",
    "1.739394e-03 5.824684e-05 7.115201e-04 4.156596e-05",
    "5.795785e-06 2.294724e-04 2.370054e-04 1.009083e-05",
    "4.474889e-06 1.756128e-07 5.019514e-08 5.231992e-04 9.095045e-04 7.618368e-05 6.940266e-07 1.417166e-06 "
    "9.052664e-06 7.143484e-06 1.194578e-06 1.003409e-07",
)


def test_scores_are_those_of_the_official_code() -> None:
    model = fixture(0.3, 0.7, 0.37, 8, patch_size=4, embed_dim=8, depth=1, num_heads=2, mlp_ratio=1.5, num_classes=3)
    attach_gates(model, "full")
    pruner = GlobalPruner(model, OFFICIAL)
    losses, parts = [], []
    for t in range(2):
        losses.append(backward(model, t, 8, (0, 2)))
        pruner.collect()
        parts.append([one / (t + 1) for one in pruner.importance.total.split(pruner.importance.units)])
    assert losses == pytest.approx([1.2065299282, 1.2349154145], abs=1e-10)
    for found, expected in zip(parts[0], SCORES, strict=True):
        torch.testing.assert_close(found, values(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(parts[1][1], values("7.988416e-05 1.488603e-04"), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        parts[1][2], values("1.695439e-03 5.641975e-05 4.328663e-04 1.045139e-04"), rtol=1e-6, atol=0
    )


def trace(events: int, eta: float, norm_stats: NormStats = "full") -> tuple[list[float], list[Event], list[float]]:
    """Losses of the first three batches, the events, and the cost after each (A5: no weight is updated)."""
    model = fixture(0.3, 0.7, 0.37, 16, patch_size=8, embed_dim=64, depth=12, num_heads=4, mlp_ratio=1, num_classes=4)
    gates = attach_gates(model, norm_stats)
    assert sum(axis.groups for axis in gates.axes) == 124
    pruner = GlobalPruner(model, replace(OFFICIAL, eta=eta), analytic_cost)
    losses: list[float] = []
    found: list[Event] = []
    costs: list[float] = []
    t = 0
    while len(found) < events:
        losses.append(backward(model, t, 16, (t % 4, (t + 2) % 4)))
        gates.apply_to(model)
        pruner.collect()
        if t and t % 2 == 0:
            found.append(pruner.event())
            gates.apply_to(model)
            costs.append(float(analytic_cost(dims_of(pruner.structure)).sum()))
        t += 1
    return losses[:3], found, costs


def ints(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split())


def thresholds(events: list[Event], expected: dict[int, float]) -> None:
    for number, value in expected.items():
        assert events[number - 1].threshold == pytest.approx(value, rel=1e-6), number


def test_schedule_without_the_cost() -> None:
    losses, events, costs = trace(30, 0.0)
    assert losses == pytest.approx([1.9660871494, 3.6726744251, 1.6706887357], abs=1e-10)
    thresholds(
        events,
        {
            **{1: 1.778353e-07, 2: 2.172041e-07, 3: 8.153510e-07, 5: 4.205544e-06, 10: 8.680580e-05},
            **{20: 8.700677e-04, 30: 2.131480e-03},
        },
    )
    third, tenth, last = (events[number - 1].structure for number in (3, 10, 30))
    assert third.qk == ints("16 16 16 16 8 16 16 8 16 16 16 8")
    assert third.mlp == (*(64,) * 9, 48, 64, 64) and third.v == (16,) * 12
    assert tenth.qk == ints("16 16 16 16 8 16 16 8 8 16 16 8")
    assert tenth.mlp == ints("64 64 48 48 48 48 48 48 32 48 32 32")
    assert last.embed == 64
    assert last.heads == ints("4 4 4 4 4 2 2 4 2 2 2 2")
    assert last.qk == ints("16 8 16 8 8 8 8 8 8 8 8 8")
    assert last.v == ints("16 16 16 16 16 8 8 16 8 8 16 8")
    assert last.mlp == ints("32 48 48 32 32 32 32 16 32 32 16 16")
    assert costs[-1] == pytest.approx(1.04296875e-03, rel=1e-9)


def test_schedule_with_the_cost() -> None:
    _, events, costs = trace(20, 50.0)
    first = events[0]
    assert first.structure.embed == 48 and list(first.pruned) == ["embedding"]
    assert list(events[1].pruned) == ["blocks.11.qk"]
    thresholds(events, {1: -5.003821e-04, 5: -1.847413e-05, 10: 2.118463e-05, 20: 2.346879e-04})
    last = events[-1].structure
    assert last.embed == 48
    assert last.heads == ints("4 4 4 4 4 2 2 4 2 2 4 2")
    assert last.qk == ints("16 16 16 16 8 8 8 8 8 8 8 8") and last.v == (16,) * 12
    assert last.mlp == ints("48 64 48 32 48 32 32 32 32 32 32 32")
    assert costs[-1] == pytest.approx(7.90039063e-04, rel=1e-8)


def test_schedule_with_the_cost_and_norms_over_live_channels() -> None:
    _, events, _ = trace(20, 50.0, "live")
    thresholds(events, {2: -3.231529e-05, 20: 2.026919e-04})
    last = events[-1].structure
    assert last.embed == 48
    assert last.heads == ints("4 4 4 4 4 2 4 4 2 2 4 4")
    assert last.qk == ints("16 16 16 16 8 8 8 8 8 8 8 8")
    assert last.v == ints("16 16 16 16 16 8 16 16 16 16 16 16")
    assert last.mlp == ints("48 64 48 32 48 32 32 32 32 32 32 32")
