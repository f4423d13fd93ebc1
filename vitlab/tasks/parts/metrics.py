"""torchmetrics with float64 sums: means over images that are exact whatever the batches and the number of ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class MeanOverImages(Metric):
    """Sum over images divided by their number, both in float64; subclasses give the sum of a batch.

    torchmetrics' own aggregation keeps float32 sums, whose last digits depend on how the images were batched.
    """

    full_state_update = False
    higher_is_better: bool | None = None
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def batch_sum(self, logits: Tensor, label: Tensor) -> Tensor:
        """The sum over the images of a batch, a scalar."""
        raise NotImplementedError

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count a batch: logits [B, C] float32 and its labels."""
        self.total += float(self.batch_sum(logits, label))
        self.images += float(len(label))

    def compute(self) -> Tensor:
        """The mean, float64."""
        return self.total / self.images


class Top1(MeanOverImages):
    """Share of images whose largest logit is the label's."""

    higher_is_better = True

    def batch_sum(self, logits: Tensor, label: Tensor) -> Tensor:
        return (logits.argmax(1) == label).sum()


class NegativeLogLikelihood(MeanOverImages):
    """Mean of -log softmax(logits)[label], nats."""

    higher_is_better = False

    def batch_sum(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, reduction="sum")
