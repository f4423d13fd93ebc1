"""Losses of pruning and finetuning (specification 8 and 9; arXiv 2012.12877 for the hard labels of a CNN).

A distilled network has two heads, and its answer is the mean of their logits. In every loss below ``heads`` is the
tuple of the logits of all heads, of one for a network that is not distilled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitlab.data.batch import Batch
from vitlab.distill.sparse import SparseTarget
from vitlab.training.objectives import Objective, StepObjective, student_logits

Heads = tuple[Tensor, ...]

CNN_LOSSES = ("hard", "soft", "none")
PAIRS = ("mean", "each")


def heads_of(output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Heads:
    """The logits [B, C] of each head."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def kl_divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) of softmax(z / tau), the mean over the batch; no factor tau^2.

    The official weight 1e5 multiplies the mean over batch and classes: at 1000 classes that is 100 times this.

    Args:
        student, teacher: logits [B, C].
        tau: temperature.
    """
    log_q, log_p = (F.log_softmax(one.float() / tau, 1) for one in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def dense_divergence(student: Heads, teacher: Heads, tau: float, pairs: str) -> Tensor:
    """KL divergence from the dense network.

    Args:
        student, teacher: logits of their heads.
        pairs: ``mean``: of the means of the heads (pruning, specification 8); ``each``: the mean of the divergences
            head by head (finetuning, specification 9).

    Raises:
        ValueError: another name, or heads that do not pair.
    """
    if pairs == "mean":
        return kl_divergence(student_logits(student), student_logits(teacher), tau)
    if pairs != "each":
        raise ValueError(f"pairs is one of {', '.join(PAIRS)}, not {pairs!r}")
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} heads of the student do not pair with {len(teacher)} of the teacher")
    divergences = [kl_divergence(one, other, tau) for one, other in zip(student, teacher, strict=True)]
    return torch.stack(divergences).mean()


def cnn_loss(student: Heads, label_loss: Tensor, cnn: Tensor, kind: str, alpha: float, tau: float) -> Tensor:
    """(1 - alpha) * label loss + alpha * loss of the last head against a CNN.

    Args:
        student: logits of the heads; the last is that of distillation.
        label_loss: cross-entropy of the answer with the (mixed) label.
        cnn: probabilities of the CNN [B, C].
        kind: ``hard``: cross-entropy with the CNN's class; ``soft``: KL divergence at temperature ``tau``, times
            tau^2, the mean over batch and classes.
        alpha: share of the CNN.

    Raises:
        ValueError: another kind.
    """
    last = student[-1].float()
    if kind == "hard":
        loss = F.cross_entropy(last, cnn.argmax(1))
    elif kind == "soft":
        log_q, log_p = F.log_softmax(last / tau, 1), F.log_softmax(cnn.float().clamp_min(1e-30).log() / tau, 1)
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * tau**2 / last.numel()
    else:
        raise ValueError(f"the CNN's loss is one of {', '.join(CNN_LOSSES)}, not {kind!r}")
    return (1 - alpha) * label_loss + alpha * loss


@dataclass(frozen=True)
class PruningObjective(StepObjective):
    """kl_weight * KL(dense network) + ce_weight * (label loss, with the share ``alpha`` of a CNN where there is one).

    Attributes:
        labels: the task's loss of the answer with the labels.
        kl_weight: of the divergence from the dense network, whose head logits are the target ``dense``.
        kl_tau: its temperature.
        kl_pairs: see :func:`dense_divergence`.
        kl_from: first optimiser step that has the divergence: pruning begins it after the first event.
        ce_weight: of the rest.
        cnn, alpha, cnn_tau: see :func:`cnn_loss`; ``none``, or no target ``teacher``: the labels alone.
    """

    labels: Objective
    kl_weight: float = 100.0
    kl_tau: float = 3.0
    kl_pairs: str = "mean"
    kl_from: int = 0
    ce_weight: float = 1.0
    cnn: str = "hard"
    alpha: float = 0.5
    cnn_tau: float = 1.0

    def __call__(
        self, output: Any, batch: Batch, targets: Mapping[str, SparseTarget | Tensor], step: int
    ) -> dict[str, Tensor]:
        """Named losses; ``targets["dense"]`` is [heads, B, C], logits, and ``targets["teacher"]`` [B, C],
        probabilities."""
        heads = heads_of(output)
        base = self.labels(student_logits(heads), batch.label, None)["loss"]
        named = {"label_loss": base.detach()}
        cnn = targets.get("teacher")
        if cnn is not None and self.cnn != "none":
            assert isinstance(cnn, Tensor)
            base = cnn_loss(heads, base, cnn, self.cnn, self.alpha, self.cnn_tau)
            named["cnn_loss"] = base.detach()
        loss = self.ce_weight * base
        dense = targets.get("dense")
        if dense is not None and self.kl_weight:
            assert isinstance(dense, Tensor)
            divergence = dense_divergence(heads, tuple(dense), self.kl_tau, self.kl_pairs)
            named["kl"] = divergence.detach()
            if step >= self.kl_from:
                loss = loss + self.kl_weight * divergence
        return {"loss": loss, **named}
