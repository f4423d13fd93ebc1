"""The losses of Dataset Reinforcement's students (section 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.distill.sparse import SparseTarget, kl_divergence


def reinforced(
    logits: Tensor,
    label: Tensor,
    target: SparseTarget | Tensor | None,
    *,
    densify: str = "smooth",
    compat: str = "vitlab",
) -> dict[str, Tensor]:
    """KL(target || softmax(logits)), mean over the batch, fp32; the label is not used.

    Args:
        logits: [B, C].
        label: [B]; used only for the teacher's accuracy.
        target: the K stored probabilities of each view.
        densify, compat: how they become a distribution over C classes (:func:`~vitlab.distill.sparse.densify`).

    Raises:
        ValueError: if there is no target.
    """
    if target is None:
        raise ValueError("reinforced training needs the stored output of every view")
    loss = kl_divergence(logits, target, mode=densify, compat=compat)
    return {"loss": loss, "teacher_accuracy": _share(target, label)}


def distilled(
    logits: Tensor,
    label: Tensor,
    target: SparseTarget | Tensor | None,
    *,
    temperature: float = 1.0,
    lambda_kd: float = 1.0,
    lambda_cls: float = 0.0,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """lambda_kd T^2 KL(teacher || student), both at temperature T, + lambda_cls cross-entropy with the label.

    Args:
        logits: [B, C].
        label: class ids [B] or mixed rows [B, C].
        target: the teacher's probabilities [B, C] at temperature T.

    Raises:
        ValueError: if there is no target.
    """
    if target is None:
        raise ValueError("distillation needs a teacher's output for every view")
    loss = lambda_kd * kl_divergence(logits, target, temperature)
    if lambda_cls:
        loss = loss + lambda_cls * F.cross_entropy(logits.float(), label, label_smoothing=smoothing)
    return {"loss": loss, "teacher_accuracy": _share(target, label)}


def _share(target: SparseTarget | Tensor, label: Tensor) -> Tensor:
    """Share of rows whose most probable class is the label's."""
    with torch.no_grad():
        best = target.argmax(1) if isinstance(target, Tensor) else target.argmax()
        truth = label if label.ndim == 1 else label.argmax(1)
        return (best == truth).to(torch.float32).mean()
