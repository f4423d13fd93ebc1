"""A synthetic set for smoke tests; metrics on it mean nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitlab.config import DatasetConfig
from vitlab.data.sources import Labels, Source, Strings


class Fake:
    """Synthetic, learnable images: a class is a direction and a hue of stripes, under noise.

    Image i is a function of (split, i) alone. The size varies and is never square, as in real folders.
    """

    in_memory = True
    synthetic = True

    def __init__(self, length: int, num_classes: int, split_name: str) -> None:
        self.classes = [f"class_{c}" for c in range(num_classes)]
        self.keys = Strings(f"{split_name}/{i}" for i in range(length))
        self.labels: Labels = np.arange(length, dtype=np.int64) % num_classes
        self.split_name = split_name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = int(self.labels[index])
        # PCG64 by name: the stream of default_rng may change with NumPy, and stored targets belong to these pixels.
        rng = np.random.Generator(np.random.PCG64([0 if self.split_name == "train" else 1, int(index)]))
        width, height = 48 + int(rng.integers(0, 17)), 40 + int(rng.integers(0, 5))
        share = label / len(self.classes)
        y, x = np.mgrid[0:height, 0:width]
        angle = np.pi * share + rng.normal(0, 0.03)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.6 + rng.uniform(0, 2 * np.pi))
        hue = 0.5 + 0.3 * np.cos(2 * np.pi * (share + np.array([0, 1 / 3, 2 / 3])))
        pixels = hue * (0.7 + 0.3 * wave[..., None]) + rng.normal(0, 0.08, (height, width, 3))
        return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8)), label


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """``dataset.length`` training images and a quarter as many (at least one a class) for testing."""
    test = max(cfg.length // 4, cfg.num_classes)
    return {"train": Fake(cfg.length, cfg.num_classes, "train"), "test": Fake(test, cfg.num_classes, "test")}
