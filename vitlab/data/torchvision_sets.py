"""Published sets in the layouts in which torchvision leaves them.

torchvision downloads (checking its MD5 sums) and names the classes. The files are read here, because torchvision's
CIFAR reader unpickles whatever it finds, and because a source wants paths and labels, not data set objects.
"""

from __future__ import annotations

import fcntl
import functools
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.decode import Files
from vitlab.data.folder import full_classes
from vitlab.data.paths import data_roots, missing
from vitlab.data.sources import Arrays, Source
from vitlab.errors import UserError


def _find(cfg: DatasetConfig, base: str) -> Path | None:
    """The folder ``base`` in one of the roots, or a root that is this folder itself."""
    for root in data_roots(cfg):
        if (root / base).is_dir():
            return root / base
        if root.name == base and root.is_dir():
            return root
    return None


def _fetch(cfg: DatasetConfig, base: str, download: Callable[[str], object]) -> Path | None:
    """The folder ``base``; fetched first if it is missing and ``dataset.download`` is set.

    Fetched beside its place and renamed, so that an interrupted download is not taken for the data; one process at a
    time, so that several ranks may ask.
    """
    folder = _find(cfg, base)
    if folder is not None or not cfg.download:
        return folder
    root = data_roots(cfg)[0]
    scratch = root / f".{base}.download"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{base}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / base).is_dir():
            shutil.rmtree(scratch, ignore_errors=True)  # torchvision takes a half-unpacked archive for a whole one
            scratch.mkdir()
            try:
                download(str(scratch))
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"Data set '{cfg.name}' could not be fetched into {root} ({type(error).__name__}: {error}).",
                    "Check the network, or fetch it yourself and give dataset.root.",
                ) from error
            os.rename(scratch / base, root / base)
            shutil.rmtree(scratch)
    return root / base


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numbers, text and numpy arrays; any other name in the file is refused."""

    allowed = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"the file names {module_name}.{global_name}, which no CIFAR file does")
        # numpy 2 still answers to numpy.core, with a warning.
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _read_cifar(path: Path) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", "The download is incomplete: fetch the data set again.") from None
    except Exception as error:
        raise UserError(
            f"{path} is not a CIFAR file ({type(error).__name__}: {error}).", "Fetch the data set again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR file (it holds no dictionary).", "Fetch the data set again.")
    return content


def _cifar(
    cfg: DatasetConfig, base: str, files: dict[str, list[str]], meta: str, names: str, labels: str
) -> dict[str, Source]:
    def download(root: str) -> object:
        from torchvision.datasets import CIFAR10, CIFAR100

        return (CIFAR10 if base == "cifar-10-batches-py" else CIFAR100)(root, download=True)

    folder = _fetch(cfg, base, download)
    if folder is None:
        raise missing(cfg, f"the folder {base}", downloadable=True)
    classes = list(_read_cifar(folder / meta)[names])
    sources: dict[str, Source] = {}
    for split, parts in files.items():
        content = [_read_cifar(folder / part) for part in parts]
        pixels = np.concatenate([np.asarray(one["data"], dtype=np.uint8).reshape(-1, 3, 32, 32) for one in content])
        targets = np.concatenate([np.asarray(one[labels], dtype=np.int64) for one in content])
        images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        sources[split] = Arrays(images, targets, classes, [f"{split}/{i}" for i in range(len(targets))], split)
    return sources


def cifar10(cfg: DatasetConfig) -> dict[str, Source]:
    """CIFAR-10, python version: ``cifar-10-batches-py/``; 50,000 training and 10,000 test images of 32x32 pixels."""
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar(cfg, "cifar-10-batches-py", files, "batches.meta", "label_names", "labels")


def cifar100(cfg: DatasetConfig) -> dict[str, Source]:
    """CIFAR-100, python version, fine labels: ``cifar-100-python/``; 50,000 training and 10,000 test images."""
    files = {"train": ["train"], "test": ["test"]}
    return _cifar(cfg, "cifar-100-python", files, "meta", "fine_label_names", "fine_labels")


def flowers102(cfg: DatasetConfig) -> dict[str, Source]:
    """Oxford 102 Flower: ``flowers-102/`` with ``jpg/``, ``imagelabels.mat`` and ``setid.mat``; 1,020/1,020/6,149."""
    from torchvision.datasets import Flowers102

    base = "flowers-102"
    folder = _fetch(cfg, base, lambda root: Flowers102(root, download=True))
    if folder is None or not all((folder / part).exists() for part in ("jpg", "imagelabels.mat", "setid.mat")):
        raise missing(cfg, f"the folder {base} with jpg/, imagelabels.mat and setid.mat", downloadable=True)
    from scipy.io import loadmat

    label = np.asarray(loadmat(folder / "imagelabels.mat")["labels"], dtype=np.int64).ravel() - 1
    sets = loadmat(folder / "setid.mat")
    sources: dict[str, Source] = {}
    for split, field in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        number = np.asarray(sets[field], dtype=np.int64).ravel()  # image numbers count from 1
        paths = [f"jpg/image_{i:05d}.jpg" for i in number]
        sources[split] = Files(folder, paths, label[number - 1], list(Flowers102.classes), split, upright=False)
    return sources


def food101(cfg: DatasetConfig) -> dict[str, Source]:
    """Food-101: ``food-101/`` with ``images/`` and ``meta/train.json``, ``meta/test.json``; 75,750/25,250 images."""
    base = "food-101"

    def download(root: str) -> object:
        from torchvision.datasets import Food101

        return Food101(root, download=True)

    folder = _fetch(cfg, base, download)
    if folder is None or not all((folder / "meta" / f"{split}.json").exists() for split in ("train", "test")):
        raise missing(cfg, f"the folder {base} with images/ and meta/train.json, meta/test.json", downloadable=True)
    sources: dict[str, Source] = {}
    for split in ("train", "test"):
        listed: dict[str, list[str]] = json.loads((folder / "meta" / f"{split}.json").read_text())
        classes = sorted(listed)
        # In the order of the file, as torchvision has it: released labels are addressed by that order.
        paths = [f"images/{path}.jpg" for name in listed for path in listed[name]]
        labels = [classes.index(name) for name in listed for _ in listed[name]]
        sources[split] = Files(folder, paths, labels, classes, split, upright=False)
    return sources


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order of the usual heads, which is that of the ids."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def imagenet(cfg: DatasetConfig) -> dict[str, Source]:
    """ImageNet-1k as downloaded: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; 1,281,167 and 50,000 images.

    ``val`` may also be flat, as its archive unpacks: then the devkit's ground truth must lie beside it, in
    ``ILSVRC2012_devkit_t12/data``. Class names are WordNet ids, sorted. ``val`` alone is enough to measure on.
    """
    roots = data_roots(cfg)
    root = next((r for part in ("train", "val") for r in roots if (r / part).is_dir()), None)
    if root is None:
        cure = " (ImageNet cannot be fetched without an account: see image-net.org)" if cfg.download else ""
        raise missing(cfg, f"the folders train/<wnid> and val/<wnid>{cure}")
    sources: dict[str, Source] = {}
    if (root / "train").is_dir():
        listing = full_classes(root, root / "train")
        classes = sorted(listing)
        if not classes:
            raise missing(cfg, "class folders in train/")
        sources["train"] = _by_class(root, listing, classes, "train")
    else:
        classes = sorted(full_classes(root, root / "val")) or list(wordnet_ids())
    if (root / "val").is_dir():
        within = full_classes(root, root / "val")
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
