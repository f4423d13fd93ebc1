"""Dataset Reinforcement's worked numbers: ensemble, recovered labels, losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitlab.distill.sparse import SparseTarget, densify, kl_divergence, soft_cross_entropy, sparsify

MEMBERS = torch.tensor([[2, 1, 0, -1, 0.5, -0.5], [1, 3, -2, 0, 0, 1]])
LOGITS = torch.tensor([[0.5, -0.25, 1.5, 0, 0.25, -1], [-0.5, 0, 0.75, 0.1, -0.2, 2]])
STORED = SparseTarget(
    torch.tensor([[0.05, 0.2, 0.7], [0.01, 0.03, 0.9]]),  # the official order is not sorted, and need not be
    torch.tensor([[4, 0, 2], [1, 3, 5]]),
    classes=6,
)
LABELS = [[0.2, 0.016667, 0.7, 0.016667, 0.05, 0.016667], [0.02, 0.01, 0.02, 0.03, 0.02, 0.9]]


def ensemble(temperature: float) -> Tensor:
    return (MEMBERS / temperature).softmax(1).mean(0, keepdim=True)


def smooth_labels(index: list[int], smoothing: float) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), 6) * (1 - smoothing) + smoothing / 6


def test_recovered_ensemble() -> None:
    found = densify(sparsify(ensemble(1), 3))[0].tolist()
    assert found == pytest.approx([0.318217, 0.462100, 0.047189, 0.047189, 0.078117, 0.047189], abs=1e-6)


def test_recovered_labels() -> None:
    for row, wanted in zip(densify(STORED, clamp_minor=True).tolist(), LABELS, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


def test_loss_and_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = kl_divergence(logits, STORED)
    assert loss.item() == pytest.approx(0.236466, abs=1e-6)
    assert kl_divergence(LOGITS, torch.tensor(LABELS)).item() == pytest.approx(0.236466, abs=2e-6)
    assert soft_cross_entropy(LOGITS, STORED).item() == pytest.approx(0.939895, abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    wanted = [-0.013780, 0.032394, -0.115629, 0.043962, 0.042148, 0.010905]
    assert logits.grad[0].tolist() == pytest.approx(wanted, abs=1e-6)
    wanted = [0.013263, 0.033354, 0.071195, 0.027388, 0.021402, -0.166601]
    assert logits.grad[1].tolist() == pytest.approx(wanted, abs=1e-6)


def test_zeros_and_one_hot() -> None:
    assert kl_divergence(LOGITS, STORED, mode="zeros", compat="official").item() == pytest.approx(0.370261, abs=1e-6)
    assert kl_divergence(LOGITS, STORED, mode="zeros").item() == pytest.approx(0.387882, abs=1e-6)
    one_hot = torch.stack([densify(STORED)[0], torch.eye(6)[5]])
    assert kl_divergence(LOGITS, one_hot).item() == pytest.approx(0.378863, abs=1e-6)


def test_certain_teacher() -> None:
    """Mass above one by rounding: the official code flattens the label, ours keeps it."""
    certain = SparseTarget(torch.tensor([[1.0] + [1e-7] * 9]), torch.arange(10)[None], classes=20)
    official = densify(certain, compat="official")[0, :10].tolist()
    assert official == pytest.approx([0.2320] + [0.0853] * 9, abs=5e-5)
    ours = densify(certain, clamp_minor=True)[0]
    assert ours[0].item() == pytest.approx(1, abs=2e-6) and ours.sum().item() == pytest.approx(1, abs=1e-6)
    assert ours.min() >= 0 and torch.isfinite(kl_divergence(torch.randn(1, 20), certain))


def test_distillation_and_plain_training() -> None:
    row = LOGITS[:1]
    assert kl_divergence(row, ensemble(1)).item() == pytest.approx(0.864022, abs=1e-6)
    assert kl_divergence(row, ensemble(2), temperature=2).item() == pytest.approx(1.037585, abs=1e-6)
    hard = smooth_labels([2, 5], 0.1)
    assert soft_cross_entropy(LOGITS, hard).item() == pytest.approx(0.811478, abs=1e-6)
    mixed = 0.3 * hard + 0.7 * smooth_labels([0, 3], 0.1)
    assert soft_cross_entropy(LOGITS, mixed).item() == pytest.approx(1.724978, abs=1e-6)
