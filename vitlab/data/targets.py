"""Targets of images: transformed together with the pixels, then collated to a batch.

A task implements :class:`Targets` (:mod:`vitlab.tasks.base`), and data sets receive it as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitlab.distill.draw import Draw


class Targets(Protocol):
    """How the targets of a source become the labels of a batch."""

    def move(self, target: Any, drawn: Draw, width: int, height: int) -> Any:
        """The target of the view that ``drawn`` makes of an image of ``width`` x ``height`` pixels."""

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """The labels of a batch, [B, ...]."""


class ClassNumbers:
    """One class number for each image; no view changes it."""

    def move(self, target: Any, drawn: Draw, width: int, height: int) -> Any:
        return target

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """[B] int64."""
        return torch.tensor(targets, dtype=torch.int64)
