"""Objectives: pure functions from logits and what is known of a view to named losses.

Each returns a dict whose entry ``loss`` is what is minimised; other entries are its parts or companions, for the
record only.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.distill.sparse import SparseTarget, soft_cross_entropy


class Objective(Protocol):
    """logits [B, C], label [B] or [B, C], target from a teacher or None -> named scalar losses."""

    def __call__(self, logits: Tensor, label: Tensor, target: SparseTarget | Tensor | None) -> dict[str, Tensor]: ...


def label_cross_entropy(
    logits: Tensor, label: Tensor, target: SparseTarget | Tensor | None = None, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Cross-entropy with the labels, computed in fp32.

    Args:
        logits: [B, C].
        label: class ids [B], or mixed labels [B, C] whose rows sum to 1.
        target: not used: there is no teacher.
        smoothing: share s of the label spread evenly over all C classes, in the mixed label too.
    """
    return {"loss": F.cross_entropy(logits.float(), label, label_smoothing=smoothing)}


def distillation(
    logits: Tensor, label: Tensor, target: SparseTarget | Tensor | None, *, clamp_minor: bool = False
) -> dict[str, Tensor]:
    """TinyViT Eq. 1: cross-entropy with the teacher's soft label of the same view; the label is not used.

    Args:
        logits: [B, C].
        label: [B] or mixed [B, C]; only the teacher's own accuracy is measured with it.
        target: the K largest probabilities of each row, or all of them [B, C].
        clamp_minor: do not let rounding make the mass of the other classes negative.

    Raises:
        ValueError: if there is no target.
    """
    if target is None:
        raise ValueError("distillation needs a teacher's output for every view")
    loss = soft_cross_entropy(logits, target, clamp_minor=clamp_minor)
    with torch.no_grad():
        best = target.argmax(1) if isinstance(target, Tensor) else target.argmax()
        truth = label if label.ndim == 1 else label.argmax(1)
        return {"loss": loss, "teacher_accuracy": (best == truth).to(torch.float32).mean()}


def accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of rows whose arg-max is the label's, mixed labels [B, C] counting by their largest entry; scalar."""
    truth = label if label.ndim == 1 else label.argmax(1)
    return (logits.argmax(1) == truth).to(torch.float32).mean()
