"""Importance of units on the worked example of the specification (13, A3), and its averages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitlab.methods.nvit.importance import RunningImportance, unit_importance

W1 = torch.tensor([[0.5, -0.2], [0.1, 0.4], [-0.3, 0.8], [0.7, 0.2]], dtype=torch.float64)
B1 = torch.tensor([0.1, -0.1, 0.05, 0.0], dtype=torch.float64)
W2 = torch.tensor([[0.6, -0.5, 0.3, 0.2], [-0.4, 0.2, 0.7, -0.1]], dtype=torch.float64)
B2 = torch.tensor([0.0, 0.1], dtype=torch.float64)
BATCHES = (
    ([[1, 2], [-1, 0.5]], [0, 1]),
    ([[0.5, -1], [2, 1]], [1, 0]),
    ([[-0.5, 0.25], [1.5, -2]], [0, 0]),
    ([[0, 1], [1, 0]], [1, 1]),
)
SCORES = [3.627777e-03, 1.750841e-02, 9.541631e-03, 9.482923e-03]  # after two intervals, momentum 0.9


def sums(number: int, full: bool = False) -> tuple[float, Tensor, Tensor]:
    """Loss, and u of the four hidden units over the row and bias of fc1, and over the column of fc2."""
    x, y = (torch.tensor(one) for one in BATCHES[number])
    w1, b1, w2, b2 = (one.clone().requires_grad_() for one in (W1, B1, W2, B2))
    loss = F.cross_entropy(F.gelu(x.double() @ w1.T + b1) @ w2.T + b2, y)
    loss.backward()
    assert w1.grad is not None and b1.grad is not None and w2.grad is not None
    return loss.item(), (w1 * w1.grad).sum(1).detach() + b1.detach() * b1.grad, (w2 * w2.grad).sum(0).detach()


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=5e-10)


def test_the_sums_and_their_squares_are_those_of_the_example() -> None:
    found = [sums(number) for number in range(4)]
    assert [round(loss, 6) for loss, _, _ in found] == [0.759675, 0.669813, 0.549598, 0.732371]
    torch.testing.assert_close(
        torch.stack(found[0][1:]),
        torch.tensor(
            [[-0.055166, 0.186493, 0.143558, -0.121426], [-0.066307, 0.144116, 0.117889, -0.102248]],
            dtype=torch.float64,
        ),
        rtol=0,
        atol=5e-7,
    )
    close(unit_importance(found[0][1]), [3.043328e-03, 3.477969e-02, 2.060893e-02, 1.474438e-02])
    close(
        unit_importance(found[0][1], norm=2), [3.043328e-03 / 4, 3.477969e-02 / 4, 2.060893e-02 / 4, 1.474438e-02 / 4]
    )


def test_the_official_average_starts_at_the_first_interval() -> None:
    average = RunningImportance([4], correct_bias=False)
    means = []
    for first in (0, 2):
        for number in (first, first + 1):
            average.add([unit_importance(sums(number)[1])])
        means.append(average.total / 2)
        [found] = average.close_interval()
    close(means[0], [1.529857e-03, 1.940655e-02, 1.031556e-02, 1.023890e-02])
    close(means[1], [2.250906e-02, 4.251488e-04, 2.576264e-03, 2.679135e-03])
    close(found, SCORES)


def test_every_zeroed_weight_may_be_scored() -> None:
    average = RunningImportance([4], correct_bias=False)
    for first in (0, 2):
        for number in (first, first + 1):
            _, fc1, fc2 = sums(number)
            average.add([unit_importance(fc1 + fc2)])
        [found] = average.close_interval()
    close(found, [1.361643e-02, 5.733397e-02, 3.201088e-02, 3.204535e-02])


def constant(average: RunningImportance, value: float) -> float:
    """A of one unit after an interval whose mean is ``value``."""
    average.add([torch.tensor([value])])
    [found] = average.close_interval()
    return float(found)


def test_the_corrected_average_of_a_constant_is_that_constant() -> None:
    average = RunningImportance([1])
    assert [constant(average, 3.0) for _ in range(4)] == pytest.approx([3.0] * 4, rel=1e-12)
    average = RunningImportance([1])
    constant(average, 1.0)
    assert constant(average, 2.0) == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.81), rel=1e-12)


def test_the_official_reset_leaves_a_tenth_of_the_scale() -> None:
    average = RunningImportance([1], correct_bias=False, reset_after_first=True)
    found = [constant(average, 1.0) for _ in range(4)]
    assert found == pytest.approx([1.0, 0.1, 0.19, 0.271], rel=1e-12)


def test_sums_that_are_not_finite_count_as_zero_and_are_counted() -> None:
    average = RunningImportance([2, 1])
    average.add([torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])])
    average.add([torch.tensor([1.0, 1.0]), torch.tensor([4.0])])
    assert average.non_finite == 2
    first, second = average.close_interval()
    assert [*first.tolist(), *second.tolist()] == [1.0, 0.5, 2.0]


def test_a_state_continues_to_the_same_bits() -> None:
    torch.manual_seed(0)
    batches = [[torch.rand(3), torch.rand(2)] for _ in range(7)]
    whole, halves = (RunningImportance([3, 2]) for _ in range(2))
    for number, batch in enumerate(batches):
        for one in (whole, halves):
            one.add(batch)
            if number == 2:
                one.close_interval()
        if number in (1, 4):
            state = halves.state_dict()
            halves = RunningImportance([3, 2])
            halves.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(whole.close_interval(), halves.close_interval(), strict=True))
    with pytest.raises(ValueError, match="of 5 units, not of 4"):
        RunningImportance([4]).load_state_dict(whole.state_dict())


def test_an_empty_interval_and_a_wrong_momentum_are_refused() -> None:
    with pytest.raises(RuntimeError, match="without a batch"):
        RunningImportance([1]).close_interval()
    with pytest.raises(ValueError, match="momentum"):
        RunningImportance([1], momentum=1.0)
