"""Food-101 (Bossard and others 2014), in the layout of torchvision's download."""

from __future__ import annotations

import json

from vitlab.config import DatasetConfig
from vitlab.data.decode import Files
from vitlab.data.paths import not_found_error
from vitlab.data.sets._download import fetch_folder
from vitlab.data.sources import Source

DOWNLOADABLE = True


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """Food-101: ``food-101/`` with ``images/`` and ``meta/train.json``, ``meta/test.json``; 75,750/25,250 images."""
    base = "food-101"

    def download(root: str) -> object:
        from torchvision.datasets import Food101

        return Food101(root, download=True)

    folder = fetch_folder(cfg, base, download)
    if folder is None or not all((folder / "meta" / f"{split}.json").exists() for split in ("train", "test")):
        raise not_found_error(
            cfg, f"the folder {base} with images/ and meta/train.json, meta/test.json", downloadable=True
        )
    sources: dict[str, Source] = {}
    for split in ("train", "test"):
        listed: dict[str, list[str]] = json.loads((folder / "meta" / f"{split}.json").read_text())
        classes = sorted(listed)
        # In the order of the file, as in torchvision: released labels are addressed by that order.
        paths = [f"images/{path}.jpg" for name in listed for path in listed[name]]
        labels = [classes.index(name) for name in listed for _ in listed[name]]
        sources[split] = Files(folder, paths, labels, classes, split, upright=False)
    return sources
