"""Views of Dataset Reinforcement: drawn to be labelled, or replayed from stored parameters with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitlab.data.batch import Batch
from vitlab.data.dataset import TrainViews
from vitlab.data.sampler import Item
from vitlab.data.sources import Source
from vitlab.distill.draw import Draw, draw, seeds_of
from vitlab.distill.formats import open_reinforcements
from vitlab.distill.reinforce_draw import Reinforcement, sample
from vitlab.distill.reinforce_record import encode
from vitlab.distill.reinforce_store import Reinforcements
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.views import CropOutside, View
from vitlab.errors import UserError


@dataclass
class RecordBatch(Batch):
    """Views to be labelled, all samples of an image together, and the fields of their records."""

    fields: dict[str, NDArray[Any]] = field(default_factory=dict)

    def pin_memory(self) -> RecordBatch:
        """The same batch in page-locked memory."""
        return replace(self, image=self.image.pin_memory())


class ReinforcingViews(Dataset[Batch]):
    """The views of samples ``samples`` of each image; an image is decoded once for all of them.

    A view is a function of (``seed``, image, sample), see :func:`~vitlab.distill.reinforce_draw.sample`.
    """

    def __init__(self, source: Source, views: Reinforcement, view: View, seed: int, samples: range) -> None:
        self.source = source
        self.views = views
        self.view = view
        self.seed = seed
        self.samples = samples

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Views [len(items) x samples] of these images, image by image; ``label`` is the image's own.

        Raises:
            UserError: if an image does not decode.
        """
        pictures = _Pictures(self.source)
        rows = len(items) * len(self.samples)
        image = torch.empty((rows, 3, self.view.height, self.view.width), dtype=torch.float32)
        draws: list[Draw] = []
        for index in items:
            for number in self.samples:
                drawn = sample(self.views, self.seed, index, number, len(self.source), pictures.size_of)
                make_view(self.view, pictures, index, drawn, image[len(draws)])
                draws.append(drawn)
        label = torch.tensor([pictures.label_of(index) for index in items]).repeat_interleave(len(self.samples))
        where = torch.tensor(list(items)).repeat_interleave(len(self.samples))
        slot = torch.tensor(list(self.samples)).repeat(len(items))
        return RecordBatch(image, label, where, slot, None, encode(self.views, draws))


class ReplayedViews(TrainViews):
    """Stored views replayed, with the teacher's stored probabilities.

    A slot past the stored samples means a plain view of the image, with the augmentation of ``plain`` and probability 1
    for its label (the share 1 - p of the official code).

    Args:
        plain: makes the plain views; its augmentation does not mix.
        folders: of the reinforcements; opened in each process that reads.
        view: of the replayed ones; it resizes with the filter of the views that the teacher saw.
    """

    def __init__(self, plain: TrainViews, folders: Sequence[Path], view: View) -> None:
        super().__init__(plain.source, plain.augmentation, plain.view, plain.base_seed, plain.num_classes)
        self.folders = folders
        self.replayed = view
        self._reader: Reinforcements | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_reader": None}

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """The batch of these (index, slot); ``label`` is the image's own also where another one is mixed in.

        Raises:
            UserError: if an image does not decode, or is smaller than what was cut from it.
        """
        if self._reader is None:
            self._reader = open_reinforcements(self.folders, len(self.source), self.num_classes)
        index = np.array([item[0] for item in items], dtype=np.int64)
        slot = np.array([item[1] for item in items], dtype=np.int64)
        plain = slot >= self._reader.samples
        # One read for the batch: rows of plain views read sample 0, and are overwritten below.
        draws, target = self._reader.read(np.where(plain, 0, slot), index)
        seeds = seeds_of(self.base_seed, slot, index).tolist()
        image = torch.empty((len(items), 3, self.replayed.height, self.replayed.width), dtype=torch.float32)
        label = torch.empty(len(items), dtype=torch.int64)
        pictures = _Pictures(self.source)  # for this batch only: the cache would otherwise grow to the data set
        for row, position in enumerate(index.tolist()):
            picture, label[row] = pictures[position]
            if plain[row]:
                self.view(picture, draw(self.augmentation, seeds[row], *picture.size), out=image[row])
                _set_one_hot(target, row, int(label[row]))
            else:
                try:
                    make_view(self.replayed, pictures, position, draws[row], image[row])
                except CropOutside as error:
                    raise UserError(
                        f"The stored views are of other images: {self.source.keys[position]} or its partner in "
                        f"the mixture is too small ({error}).",
                        "Crops are in pixels of the images as downloaded: give those, not resized copies.",
                    ) from None
        return Batch(image, label, torch.from_numpy(index), torch.from_numpy(slot), target)


class _Pictures:
    """Images of one batch, each decoded once: a partner of a mixture may be in the batch, or be used twice."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: dict[int, tuple[Image.Image, int]] = {}

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index not in self._kept:
            self._kept[index] = self._source[index]
        return self._kept[index]

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height)."""
        return self[index][0].size

    def label_of(self, index: int) -> int:
        return self[index][1]


def make_view(view: View, pictures: _Pictures, index: int, drawn: Draw, out: Tensor) -> None:
    """Write the view [3, H, W] of an image into ``out``; a partner is decoded only where one is mixed in.

    Raises:
        CropOutside: the draw was made for another image.
    """
    view(pictures[index][0], drawn, out=out)
    mix = drawn.mix
    if mix is not None:
        if mix.partner is None or mix.draw is None:
            raise ValueError("a stored mix names its partner and the partner's draw")
        other = view(pictures[mix.partner][0], mix.draw)
        out.copy_(view.mix(out, other, mix))


def _set_one_hot(target: SparseTarget, row: int, label: int) -> None:
    """Give ``label`` probability one in ``row``; the other kept classes are any, with probability zero."""
    kept = target.prob.shape[1]
    target.index[row] = (label + torch.arange(kept)) % target.classes
    target.prob[row] = torch.eye(1, kept)[0]
