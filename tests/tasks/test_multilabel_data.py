"""Images with several labels: CSVs in both forms, their mistakes, and the embedded set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.build import open_splits
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import LoaderOptions
from vitlab.data.views import FreshViews
from vitlab.errors import UserError
from vitlab.tasks.multilabel import Multilabel

CELL = "path,labels,split\na.png,cat;dog,train\nb.png,,train\nc.png,rain|dog,train\nd.png,cat,val\n"
COLUMNS = "path,rain,cat,dog\n" + "".join(f"{name}.png,{i % 2},{i // 2 % 2},1\n" for i, name in enumerate("abcdefgh"))


def write(folder: Path, text: str) -> DatasetConfig:
    for name in "abcdefgh":
        Image.fromarray(np.full((9, 12, 3), ord(name), np.uint8)).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text(text)
    return DatasetConfig(name="folder", root=str(folder), csv="labels.csv", size=8, mean=[0.5] * 3, std=[0.5] * 3)


def test_labels_in_one_cell(tmp_path: Path) -> None:
    splits = open_splits(write(tmp_path, CELL), 0)
    assert splits["train"].classes == ["cat", "dog", "rain"]
    assert splits["train"].labels is not None and splits["train"].labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    image, target = splits["val"][0]
    assert image.size == (12, 9) and target.tolist() == [1, 0, 0]


def test_a_column_for_each_label_in_the_order_of_the_columns(tmp_path: Path) -> None:
    cfg = write(tmp_path, COLUMNS)
    cfg.val_fraction = 0.25
    splits = open_splits(cfg, 0)
    assert splits["train"].classes == ["rain", "cat", "dog"]
    assert len(splits["train"]) + len(splits["val"]) == 8 and getattr(splits["val"], "held_out", False)
    assert not set(splits["train"].keys) & set(splits["val"].keys)
    again = open_splits(cfg, 1)
    assert list(again["val"].keys) == list(splits["val"].keys), "the same for every seed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels,cat\na.png,dog,1\n", "has a column labels and further ones: cat"),
        ("path,cat,dog\na.png,1,2\n", "line 2: column dog holds '2', not 0 or 1"),
        ("path,labels\na.png,dog;cat\na.png,cat\n", "line 3: a.png is already in line 2"),
        ("path,labels\nz.png,dog;cat\n", "1 of 1 files do not exist"),
        ("path,labels\na.png,dog\n", r"has 1 label\(s\)"),
        ("path,labels,split\na.png,dog,train\nb.png,cat,test\n", "no training image has the label cat"),
    ],
)
def test_mistakes_of_a_table_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_splits(write(tmp_path, text), 0)


def test_an_audit_counts_labels_and_images(tmp_path: Path) -> None:
    from vitlab.data.audit import audit_dataset, write_audit

    found, splits = audit_dataset(write(tmp_path, CELL))
    assert found.counts == {"train": {"cat": 1, "dog": 2, "rain": 1}, "val": {"cat": 1}}
    assert "splits   train 3, val 1 (given)" in found.text() and not found.faults
    write_audit(tmp_path / "audit", found, splits)
    again = write(tmp_path, (tmp_path / "audit" / "split.csv").read_text())
    first = open_splits(again, 0)["train"]
    assert first.labels is not None and first.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]


def test_folds_and_groups_of_images_with_several_labels(tmp_path: Path) -> None:
    table = "path,labels,group\n" + "".join(
        f"{name}.png,x{';y' * (i % 2)},g{i // 2}\n" for i, name in enumerate("abcdefgh")
    )
    cfg = write(tmp_path, table)
    cfg.folds, cfg.fold, cfg.val_fraction = 4, 0, 0.25
    tested = []
    for fold in range(4):
        cfg.fold = fold
        splits = open_splits(cfg, 0)
        tested += list(splits["test"].keys)
        groups = [{"abcdefgh".index(key[0]) // 2 for key in splits[name].keys} for name in ("train", "test")]
        assert not groups[0] & groups[1]
    assert sorted(tested) == [f"{name}.png" for name in "abcdefgh"]


def test_mixed_rows_are_mixed_labels(tmp_path: Path) -> None:
    """Rows [B, K] of a mixed pair add up to what the two images have."""
    dataset = DatasetConfig(name="digits_multi", size=32, mean=[0.1] * 3, std=[0.2] * 3)
    options = LoaderOptions(8)
    task = Multilabel()
    for mixup in (0.0, 0.8):
        augmentation = AugmentationConfig(mixup=mixup)
        data = VisionData(
            dataset, augmentation, options, mean=[0.1] * 3, std=[0.2] * 3, views=FreshViews(), targets=task
        )
        batch = next(iter(data.train_loader(0, 1)))
        assert batch.label.shape == (8, 10) and batch.label.dtype.is_floating_point
        labels = data.train_source.labels
        assert labels is not None
        own = labels[batch.index.numpy()].astype(np.float32)
        if mixup:
            pairs = batch.label.numpy().reshape(4, 2, 10).sum(1)
            np.testing.assert_allclose(pairs, own.reshape(4, 2, 10).sum(1), atol=1e-6)
            assert not np.array_equal(batch.label.numpy(), own)
        else:
            np.testing.assert_array_equal(batch.label.numpy(), own)


def test_the_embedded_pictures_are_the_same_every_time_and_share_no_digit() -> None:
    from vitlab.data.sets import digits_multi

    cfg = DatasetConfig(name="digits_multi")
    one, other = digits_multi.splits(cfg), digits_multi.splits(cfg)
    assert {split: len(source) for split, source in one.items()} == digits_multi.COUNTS
    for split, source in one.items():
        again = other[split]
        assert isinstance(source, digits_multi.MultiDigitImages) and isinstance(again, digits_multi.MultiDigitImages)
        np.testing.assert_array_equal(source.images, again.images)
        counts = source.labels.sum(1)
        assert counts.min() == 1 and counts.max() == 4 and source.labels.sum(0).min() > 20
    pools = digits_multi.digit_pools(cfg)
    keys = [set(pool.keys) for pool in pools.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 1797


def test_several_labels_have_no_subset_by_class(tmp_path: Path) -> None:
    cfg = DatasetConfig(name="digits_multi", labels_per_class=5)
    with pytest.raises(UserError, match=r"labels_per_class=5 counts images of a class.*several labels"):
        open_splits(cfg, 0)
    cfg.labels_per_class = None
    assert len(open_splits(cfg, 0, max_images=40)["train"]) == 40
