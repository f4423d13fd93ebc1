"""Sparse targets and their losses: the papers' worked numbers, and sparse = dense."""

from __future__ import annotations

import pytest
import torch

from vitlab.distill.sparse import SparseTarget, densify, kl_divergence, soft_cross_entropy, sparsify

HAND = SparseTarget(
    torch.tensor([[0.625, 0.25], [0.5, 0.375]]),
    torch.tensor([[3, 0], [1, 2]]),
    classes=5,
)
HAND_LOGITS = torch.tensor([[1, -0.5, 0, 2, 0.5], [0.2, 1.5, -1, 0, 0.3]])


def random_target(classes: int, k: int, rows: int = 16) -> tuple[torch.Tensor, SparseTarget]:
    generator = torch.Generator().manual_seed(classes + k)
    prob = (torch.randn(rows, classes, generator=generator) * 3).softmax(1)
    logits = torch.randn(rows, classes, generator=generator) * 2
    return logits, sparsify(prob, k)


def test_loss_by_hand() -> None:
    logits = HAND_LOGITS.clone().requires_grad_()
    loss = soft_cross_entropy(logits, HAND)
    assert loss.item() == pytest.approx(1.413667, abs=1e-6)
    rows = [soft_cross_entropy(HAND_LOGITS[i : i + 1], _row(HAND, i)).item() for i in (0, 1)]
    assert rows == pytest.approx([1.092459, 1.734875], abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.023288, 0.001862, 0.016585, -0.036017, 0.040858], abs=1e-6)


def _row(target: SparseTarget, i: int) -> SparseTarget:
    return SparseTarget(target.prob[i : i + 1], target.index[i : i + 1], target.classes)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("classes", "k"), [(5, 2), (10, 10), (1000, 100), (1000, 1)])
def test_sparse_equals_dense(classes: int, k: int, clamp: bool) -> None:
    logits, target = random_target(classes, k)
    target.prob = target.prob.half().float()  # stored rounding, so that some rows exceed one
    dense = densify(target, clamp_minor=clamp)
    sparse_logits, dense_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    sparse_loss = soft_cross_entropy(sparse_logits, target, clamp_minor=clamp)
    dense_loss = soft_cross_entropy(dense_logits, dense)
    assert sparse_loss.item() == pytest.approx(dense_loss.item(), rel=1e-6)
    sparse_loss.backward()
    dense_loss.backward()
    torch.testing.assert_close(sparse_logits.grad, dense_logits.grad, rtol=1e-5, atol=1e-7)
    wanted = (dense.sum(1, keepdim=True) * logits.softmax(1) - dense) / len(target)
    torch.testing.assert_close(sparse_logits.grad, wanted, rtol=1e-5, atol=1e-7)


def test_smooth_label_leaves_official_rounding_unless_clamped() -> None:
    over = SparseTarget(torch.tensor([[0.75, 0.26]]), torch.tensor([[1, 0]]), classes=4)
    assert densify(over)[0].tolist() == pytest.approx([0.26, 0.75, -0.005, -0.005], abs=1e-6)
    clamped = densify(over, clamp_minor=True)[0]
    assert clamped.tolist() == pytest.approx([0.26 / 1.01, 0.75 / 1.01, 0, 0], abs=1e-6)


def test_sparsify_orders_ties_by_class() -> None:
    prob = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1], [0.0, -0.0, 0.0, 1.0, 0.0, 0.0]])
    assert sparsify(prob, 4).index.tolist() == [[1, 3, 0, 2], [3, 0, 1, 2]]
    logits, target = random_target(50, 50)
    assert (target.prob.diff(dim=1) <= 0).all() and target.prob.sum(1).allclose(torch.ones(len(logits)))


@pytest.mark.parametrize("bad", [[[0.5, float("nan")]], [[1.1, -0.1]]])
def test_sparsify_refuses_what_is_no_probability(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=">= 0"):
        sparsify(torch.tensor(bad), 1)


@pytest.mark.parametrize("k", [0, 3])
def test_sparsify_refuses_other_k(k: int) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        sparsify(torch.full((1, 2), 0.5), k)


@pytest.mark.parametrize(("classes", "k"), [(6, 3), (6, 6), (200, 10)])
def test_sparse_kl_equals_dense_kl(classes: int, k: int) -> None:
    logits, target = random_target(classes, k)
    dense = kl_divergence(logits, densify(target, clamp_minor=True), temperature=2)
    assert kl_divergence(logits, target, temperature=2).item() == pytest.approx(dense.item(), rel=1e-5)


def test_losses_are_float32_under_autocast() -> None:
    logits, target = random_target(100, 10)
    for loss in (soft_cross_entropy, kl_divergence):
        expected = loss(logits, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert loss(logits, target).dtype == torch.float32
            assert loss(logits, target).item() == expected.item()


def test_shapes_are_checked() -> None:
    for loss in (soft_cross_entropy, kl_divergence):
        with pytest.raises(ValueError, match="same shape"):
            loss(HAND_LOGITS[:, :4], HAND)
    with pytest.raises(ValueError, match="do not fit"):
        SparseTarget(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.long), classes=2)
