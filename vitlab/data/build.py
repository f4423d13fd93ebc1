"""From a dataset config to sources: the splits of the set itself, or those that keys of ``dataset`` request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.folds import splits_of_fold
from vitlab.data.sets import find_set
from vitlab.data.sources import Pool, Source, Subset, groups_of
from vitlab.data.split_file import splits_of_file, write_split_file
from vitlab.data.subsets import hold_out, limit_images, per_class_subset
from vitlab.errors import UserError
from vitlab.files import atomic_write

SPLITS = ("train", "val", "test")


def open_splits(
    cfg: DatasetConfig, seed: int, max_images: int | None = None, measuring: bool = False
) -> dict[str, Source]:
    """Sources of ``train``, ``val`` and ``test``, listing the files once.

    ``dataset.folds`` and ``dataset.split_file`` pool all images of the set and replace its splits
    (:func:`~vitlab.data.folds.splits_of_fold`, :func:`~vitlab.data.split_file.splits_of_file`).

    Where a set has no ``val``, ``dataset.val_fraction`` of ``train`` is held out as such; with a fraction of 0 ``test``
    is used in its place. A set without ``test`` is measured on its ``val``, also when a part of ``train`` is held out.
    ``source.split_name`` is the split that it really is.

    ``dataset.labels_per_class`` reduces what is left of ``train``; ``max_images`` limits every split. Both choose by a
    hash of (``seed``, key) within each class; where there are groups, group by group.

    ``measuring``: nothing is trained, and a set without ``train`` gets an empty one.

    Raises:
        UserError: if the name is unknown, the data are missing, a split that is needed is empty or absent, or a part of
            ``train`` is to be held out of a set that has both ``val`` and ``test``.
    """
    found = find_set(cfg.name).splits(cfg)
    if measuring and "train" not in found and found:
        found["train"] = Subset(next(iter(found.values())), np.zeros(0, np.int64))
        found["train"].split_name = "train"
        cfg = replace(cfg, val_fraction=0.0, labels_per_class=None)  # there is nothing to take them from
    elif "train" not in found:
        raise UserError(
            f"Data set '{cfg.name}' has no train split, only {', '.join(sorted(found)) or 'nothing'}.",
            "Put the training images in train/, or give the data without split folders.",
        )
    if cfg.classes is not None and cfg.name != "folder":
        raise UserError(
            f"dataset.classes: the classes of {cfg.name} have an order of their own.", "It is for dataset=folder."
        )
    is_folder = cfg.name == "folder"  # it splits its own rows (split_rows), so that mode=audit shows the same split
    if (cfg.folds or cfg.split_file) and not is_folder:
        found = _split_anew(cfg, found)
    elif cfg.val_fraction and not is_folder:
        if {"val", "test"} <= set(found):
            raise UserError(
                f"dataset.val_fraction={cfg.val_fraction:g}: {cfg.name} has a val split of its own.", "Leave it out."
            )
        if measured := found.get("test", found.get("val")):
            train, val = hold_out(found["train"], cfg.val_fraction)
            found = {"train": train, "val": val, "test": measured}
    # val and test each replace the other where one is missing; as the same object, which write_split_file relies on.
    held = found.get("val", found.get("test"))
    if held is None:
        raise UserError(
            f"Data set '{cfg.name}' has neither a val nor a test split.",
            "Measuring needs images held out: add one, or give dataset.val_fraction=0.2 and two images in some class.",
        )
    splits = {"train": found["train"], "val": held, "test": found.get("test", held)}
    for name, source in splits.items():
        if len(source) == 0 and not (measuring and name == "train"):
            raise UserError(
                f"Data set '{cfg.name}': the {name} split holds no images.",
                "Add some, or choose other data (dataset.root).",
            )
        if source.classes != found["train"].classes:
            raise UserError(f"Data set '{cfg.name}': train and {name} differ in their classes or their order.", "")
    if cfg.labels_per_class is not None:
        splits["train"] = per_class_subset(splits["train"], cfg.labels_per_class, seed)
    if max_images is not None:
        splits = {name: limit_images(source, max_images, seed) for name, source in splits.items()}
    return splits


def build_source(cfg: DatasetConfig, split: str, seed: int) -> Source:
    """One split of the data set; see :func:`open_splits`."""
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is not one of {SPLITS}")
    return open_splits(cfg, seed)[split]


def describe_dataset(cfg: DatasetConfig, seed: int = 0) -> dict[str, Any]:
    """What a plan prints, without decoding an image: sizes, class names, real split names, files passed over."""
    splits = open_splits(cfg, seed)
    files = splits["val"]  # never a Subset of labels_per_class, which has no record of the files passed over
    return {
        "name": cfg.name,
        "classes": splits["train"].classes,
        "sizes": {name: len(source) for name, source in splits.items()},
        "split_names": {name: source.split_name for name, source in splits.items()},
        "ignored": dict(getattr(files, "ignored", {})),
        "synthetic": is_synthetic(cfg, splits["train"]),
    }


def is_synthetic(cfg: DatasetConfig, source: Source) -> bool:
    """Whether the images are synthetic, so that metrics on them mean nothing; the YAML or the source states it."""
    return cfg.synthetic or getattr(source, "synthetic", False)


def write_splits(path: Path, cfg: DatasetConfig, seed: int) -> None:
    """Write the split that ``cfg`` makes as ``dataset.split_file`` reads it; ``labels_per_class`` is no part of it.

    Nothing is written where the split is the set's own; a split file is copied, with the images that it leaves out.
    """
    if cfg.split_file:
        atomic_write(path, Path(cfg.split_file).expanduser().read_bytes())
    elif cfg.folds or cfg.val_fraction:
        write_split_file(path, open_splits(replace(cfg, labels_per_class=None), seed))


def _split_anew(cfg: DatasetConfig, parts: dict[str, Source]) -> dict[str, Source]:
    pool = Pool(parts)
    targets, groups = pool.labels, groups_of(pool)
    if cfg.split_file:
        split = splits_of_file(cfg, pool.keys, targets, pool.classes)
    else:
        split = splits_of_fold(cfg, pool.keys, targets, pool.classes, groups)
    found: dict[str, Source] = {}
    for name in SPLITS:
        part = Subset(pool, np.flatnonzero(split == name))
        part.split_name, part.held_out = name, name == "val"  # val is taken from images that would be trained on
        if len(part):
            found[name] = part
    return found
