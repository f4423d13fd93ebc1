"""Real handwritten digits, contained in scikit-learn; nothing is downloaded."""

from __future__ import annotations

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.sources import Arrays, Source
from vitlab.data.subsets import held_out

HELD_OUT = 0.25
"""Share of each class that is the digits' test split; this number is part of the data set, not of a recipe."""


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """1,797 handwritten digits of 8x8 pixels (UCI optical recognition of handwritten digits, as in scikit-learn).

    The set has no split of its own. vitlab's is fixed: in each class, the quarter (rounded half to even) of the
    images with the smallest SHA-256 of ``"0:<index>"`` is ``test``, which makes 1,347 training and 450 test images.
    Grey levels 0..16 are shown as 0..255.
    """
    from sklearn.datasets import load_digits  # 1-2 s of import, paid only by those who use it

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = np.asarray(data.target, dtype=np.int64)
    keys = [str(i) for i in range(len(labels))]
    test = held_out(keys, labels, HELD_OUT)
    classes = [str(name) for name in data.target_names]

    def part(chosen: np.ndarray, split: str) -> Arrays:
        where = np.flatnonzero(chosen)
        return Arrays(images[where], labels[where], classes, [keys[i] for i in where], split)

    return {"train": part(~test, "train"), "test": part(test, "test")}
