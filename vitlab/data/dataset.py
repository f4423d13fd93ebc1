"""From (index, slot) to a batch: decode, draw, view, mix, and the stored targets of exactly these views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitlab.data.batch import Batch
from vitlab.data.sampler import Item
from vitlab.data.sources import Source
from vitlab.data.targets import ClassNumbers, Targets
from vitlab.distill.draw import Augmentation, draw, draw_mix, seeds_of
from vitlab.distill.formats import open_targets
from vitlab.distill.formats.tinyvit_v0 import V0Store
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.views import EvalView, View, mix_weight


class TrainViews(Dataset[Batch]):
    """Augmented views. A view is a function of (``base_seed``, slot, index): not of the batch, the rank or the process.

    With a store the seed is the stored one, so that the view is the one that the teacher saw, and the batch contains
    the stored output. Where the augmentation mixes, items come in pairs (2t, 2t+1); an odd last one stays unmixed.

    Args:
        store: folder of a sealed :class:`~vitlab.distill.store.TargetStore`, or of TinyViT's official store; opened
            in each process that reads.
        num_classes: width of the mixed label rows.
        targets: how the source's targets become labels.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        view: View,
        base_seed: int,
        num_classes: int,
        store: Path | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.source = source
        self.targets = targets or ClassNumbers()
        self.augmentation = augmentation
        self.view = view
        self.base_seed = base_seed
        self.num_classes = num_classes
        self.store = store
        self._opened: TargetStore | V0Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens its own memory maps: pickling one would copy the store.
        return self.__dict__ | {"_opened": None}

    def with_store(self, store: Path) -> TrainViews:
        """The same views with the targets of ``store``."""
        same = (self.source, self.augmentation, self.view, self.base_seed, self.num_classes)
        return TrainViews(*same, store, self.targets)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """The batch of these (index, slot).

        ``label`` is ``[B, K]`` float32 where the augmentation mixes, ``weight * own + (1 - weight) * partner`` with
        the share of the area that a CutMix box leaves; else what the task collates, for classes ``[B]`` int64.

        Raises:
            UserError: if an image does not decode.
        """
        index = np.array([item[0] for item in items], dtype=np.int64)
        slot = np.array([item[1] for item in items], dtype=np.int64)
        seeds, target = self._seeds(slot, index)
        image = torch.empty((len(items), 3, self.view.height, self.view.width), dtype=torch.float32)
        targets = []
        for row, (position, seed) in enumerate(zip(index.tolist(), seeds, strict=True)):
            picture, own = self.source[position]
            drawn = draw(self.augmentation, seed, *picture.size)
            targets.append(self.targets.move(own, drawn, *picture.size))
            self.view(picture, drawn, out=image[row])
        label = self.targets.collate(targets)
        if self.augmentation.mixes:
            label = self._mix(image, label, seeds)
        return Batch(image, label, torch.from_numpy(index), torch.from_numpy(slot), target)

    def _seeds(self, slot: np.ndarray, index: np.ndarray) -> tuple[list[int], SparseTarget | None]:
        if self.store is None:
            return seeds_of(self.base_seed, slot, index).tolist(), None
        if self._opened is None:  # on the first batch, in the process that reads
            self._opened = open_targets(self.store, self.source.keys, self.num_classes, self.augmentation.mixes)
        seeds, target = self._opened.gather(slot, index)
        return seeds.tolist(), target

    def _mix(self, image: Tensor, label: Tensor, seeds: list[int]) -> Tensor:
        """Mix the pairs of ``image`` in place; the label rows ``[B, K]``."""
        # Pairs are neighbours in the list of items, which the sampler keeps together: a partner is thus known from
        # (seed, epoch) alone, and a view can be replayed without the rest of its batch.
        rows = torch.nn.functional.one_hot(label, self.num_classes) if label.ndim == 1 else label
        rows = rows.to(torch.float32)
        for a in range(0, len(seeds) - 1, 2):
            b = a + 1
            # One draw for both members, seeded by both seeds, in either order: with the seed of one alone, a view that
            # gets another partner would repeat its previous mixture.
            mix = draw_mix(self.augmentation, seeds[a], seeds[b], self.view.height, self.view.width)
            if mix is None:
                continue
            # Both are computed before either is written: the second needs the unmixed pixels of the first.
            first, second = self.view.mix(image[a], image[b], mix), self.view.mix(image[b], image[a], mix)
            image[a], image[b] = first, second
            # The share of the pixels as mixed, not as drawn: a box is rounded and clipped at the border.
            weight = mix_weight(mix, self.view.size)
            own, other = rows[a].clone(), rows[b].clone()
            rows[a] = weight * own + (1 - weight) * other
            rows[b] = weight * other + (1 - weight) * own
        return rows


class EvalViews(Dataset[Batch]):
    """Views for measuring: no draw, slot -1."""

    def __init__(self, source: Source, view: EvalView, targets: Targets | None = None) -> None:
        self.source = source
        self.view = view
        self.targets = targets or ClassNumbers()

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """The batch of these indices.

        Raises:
            UserError: if an image does not decode.
        """
        image = torch.empty((len(items), 3, self.view.height, self.view.width), dtype=torch.float32)
        targets = []
        for row, index in enumerate(items):
            picture, target = self.source[index]
            targets.append(target)
            self.view(picture, out=image[row])
        label = self.targets.collate(targets)
        where = torch.tensor(items, dtype=torch.int64)
        return Batch(image, label, where, torch.full_like(where, -1))
