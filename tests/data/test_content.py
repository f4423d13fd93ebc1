"""What a data set holds, by which changes are noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.conftest import MakeImages, picture
from vitlab.config import DatasetConfig
from vitlab.data.content import changes, content, file_sizes, record
from vitlab.data.folder import folder_sources
from vitlab.data.sources import Pool, Subset, fingerprint


def config(root: Path) -> DatasetConfig:
    return DatasetConfig(name="folder", root=str(root), size=8, mean=[0.5] * 3, std=[0.5] * 3, val_fraction=0.5)


def test_files_are_found_through_subsets_and_pools(make_images: MakeImages) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(6)))
    parts = folder_sources(config(root))
    pool = Pool(parts)
    some = Subset(pool, np.array([7, 2]))
    sizes = file_sizes(some)
    assert sizes is not None
    assert sizes.tolist() == [(root / some.keys[i]).stat().st_size for i in range(2)]
    picture(99, 40, 40).save(root / some.keys[0])
    again = Subset(Pool(folder_sources(config(root))), np.array([7, 2]))
    assert fingerprint(again) == fingerprint(some) and file_sizes(again).tolist() != sizes.tolist()  # type: ignore[union-attr]


def test_changes_are_told_by_split_and_class(make_images: MakeImages) -> None:
    root = make_images(*(f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(3)))
    before = record(config(root), 0)
    assert changes(before, record(config(root), 0)) == []
    held = content(folder_sources(config(root))["val"])
    picture(5).save(root / "train/b/9.png")
    assert changes(before, record(config(root), 0)) == ["train: 6 → 7 images (b 3 → 4)"]
    assert content(folder_sources(config(root))["val"]) == held
    (root / "train/b/9.png").rename(root / "train/b/8.png")
    (root / "train/b/0.png").unlink()
    (text,) = changes(before, record(config(root), 0))
    assert text == "train: 6 images as before, but with other names, labels or sizes of files"
