"""Objectives: pure functions from logits and what is known of a view to named losses; those on labels only are the
tasks' (:mod:`vitlab.tasks.parts.losses`).

Each returns a dict whose entry ``loss`` is what is minimised; other entries are its parts or companions, for the
record only.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vitlab.distill.sparse import SparseTarget, soft_cross_entropy
from vitlab.tasks.parts.losses import accuracy, label_cross_entropy

__all__ = ["Objective", "accuracy", "distillation", "label_cross_entropy"]


class Objective(Protocol):
    """logits [B, C], label [B] or [B, C], target from a teacher or None -> named scalar losses."""

    def __call__(self, logits: Tensor, label: Tensor, target: SparseTarget | Tensor | None) -> dict[str, Tensor]: ...


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
