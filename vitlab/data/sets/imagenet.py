"""ImageNet-1k (Russakovsky and others 2015) as downloaded."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.decode import Files
from vitlab.data.folder_contents import list_nonempty_classes
from vitlab.data.paths import data_roots, not_found_error
from vitlab.data.sources import Source
from vitlab.errors import UserError


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k, sorted, which is the order of the logits of published networks."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """ImageNet-1k as downloaded: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; 1,281,167 and 50,000 images.

    ``val`` may also be flat, as its archive unpacks: the devkit's ground truth must then be beside it, in
    ``ILSVRC2012_devkit_t12/data``. Class names are WordNet ids, sorted. ``val`` alone suffices for an evaluation.
    """
    roots = data_roots(cfg)
    root = next((r for part in ("train", "val") for r in roots if (r / part).is_dir()), None)
    if root is None:
        cure = " (ImageNet cannot be fetched without an account: see image-net.org)" if cfg.download else ""
        raise not_found_error(cfg, f"the folders train/<wnid> and val/<wnid>{cure}")
    sources: dict[str, Source] = {}
    if (root / "train").is_dir():
        listing = list_nonempty_classes(root, root / "train")
        classes = sorted(listing)
        if not classes:
            raise not_found_error(cfg, "class folders in train/")
        sources["train"] = _by_class(root, listing, classes, "train")
    else:
        classes = sorted(list_nonempty_classes(root, root / "val")) or list(wordnet_ids())
    if (root / "val").is_dir():
        within = list_nonempty_classes(root, root / "val")
        if not within:
            sources["val"] = flat_val(root, classes)
        elif sorted(within) != classes:
            odd = sorted(set(within) ^ set(classes))
            raise UserError(
                f"{root}: train and val differ in {len(odd)} classes, the first is {odd[0]}.",
                "Both need one folder for each class.",
            )
        else:
            sources["val"] = _by_class(root, within, classes, "val")
    return sources


def _by_class(root: Path, listing: dict[str, list[str]], classes: list[str], split: str) -> Files:
    paths = [path for name in classes for path in listing[name]]
    labels = np.repeat(np.arange(len(classes)), [len(listing[name]) for name in classes])
    return Files(root, paths, labels, classes, split, upright=False)


def flat_val(root: Path, classes: list[str]) -> Files:
    """Validation images in one folder, labelled by the devkit: line n of the ground truth is image n's ILSVRC id."""
    data = root / "ILSVRC2012_devkit_t12" / "data"
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file() or not (data / "meta.mat").is_file():
        raise UserError(
            f"{root / 'val'} has no class folders, and the devkit that labels its images is not in {data}.",
            "Unpack ILSVRC2012_devkit_t12.tar.gz there, or sort the images into val/<wnid>/.",
        )
    from scipy.io import loadmat

    wnid = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
    }
    ids = [int(line) for line in truth.read_text().split()]
    paths = sorted(f"val/{path.name}" for path in (root / "val").iterdir() if path.suffix == ".JPEG")
    if len(paths) != len(ids):
        raise UserError(f"{root / 'val'} holds {len(paths)} images, but {truth.name} labels {len(ids)}.", "")
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted({wnid[i] for i in ids} - set(classes))
    if unknown:
        raise UserError(f"{truth} names classes that train/ has no folder for, the first is {unknown[0]}.", "")
    return Files(root, paths, [number[wnid[i]] for i in ids], classes, "val", upright=False)
