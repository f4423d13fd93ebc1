"""Objectives: pure functions from logits and what is known of a view to named losses; those on labels only are the
tasks' (:mod:`vitlab.tasks.parts.losses`).

Each returns a dict whose entry ``loss`` is what is minimised; other entries are its parts or companions, for the
record only. An objective that reads more than logits, label and one teacher is a :class:`StepObjective`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from vitlab.data.batch import Batch
from vitlab.distill.sparse import SparseTarget, soft_cross_entropy
from vitlab.tasks.parts.losses import accuracy, label_cross_entropy

__all__ = ["Objective", "accuracy", "distillation", "label_cross_entropy"]


class Objective(Protocol):
    """logits [B, C], label [B] or [B, C], target from a teacher or None -> named scalar losses."""

    def __call__(self, logits: Tensor, label: Tensor, target: SparseTarget | Tensor | None) -> dict[str, Tensor]: ...


class StepObjective(ABC):
    """An objective that reads the network's output as it is, the batch, several teachers, or how far training is."""

    @abstractmethod
    def __call__(
        self, output: Any, batch: Batch, targets: Mapping[str, SparseTarget | Tensor], step: int
    ) -> dict[str, Tensor]:
        """Named scalar losses.

        Args:
            output: what the network returns in training, for example two heads' logits, [B, C] each.
            targets: of each teacher by name; that of ``teacher=`` or of stored views is ``teacher``.
            step: index of the optimiser step that the batch belongs to, 0 for the first.
        """

    def logits(self, output: Any) -> Tensor:
        """What the metrics of training and validation are computed from, [B, C]. Override for other outputs."""
        return student_logits(output)


def student_logits(output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """The logits [B, C] of a network with one head or several.

    Several heads are averaged, as timm's distilled networks (DeiT, LeViT) do in evaluation: in training they return
    ``(class head, distillation head)`` after ``set_distilled_training()``. With labels alone the loss is that of the
    mean; a :class:`StepObjective` may give each head its own target (arXiv 2012.12877).

    Raises:
        TypeError: the outputs are not logits of one shape.
    """
    if isinstance(output, Tensor):
        return output
    if not isinstance(output, (tuple, list)) or not output or any(one.shape != output[0].shape for one in output):
        raise TypeError(
            f"The network returns {type(output).__name__}, not logits [B, C] or several of one shape: give "
            "a StepObjective whose logits() finds them."
        )
    return torch.stack(tuple(output)).mean(0)


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
