"""ImageNet-22k and its subsets: positions of other class lists among its 21,841 classes, and a head for them.

A class is named by its WordNet id (``n01440764``); the classes of ImageNet-22k are these ids, sorted (timm's list).
Exactly one class of ImageNet-1k is absent from it: number 850, n04399382.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torch import Tensor, nn

from vitlab.errors import list_names

CLASSES = 21_841
ABSENT = ("mean", "zero")
"""Weights of a class without a row: the mean of the others (finetuning), or zeros (evaluation: logit 0)."""

_WNID = re.compile(r"n\d{8}")


@functools.cache
def wordnet_ids_22k() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-22k in the order of its logits."""
    return tuple(ImageNetInfo("imagenet22k").label_names())


def class_map(classes: Sequence[str]) -> NDArray[np.int64] | None:
    """For each of ``classes`` [C] its place in ImageNet-22k, -1 where it has none; None if they are no subset of it.

    A list is a subset if all of its names are WordNet ids and at least half of them are classes of ImageNet-22k.
    """
    if not classes or not all(_WNID.fullmatch(name) for name in classes):
        return None
    place = {name: i for i, name in enumerate(wordnet_ids_22k())}
    found = np.array([place.get(name, -1) for name in classes], dtype=np.int64)
    return found if (found >= 0).mean() >= 0.5 else None


def head_note(rows: NDArray[np.int64], classes: Sequence[str], absent: str) -> str:
    """What becomes of a head of ImageNet-22k for ``classes`` [C], in words: how many were found, which were not.

    Args:
        rows: their class map.
        absent: as in :func:`map_rows`.
    """
    gone = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    text = f"{len(classes) - len(gone):,} of {len(classes):,} classes of the head are taken from ImageNet-22k's"
    if gone:
        start = "the mean of the others" if absent == "mean" else "zero"
        text += f"; absent there, so starting from {start}: {list_names(gone, 5)}"
    return text


def map_rows(tensor: Tensor, rows: NDArray[np.int64], absent: str = "mean") -> Tensor:
    """Rows of a head's weight [21841, D] or bias [21841] for other classes, [C, ...]; ``rows`` is a class map.

    ``absent``: a class without a row gets the mean of the rows that were found (TinyViT, official finetuning), or
    zeros, so that its logit is 0 (official evaluation of a 22k model on 1k).

    Raises:
        ValueError: for another ``absent``.
    """
    if absent not in ABSENT:
        raise ValueError(f"absent is one of {', '.join(ABSENT)}, not {absent!r}")
    index = torch.from_numpy(rows)
    there = index >= 0
    mapped = tensor[index.clamp(min=0)].clone()  # classes without a row read row 0, and are overwritten
    if not bool(there.all()):
        mapped[~there] = mapped[there].mean(0) if absent == "mean" else 0.0
    return mapped


def remap_head(model: nn.Module, rows: NDArray[np.int64], absent: str = "mean") -> None:
    """Replace the 22k classifier of a timm model by one for the classes of ``rows`` (a class map), in place.

    Raises:
        ValueError: if the classifier is not a linear layer of 21,841 logits.
    """
    old = model.get_classifier()  # type: ignore[operator]  # defined by timm's models, unknown to nn.Module
    if not isinstance(old, nn.Linear) or old.out_features != CLASSES:
        raise ValueError(f"a linear classifier of {CLASSES} classes is needed, found {old}")
    model.reset_classifier(len(rows))  # type: ignore[operator]
    new = model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        new.weight.copy_(map_rows(old.weight, rows, absent))
        if old.bias is not None:
            new.bias.copy_(map_rows(old.bias, rows, absent))
