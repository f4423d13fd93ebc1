"""Losses of pruning and finetuning (specification 8 and 9)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from vitlab.data.batch import Batch
from vitlab.methods.nvit.losses import PruningObjective, cnn_loss, dense_divergence, kl_divergence
from vitlab.tasks.parts.losses import label_cross_entropy

torch.manual_seed(0)
CLS, DIST, TEACHER, OTHER = (3 * torch.randn(4, 5) for _ in range(4))
LABEL = torch.tensor([0, 1, 2, 3])
BATCH = Batch(torch.zeros(4, 3, 2, 2), LABEL, LABEL, LABEL)


def test_the_divergence_is_the_official_one_times_the_classes() -> None:
    """1e5 times the mean over batch and classes is 100 times this at 1000 classes."""
    student, teacher = torch.randn(2, 1000), torch.randn(2, 1000)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    official = 1e5 * (p * (p.log() - q.log())).mean()
    torch.testing.assert_close(100 * kl_divergence(student, teacher, 3.0), official, rtol=1e-5, atol=0)


def test_heads_are_compared_by_their_mean_or_one_by_one() -> None:
    mean = dense_divergence((CLS, DIST), (TEACHER, OTHER), 3.0, "mean")
    torch.testing.assert_close(mean, kl_divergence((CLS + DIST) / 2, (TEACHER + OTHER) / 2, 3.0))
    each = dense_divergence((CLS, DIST), (TEACHER, OTHER), 20.0, "each")
    torch.testing.assert_close(each, (kl_divergence(CLS, TEACHER, 20.0) + kl_divergence(DIST, OTHER, 20.0)) / 2)
    with pytest.raises(ValueError, match="do not pair"):
        dense_divergence((CLS,), (TEACHER, OTHER), 1.0, "each")


def test_the_cnn_is_the_target_of_the_last_head() -> None:
    labels, cnn = torch.tensor(2.0), TEACHER.softmax(1)
    hard = cnn_loss((CLS, DIST), labels, cnn, "hard", 0.25, 1.0)
    torch.testing.assert_close(hard, 0.75 * labels + 0.25 * F.cross_entropy(DIST, cnn.argmax(1)))
    soft = cnn_loss((CLS, DIST), labels, cnn, "soft", 1.0, 2.0)
    p = cnn.sqrt() / cnn.sqrt().sum(1, keepdim=True)
    expected = 4 * (p * (p.log() - (DIST / 2).log_softmax(1))).mean()
    torch.testing.assert_close(soft, expected)


def test_the_parts_add_up_and_the_divergence_begins_after_the_first_event() -> None:
    objective = PruningObjective(partial(label_cross_entropy, smoothing=0.1), kl_weight=100, kl_from=3, ce_weight=0.5)
    targets = {"dense": torch.stack([TEACHER, OTHER]), "teacher": TEACHER.softmax(1)}
    before, after = (objective((CLS, DIST), BATCH, targets, step) for step in (2, 3))
    answer = (CLS + DIST) / 2
    labels = F.cross_entropy(answer, LABEL, label_smoothing=0.1)
    base = 0.5 * labels + 0.5 * F.cross_entropy(DIST, TEACHER.argmax(1))
    torch.testing.assert_close(before["loss"], 0.5 * base)
    torch.testing.assert_close(after["loss"], 0.5 * base + 100 * kl_divergence(answer, (TEACHER + OTHER) / 2, 3.0))
    assert set(after) == {"loss", "label_loss", "cnn_loss", "kl"}


def test_a_plain_network_without_teachers_has_the_labels_alone() -> None:
    found = PruningObjective(label_cross_entropy)(CLS, BATCH, {}, 0)
    torch.testing.assert_close(found["loss"], F.cross_entropy(CLS, LABEL))
