"""recipe.balance: class weights and logit adjustment against their formulas; what has no counts is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitlab.data.sources import Arrays
from vitlab.errors import UserError
from vitlab.training.class_balance import balanced, class_weights, log_priors
from vitlab.training.objectives import distillation, label_cross_entropy

COUNTS = np.array([6, 3, 1])


def source(counts: np.ndarray = COUNTS) -> Arrays:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"class {c}" for c in range(len(counts))]
    return Arrays(np.zeros((len(labels), 2, 2), np.uint8), labels, names, [str(i) for i in range(len(labels))], "train")


def batch(mixed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    label = torch.randint(3, (8,), generator=generator)
    if not mixed:
        return logits, label
    rows = F.one_hot(label, 3).float()
    return logits, 0.7 * rows + 0.3 * rows.flip(0)


def test_none_is_the_objective_itself() -> None:
    objective = partial(label_cross_entropy, smoothing=0.1)
    assert balanced(objective, "none", source()) is objective
    assert balanced(distillation, "sampler", source()) is distillation


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_are_inverse_frequencies_of_mean_one(mixed: bool, smoothing: float) -> None:
    weight = class_weights(COUNTS)
    assert weight.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert float((weight * torch.from_numpy(COUNTS)).sum()) == pytest.approx(10)
    logits, label = batch(mixed)
    share = label if mixed else F.one_hot(label, 3).float()
    share = (1 - smoothing) * share + smoothing / 3
    expected = -(weight * share * logits.log_softmax(1)).sum(1).mean()
    found = balanced(partial(label_cross_entropy, smoothing=smoothing), "weight", source())(logits, label, None)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-6)
    # Micro-batches average to the batch, whatever classes they hold.
    halves = [balanced(label_cross_entropy, "weight", source())(logits[i::2], label[i::2], None) for i in (0, 1)]
    full = balanced(label_cross_entropy, "weight", source())(logits, label, None)["loss"]
    assert float(sum(half["loss"] for half in halves) / 2) == pytest.approx(float(full), rel=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_logit_adjustment_is_menons(mixed: bool) -> None:
    """Eq. 10 with tau = 1: ``log(1 + sum_{y' != y} pi_y'/pi_y exp(f_y' - f_y))``."""
    logits, label = batch(mixed)
    prior = COUNTS / COUNTS.sum()
    assert log_priors(COUNTS).tolist() == pytest.approx(np.log(prior).tolist())
    ratio = torch.tensor(prior[None, :] / prior[:, None], dtype=torch.float32)
    losses = torch.stack(
        [(ratio[y] * (logits - logits[:, y : y + 1]).exp()).sum(1).log() for y in range(3)], dim=1
    )  # [B, y]
    expected = (losses * (label if mixed else F.one_hot(label, 3))).sum(1).mean()
    found = balanced(label_cross_entropy, "logit_adjust", source())(logits, label, None)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("balance", ["weight", "logit_adjust"])
def test_an_objective_without_labels_is_refused_by_name(balance: str) -> None:
    with pytest.raises(UserError, match=rf"recipe\.balance={balance} is for training on labels.*distillation"):
        balanced(partial(distillation, clamp_minor=True), balance, source())
    with pytest.raises(UserError, match="class 'class 1' has no training image"):
        balanced(label_cross_entropy, balance, source(np.array([2, 0, 1])))
