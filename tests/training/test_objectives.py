"""The losses that stages minimise, and the accuracies that they report, against values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitlab.distill.sparse import SparseTarget
from vitlab.training.objectives import accuracy, distillation, label_cross_entropy

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
LOG = LOGITS - LOGITS.exp().sum(1, keepdim=True).log()
LABEL = torch.tensor([0, 2])
MIXED = torch.tensor([[0.75, 0.0, 0.25], [0.5, 0.0, 0.5]])


def test_labels() -> None:
    given = label_cross_entropy(LOGITS, LABEL)
    assert set(given) == {"loss"}
    torch.testing.assert_close(given["loss"], -(LOG[0, 0] + LOG[1, 2]) / 2)
    torch.testing.assert_close(label_cross_entropy(LOGITS, MIXED)["loss"], -(MIXED * LOG).sum(1).mean())


@pytest.mark.parametrize("label", [LABEL, MIXED], ids=["ids", "mixed"])
def test_smoothing_spreads_a_share_over_all_classes(label: Tensor) -> None:
    full = label if label.ndim == 2 else torch.eye(3)[label]
    smooth = 0.7 * full + 0.3 / 3
    torch.testing.assert_close(label_cross_entropy(LOGITS, label, smoothing=0.3)["loss"], -(smooth * LOG).sum(1).mean())


def test_distillation_reads_the_teacher_and_not_the_label() -> None:
    # Probabilities as official code stores them: the largest need not stand first.
    sparse = SparseTarget(torch.tensor([[0.2, 0.7], [0.5, 0.4]]), torch.tensor([[2, 0], [1, 2]]), 3)
    dense = torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.5, 0.4]])
    for target in (sparse, dense):
        losses = distillation(LOGITS, LABEL, target)
        torch.testing.assert_close(losses["loss"], -(dense * LOG).sum(1).mean())
        assert losses["teacher_accuracy"] == 0.5, "right of the first view, class 1 instead of 2 of the second"
        mixed = distillation(LOGITS, torch.tensor([[0.2, 0.8, 0.0], [0.1, 0.9, 0.0]]), target)
        assert mixed["loss"] == losses["loss"]
        assert mixed["teacher_accuracy"] == 0.5, "the largest share of a mixed label counts"
    with pytest.raises(ValueError, match="needs a teacher's output"):
        distillation(LOGITS, LABEL, None)


def test_accuracy() -> None:
    assert accuracy(LOGITS, LABEL) == 0.5
    assert accuracy(LOGITS, torch.tensor([0, 1])) == 1
    assert accuracy(LOGITS, torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])) == 1
    assert accuracy(LOGITS, torch.tensor([[0.1, 0.3, 0.6], [0.2, 0.7, 0.1]])) == 0.5
