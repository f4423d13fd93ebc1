"""Objectives on the labels alone, and the metrics of a training step: pure functions of logits and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.distill.sparse import SparseTarget


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


def accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of rows whose arg-max is the label's, mixed labels [B, C] counting by their largest entry; scalar."""
    truth = label if label.ndim == 1 else label.argmax(1)
    return (logits.argmax(1) == truth).to(torch.float32).mean()
