"""CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

from vitlab.config import DatasetConfig
from vitlab.data.sets._cifar import open_cifar
from vitlab.data.sources import Source

DOWNLOADABLE = True


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """CIFAR-10, python version: ``cifar-10-batches-py/``; 50,000 training and 10,000 test images of 32x32 pixels."""
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return open_cifar(cfg, "cifar-10-batches-py", files, "batches.meta", "label_names", "labels")
