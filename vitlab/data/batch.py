"""The batch: what every loader yields and every step reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitlab.distill.sparse import SparseTarget


@dataclass
class Batch:
    """Views with their labels and the two numbers that reproduce each view.

    Attributes:
        image: ``[B, C, H, W]`` float32, normalised with the student's mean and standard deviation.
        label: ``[B]`` int64 class numbers; ``[B, K]`` float32 rows that sum to one where images are mixed; with several
            labels an image, rows of 0 and 1, or in between where images are mixed.
        index: ``[B]`` int64, position of the image in its source.
        slot: ``[B]`` int64, which of the image's views this is; -1 for an evaluation view.
        target: stored teacher output of exactly these views, or None.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    slot: Tensor
    target: SparseTarget | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.image.to(device, non_blocking=non_blocking),
            self.label.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
            self.slot.to(device, non_blocking=non_blocking),
            None if self.target is None else self.target.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the loader's pinning thread calls this."""
        return Batch(
            self.image.pin_memory(),
            self.label.pin_memory(),
            self.index.pin_memory(),
            self.slot.pin_memory(),
            None if self.target is None else self.target.pin_memory(),
        )
