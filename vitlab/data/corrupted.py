"""Test images as a network sees them, under the corruptions of ImageNet-C, made while they are read.

As in ImageNet-C the corruption follows the crop to the network's view, so that its strength refers to the pixels that
the network sees. A corrupted image is a function of (seed, corruption, severity, key of the image): not of the batch,
the order, the process that makes it, or the number of other images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vitlab.data.batch import Batch
from vitlab.data.sampler import Item
from vitlab.data.sources import Source
from vitlab.distill.views import EvalView
from vitlab.measure.corruptions import corrupt
from vitlab.measure.robustness_names import SEVERITIES

STRIDE = len(SEVERITIES) + 1  # a slot is STRIDE * corruption + severity


def image_seed(seed: int, key: str) -> int:
    """The seed of the noise of one image."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()[:8])


class CorruptedViews(Dataset[Batch]):
    """An item (index, c) is image ``index`` under ``corruptions[c]``, once for each of ``severities[c]``.

    The batch has a row for each of them; its ``slot`` is ``STRIDE * c + severity``. An image is decoded and cut once
    for all severities of a corruption.

    Args:
        corruptions: names, as in :data:`vitlab.measure.corruptions.CORRUPTIONS`.
        severities: of each of them.
    """

    def __init__(
        self,
        source: Source,
        view: EvalView,
        corruptions: Sequence[str],
        severities: Sequence[Sequence[int]],
        seed: int,
    ) -> None:
        self.source = source
        self.view = view
        self.corruptions = list(corruptions)
        self.severities = [list(one) for one in severities]
        self.seed = seed

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """The batch of these (index, corruption), each in all its severities.

        Raises:
            UserError: if an image does not decode.
        """
        rows = [(index, number, level) for index, number in items for level in self.severities[number]]
        image = torch.empty((len(rows), 3, self.view.height, self.view.width), dtype=torch.float32)
        label = torch.empty(len(rows), dtype=torch.int64)
        seen = -1  # rows of one image are consecutive, so that remembering the last one suffices
        for row, (index, number, level) in enumerate(rows):
            if index != seen:
                picture, target = self.source[index]
                plain, own, seen = self.view.cut(picture), image_seed(self.seed, self.source.keys[index]), index
            self.view.normalise(corrupt(plain, self.corruptions[number], level, own), out=image[row])
            label[row] = target
        index_, slot = np.array([(index, STRIDE * number + level) for index, number, level in rows]).T
        return Batch(image, label, torch.from_numpy(index_.copy()), torch.from_numpy(slot.copy()))
