"""Pictures with several real digits of scikit-learn, a multilabel set; nothing is downloaded."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitlab.config import DatasetConfig
from vitlab.data.sets import digits
from vitlab.data.sources import Arrays, Source, Strings

SIDE = 32  # pixels of a picture: 2 x 2 places of 16
COUNTS = {"train": 3000, "val": 300, "test": 300}
"""Pictures of each split; these numbers are part of the data set, not of a recipe."""

SHARES = (0.3, 0.3, 0.25, 0.15)
"""Of pictures with one, two, three and four digits."""


class MultiDigitImages:
    """Pictures with one to four digits, each anywhere within its quarter of the picture.

    The target is a row of ten 0 and 1: the digits that occur, once or more often. Picture i is a function of (split, i)
    alone.
    """

    in_memory = True

    def __init__(self, pool: Arrays, split_name: str) -> None:
        self.classes = pool.classes
        self.split_name = split_name
        count = COUNTS[split_name]
        self.keys = Strings(f"{split_name}/{i}" for i in range(count))
        self.images = np.zeros((count, SIDE, SIDE), np.uint8)
        self.labels = np.zeros((count, len(self.classes)), np.uint8)
        for i in range(count):
            rng = np.random.Generator(np.random.PCG64([sorted(COUNTS).index(split_name), i]))
            places = rng.permutation(4)[: 1 + int(rng.choice(len(SHARES), p=SHARES))]
            for place in places:
                chosen = int(rng.integers(len(pool)))
                top, left = 16 * (int(place) // 2), 16 * (int(place) % 2)
                self._paste(i, pool.images[chosen], top, left, rng)
                self.labels[i, int(pool.labels[chosen])] = 1

    def _paste(self, i: int, digit: np.ndarray, top: int, left: int, rng: np.random.Generator) -> None:
        """One digit at 11 to 15 pixels a side within its quarter."""
        side = int(rng.integers(11, 16))
        scaled = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))
        down, right = (int(rng.integers(0, 17 - side)) for _ in range(2))
        self.images[i, top + down : top + down + side, left + right : left + right + side] = scaled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        return Image.fromarray(self.images[index]).convert("RGB"), self.labels[index]


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """3,000 pictures to train on, 300 to validate and 300 to measure; no splits share a digit (:func:`digit_pools`)."""
    found: dict[str, Source] = {split: MultiDigitImages(pool, split) for split, pool in digit_pools(cfg).items()}
    return found


def digit_pools(cfg: DatasetConfig) -> dict[str, Arrays]:
    """The digits in the pictures of each split: those of test are the test digits of ``dataset=digits``,
    those of val every fifth of its training digits, those of train the others."""
    parts = digits.splits(cfg)
    train, test = parts["train"], parts["test"]
    assert isinstance(train, Arrays) and isinstance(test, Arrays)
    chosen = np.arange(len(train)) % 5 == 0
    return {"train": _part(train, ~chosen), "val": _part(train, chosen), "test": test}


def _part(source: Arrays, chosen: np.ndarray) -> Arrays:
    where = np.flatnonzero(chosen)
    keys = [source.keys[int(i)] for i in where]
    return Arrays(source.images[where], source.labels[where], source.classes, keys, source.split_name)
