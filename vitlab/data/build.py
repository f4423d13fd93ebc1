"""From a dataset config to sources.

A data set of your own plugs in with one function, ``open(cfg) -> {"train": source, "test": source}``, named in
:data:`SOURCES`, and a file ``conf/dataset/<name>.yaml``. Anything with ``__len__`` and ``__getitem__ -> (PIL image,
target)`` becomes a source by :class:`vitlab.data.sources.MapStyle`::

    class Shells:                                    # pictures of shells, one folder a month, labels in a table
        def __init__(self, root): ...
        def __len__(self): ...
        def __getitem__(self, i): return image, species

    def shells(cfg):
        return {"train": MapStyle(Shells(cfg.root), ["cowrie", "limpet"], "train", labels=..., keys=...)}

    SOURCES["shells"] = shells

``train`` is needed; of ``val`` and ``test`` one stands in for the other where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data import digits_multi, embedded, folder, torchvision_sets
from vitlab.data.sources import Source, Subset, hold_out, limit, per_class_subset
from vitlab.errors import UserError, nearest

SPLITS = ("train", "val", "test")

SOURCES: dict[str, Callable[[DatasetConfig], dict[str, Source]]] = {
    "digits": embedded.digits,
    "digits_multi": digits_multi.splits,
    "fake": embedded.fake,
    "cifar10": torchvision_sets.cifar10,
    "cifar100": torchvision_sets.cifar100,
    "flowers102": torchvision_sets.flowers102,
    "food101": torchvision_sets.food101,
    "imagenet": torchvision_sets.imagenet,
    "folder": folder.folder,
}
"""Data set name to the function that opens its splits."""


def open_splits(
    cfg: DatasetConfig, seed: int, max_images: int | None = None, measuring: bool = False
) -> dict[str, Source]:
    """Sources of ``train``, ``val`` and ``test``, listing the files once.

    Where a set has no ``val``, ``dataset.val_fraction`` of ``train`` is held out as such; with a fraction of 0 ``test``
    stands in for it. A set without ``test`` is measured on its ``val``, and keeps doing so when a part of ``train`` is
    held out. ``source.split_name`` says which split it really is.

    ``dataset.labels_per_class`` thins out what is left of ``train``; ``max_images`` cuts every split. Both choose by a
    hash of (``seed``, key) within each class.

    ``measuring``: nothing is trained, and a set without ``train`` gets an empty one.

    Raises:
        UserError: if the name is unknown, the data are missing, a split that is needed is empty or absent, or a part of
            ``train`` is to be held out of a set that has both ``val`` and ``test``.
    """
    if cfg.name not in SOURCES:
        close = nearest(cfg.name, SOURCES)
        raise UserError(
            f"dataset.name={cfg.name} is unknown.",
            (f"Did you mean {close}? " if close else "") + f"There are: {', '.join(sorted(SOURCES))}.",
        )
    found = SOURCES[cfg.name](cfg)
    if measuring and "train" not in found and found:
        found["train"] = Subset(next(iter(found.values())), np.zeros(0, np.int64))
        found["train"].split_name = "train"
        cfg = replace(cfg, val_fraction=0.0, labels_per_class=None)  # there is nothing to take them from
    elif "train" not in found:
        raise UserError(
            f"Data set '{cfg.name}' has no train split, only {', '.join(sorted(found)) or 'nothing'}.",
            "Put the training images in train/, or give the data without split folders.",
        )
    if cfg.val_fraction and cfg.name != "folder":  # a folder holds out its own part, whole groups together
        if {"val", "test"} <= set(found):
            raise UserError(
                f"dataset.val_fraction={cfg.val_fraction:g}: {cfg.name} has a val split of its own.", "Leave it out."
            )
        if measured := found.get("test", found.get("val")):
            train, val = hold_out(found["train"], cfg.val_fraction)
            found = {"train": train, "val": val, "test": measured}
    held = found.get("val", found.get("test"))
    if held is None:
        raise UserError(
            f"Data set '{cfg.name}' has neither a val nor a test split.", "Measuring needs images held out: add one."
        )
    splits = {"train": found["train"], "val": held, "test": found.get("test", held)}
    for name, source in splits.items():
        if len(source) == 0 and not (measuring and name == "train"):
            raise UserError(f"Data set '{cfg.name}': the {name} split holds no images.", "")
        if source.classes != found["train"].classes:
            raise UserError(f"Data set '{cfg.name}': train and {name} differ in their classes or their order.", "")
    if cfg.labels_per_class is not None:
        splits["train"] = per_class_subset(splits["train"], cfg.labels_per_class, seed)
    if max_images is not None:
        splits = {name: limit(source, max_images, seed) for name, source in splits.items()}
    return splits


def build_source(cfg: DatasetConfig, split: str, seed: int) -> Source:
    """One split of the data set; see :func:`open_splits`."""
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is not one of {SPLITS}")
    return open_splits(cfg, seed)[split]


def describe(cfg: DatasetConfig, seed: int = 0) -> dict[str, Any]:
    """What a plan prints, without decoding an image: sizes, class names, which split measures, files passed over."""
    splits = open_splits(cfg, seed)
    files = splits["val"]  # never thinned out, so what it is made of is at hand
    return {
        "name": cfg.name,
        "classes": splits["train"].classes,
        "sizes": {name: len(source) for name, source in splits.items()},
        "split_names": {name: source.split_name for name, source in splits.items()},
        "ignored": dict(getattr(files, "ignored", {})),
        "synthetic": cfg.name == "fake",
    }
