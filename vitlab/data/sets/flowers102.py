"""Oxford 102 Flower (Nilsback and Zisserman 2008), in the layout of torchvision's download."""

from __future__ import annotations

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.decode import Files
from vitlab.data.paths import not_found_error
from vitlab.data.sets._download import fetch_folder
from vitlab.data.sources import Source

DOWNLOADABLE = True


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """Oxford 102 Flower: ``flowers-102/`` with ``jpg/``, ``imagelabels.mat`` and ``setid.mat``; 1,020/1,020/6,149."""
    from torchvision.datasets import Flowers102

    base = "flowers-102"
    folder = fetch_folder(cfg, base, lambda root: Flowers102(root, download=True))
    if folder is None or not all((folder / part).exists() for part in ("jpg", "imagelabels.mat", "setid.mat")):
        raise not_found_error(cfg, f"the folder {base} with jpg/, imagelabels.mat and setid.mat", downloadable=True)
    from scipy.io import loadmat

    label = np.asarray(loadmat(folder / "imagelabels.mat")["labels"], dtype=np.int64).ravel() - 1
    sets = loadmat(folder / "setid.mat")
    sources: dict[str, Source] = {}
    for split, field in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        number = np.asarray(sets[field], dtype=np.int64).ravel()  # image numbers count from 1
        paths = [f"jpg/image_{i:05d}.jpg" for i in number]
        sources[split] = Files(folder, paths, label[number - 1], list(Flowers102.classes), split, upright=False)
    return sources
