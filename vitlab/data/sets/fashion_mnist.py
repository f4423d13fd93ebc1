"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), in the layout of torchvision's download."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data.paths import not_found_error
from vitlab.data.sets._download import fetch_folder
from vitlab.data.sources import Arrays, Source
from vitlab.errors import UserError

DOWNLOADABLE = True

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

MARGIN = 2
"""Pixels of background around the 28x28 images, which are then 32x32: padded rather than stretched."""


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """Fashion-MNIST: ``FashionMNIST/raw/*-ubyte[.gz]``; 60,000 training and 10,000 test images, grey, 28x28 pixels."""
    base = "FashionMNIST"

    def download(root: str) -> object:
        from torchvision.datasets import FashionMNIST

        return FashionMNIST(root, download=True)

    folder = fetch_folder(cfg, base, download)
    if folder is None or not (folder / "raw").is_dir():
        raise not_found_error(cfg, f"the folder {base} with raw/", downloadable=True)
    sources: dict[str, Source] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(folder / "raw" / f"{prefix}-images-idx3-ubyte", 3)
        labels = read_idx(folder / "raw" / f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
            raise UserError(
                f"{folder}: the {split} split has {len(images)} images, {len(labels)} labels and classes up to "
                f"{labels.max(initial=0)}.",
                "Fetch the data set again.",
            )
        padded = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
        keys = [f"{split}/{number}" for number in range(len(labels))]
        sources[split] = Arrays(padded, labels.astype(np.int64), list(CLASSES), keys, split)
    return sources


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of bytes: magic 0x00000800 + dims, the sizes, the values; or in ``path``.gz.

    Raises:
        UserError: neither file is there, or it is not such a file.
    """
    packed = path.with_name(f"{path.name}.gz")
    cure = "Fetch the data set again."
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}[.gz] is missing.", "The download is incomplete: fetch the data set again.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{packed} is damaged ({error}).", cure) from error
    head = np.frombuffer(content[: 4 * (dims + 1)], dtype=">u4")
    if len(head) <= dims or head[0] != 0x800 + dims or len(content) - 4 * (dims + 1) != math.prod(map(int, head[1:])):
        raise UserError(f"{path} is no IDX file of {dims} dimensions.", cure)
    return np.frombuffer(content, dtype=np.uint8, offset=4 * (dims + 1)).reshape([int(one) for one in head[1:]])
