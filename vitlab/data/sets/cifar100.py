"""CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from vitlab.config import DatasetConfig
from vitlab.data.sets._cifar import open_cifar
from vitlab.data.sources import Source

DOWNLOADABLE = True


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """CIFAR-100, python version, fine labels: ``cifar-100-python/``; 50,000 training and 10,000 test images."""
    files = {"train": ["train"], "test": ["test"]}
    return open_cifar(cfg, "cifar-100-python", files, "meta", "fine_label_names", "fine_labels")
