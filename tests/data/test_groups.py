"""Groups, folds, split files, the order of classes: which image belongs where."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitlab.config import DatasetConfig
from vitlab.data.audit import audit_dataset
from vitlab.data.build import open_splits, write_splits
from vitlab.data.folds import fold_numbers
from vitlab.data.sources import Arrays, MapStyle, Source, Subset, fingerprint, groups_of, labels_of
from vitlab.data.subsets import hold_out, limit_images, per_class_subset
from vitlab.errors import UserError

MakeImages = Callable[..., Path]


def patients(count: int = 12, each: int = 5, order: np.ndarray | None = None) -> Arrays:
    """Of each patient ``each`` pictures; a patient's pictures are of two classes."""
    order = np.arange(count * each) if order is None else order
    pixels = np.broadcast_to(order.astype(np.uint8)[:, None, None], (len(order), 4, 4))
    return Arrays(
        np.ascontiguousarray(pixels),
        np.where(order % each == 0, (order // each) % 2, 2 + order % 2),
        ["a", "b", "c", "d"],
        [f"image {i}" for i in order],
        "train",
        [f"patient {i // each}" for i in order],
    )


def members(source: Source) -> set[str]:
    return set(groups_of(source) or ())


def test_held_out_images_are_of_other_patients() -> None:
    train, val = hold_out(patients(), 0.25)
    assert members(train) and members(val) and not members(train) & members(val)
    assert len(train) + len(val) == 60


def test_few_labels_and_a_limit_take_a_class_patient_by_patient() -> None:
    """Three of a class are of two patients at most, where by image they would be of three."""
    shuffled = patients(order=np.random.default_rng(0).permutation(60))
    for take in (lambda one: per_class_subset(one, 3, 7), lambda one: limit_images(one, 12, 7)):
        part = take(patients())
        assert set(take(shuffled).keys) == set(part.keys)
        for label in (2, 3):
            own = {name for name, one in zip(groups_of(part) or (), labels_of(part), strict=True) if one == label}
            assert len(own) <= 2
    assert set(per_class_subset(patients(), 2, 7).keys) < set(per_class_subset(patients(), 4, 7).keys)


def test_groups_go_with_every_kind_of_source_and_are_no_part_of_its_fingerprint() -> None:
    full = patients()
    plain = Arrays(full.images, full.labels, full.classes, list(full.keys), "train")
    assert fingerprint(plain) == fingerprint(full) and groups_of(plain) is None
    assert groups_of(Subset(Subset(full, np.arange(60)[::-1]), np.array([0])))[0] == "patient 11"  # type: ignore[index]
    mapped = MapStyle([(None, 0), (None, 1)], ["a", "b"], labels=[0, 1], groups=["x", "y"])
    assert list(groups_of(mapped) or ()) == ["x", "y"]
    with pytest.raises(ValueError, match="2 items and 1 groups"):
        MapStyle([(None, 0), (None, 1)], ["a", "b"], labels=[0, 1], groups=["x"])


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_stratified_and_do_not_depend_on_the_order_of_the_files(folds: int) -> None:
    labels = np.repeat([0, 1, 2], [43, 21, 8])
    keys = [f"image {i}" for i in range(72)]
    numbers = fold_numbers(keys, labels, folds)
    counts = np.array([np.bincount(labels[numbers == fold], minlength=3) for fold in range(folds)])
    assert (np.ptp(counts, axis=0) <= 1).all() and np.ptp(counts.sum(1)) <= 1
    order = np.random.default_rng(1).permutation(72)
    again = fold_numbers([keys[i] for i in order], labels[order], folds)
    assert (again == numbers[order]).all()


def test_folds_of_groups_keep_them_whole_and_even_out_the_classes() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 80)
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = rng.choice(3, len(groups), p=[0.6, 0.3, 0.1])
    keys = [str(i) for i in range(len(groups))]
    numbers = fold_numbers(keys, labels, 5, groups)
    assert all(len({int(n) for n, name in zip(numbers, groups, strict=True) if name == g}) == 1 for g in set(groups))
    for label in range(3):
        share = np.bincount(numbers[labels == label], minlength=5) / (labels == label).sum()
        assert np.abs(share - 0.2).max() < 0.05
    order = rng.permutation(len(groups))
    again = fold_numbers([keys[i] for i in order], labels[order], 5, [groups[i] for i in order])
    assert (again == numbers[order]).all()
    with pytest.raises(ValueError, match="3 folds of 2 groups"):
        fold_numbers(["a", "b", "c"], np.zeros(3, np.int64), 3, ["x", "x", "y"])


def digits(**more: Any) -> DatasetConfig:
    return DatasetConfig(name="digits", size=32, **more)


def test_every_image_is_tested_in_one_fold_and_trained_on_in_the_others() -> None:
    tested: list[str] = []
    for fold in range(4):
        splits = open_splits(digits(folds=4, fold=fold, val_fraction=0.1 * (fold % 2)), seed=fold)
        train, test = set(splits["train"].keys), set(splits["test"].keys)
        val = set(splits["val"].keys) if fold % 2 else set()
        assert (splits["val"] is splits["test"]) == (fold % 2 == 0)
        assert not train & test and not train & val and not val & test and len(train | val | test) == 1797
        tested += test
    assert len(tested) == len(set(tested)) == 1797


def test_splits_that_share_keys_are_pooled_under_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def splits(cfg: DatasetConfig) -> dict[str, Source]:
        items = [(None, i % 2) for i in range(6)]
        return {name: MapStyle(items, ["a", "b"], name, labels=[0, 1] * 3) for name in ("train", "test")}

    monkeypatch.setattr("vitlab.data.build.find_set", lambda name: SimpleNamespace(splits=splits))
    found = open_splits(DatasetConfig(name="x", size=8, folds=2, fold=1), 0)
    keys = [*found["train"].keys, *found["test"].keys]
    assert sorted(keys) == sorted(f"{split}/{i}" for split in ("train", "test") for i in range(6))


def test_a_class_of_one_image_cannot_be_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Arrays(np.zeros((5, 4, 4), np.uint8), np.array([0, 0, 0, 0, 1]), ["a", "b"], list("vwxyz"), "train")
    monkeypatch.setattr("vitlab.data.build.find_set", lambda name: SimpleNamespace(splits=lambda cfg: {"train": one}))
    with pytest.raises(UserError, match="class 'b' has all of its 1 image"):
        open_splits(DatasetConfig(name="x", size=8, folds=2, fold=0), 0)
    with pytest.raises(UserError, match="9 folds of 5 images"):
        open_splits(DatasetConfig(name="x", size=8, folds=9, fold=0), 0)


def own(root: Path, **more: Any) -> DatasetConfig:
    return DatasetConfig(name="folder", root=str(root), **{"size": 16, "val_fraction": 0.2, **more})


@pytest.fixture
def table(make_images: MakeImages) -> Path:
    """A CSV of 24 pictures of 12 patients, two of each; zebras are listed first."""
    root = make_images(*(f"{i}.png" for i in range(24)))
    rows = [f"{i}.png,{('zebra', 'ant')[i // 2 % 2]},p{i // 2}" for i in range(24)]
    (root / "table.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    return root


def test_folds_of_a_csv_keep_patients_whole_and_the_audit_shows_the_same(table: Path) -> None:
    seen: list[str] = []
    for fold in range(3):
        cfg = own(table, csv="table.csv", folds=3, fold=fold)
        splits = open_splits(cfg, 0)
        parts = [members(splits[name]) for name in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 12 and all(parts)
        seen += splits["test"].keys
        result, rows = audit_dataset(cfg)
        assert {name: [row.path for row in part] for name, part in rows.items()} == {
            name: list(source.keys) for name, source in splits.items()
        }
        assert result.split.startswith(f"fold {fold} of 3 is test")
    assert sorted(seen) == sorted(f"{i}.png" for i in range(24))


@pytest.mark.parametrize(
    "more", [{"folds": 3, "fold": 1}, {"val_fraction": 0.25}, {"folds": 2, "fold": 0, "val_fraction": 0.0}]
)
def test_a_split_that_was_written_is_read_again(table: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    cfg = own(table, csv="table.csv", **more)
    write_splits(tmp_path / "splits.csv", cfg, 0)
    with open(tmp_path / "splits.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and all(row["group"] == f"p{int(row['path'][:-4]) // 2}" for row in rows)
    before = open_splits(cfg, 0)
    after = open_splits(own(table, csv="table.csv", split_file=str(tmp_path / "splits.csv")), 0)
    assert {name: list(one.keys) for name, one in after.items()} == {
        name: list(one.keys) for name, one in before.items()
    }
    write_splits(tmp_path / "again.csv", own(table, csv="table.csv", split_file=str(tmp_path / "splits.csv")), 0)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "splits.csv").read_bytes()


def test_a_split_file_of_a_built_in_set(tmp_path: Path) -> None:
    write_splits(tmp_path / "splits.csv", digits(val_fraction=0.1, labels_per_class=5), 0)
    found = open_splits(digits(split_file=str(tmp_path / "splits.csv")), 0)
    before = open_splits(digits(val_fraction=0.1), 0)
    assert {name: fingerprint(one) for name, one in found.items()} == {
        name: fingerprint(one) for name, one in before.items()
    }
    write_splits(tmp_path / "none.csv", digits(), 0)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["file,part", *lines[1:]], r"must name the columns path,split; it reads: file,part"),
        (lambda lines: [*lines[:2], "1.png,dev", *lines[3:]], r"line 3: 'dev' is not a split"),
        (lambda lines: [*lines[:2], "none.png,val", *lines[3:]], r"line 3: none\.png is no image of data set 'folder'"),
        (lambda lines: [*lines, "3.png,val"], r"line 26: 3\.png is in the file twice"),
        (lambda lines: lines[:-2], r"does not list 2 of the 24 images.*the first is 22\.png"),
        (
            lambda lines: [lines[0], *(f"{i}.png,{'test' if i // 2 % 2 else 'train'}" for i in range(24))],
            r"train has no image of class ant",
        ),
    ],
)
def test_mistakes_in_a_split_file_name_the_line(
    table: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = ["path,split", *(f"{i}.png,{'test' if i > 19 else 'train'}" for i in range(24))]
    (tmp_path / "split.csv").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message):
        open_splits(own(table, csv="table.csv", split_file=str(tmp_path / "split.csv")), 0)


def test_unused_images_are_in_no_split(table: Path, tmp_path: Path) -> None:
    names = ("train", "Valid", "test", "unused")
    lines = ["path,split", *(f"{i}.png,{'train' if i < 12 else names[i % 4]}" for i in range(24))]
    (tmp_path / "split.csv").write_text("\n".join(lines) + "\n")
    found = open_splits(own(table, csv="table.csv", split_file=str(tmp_path / "split.csv")), 0)
    assert {name: len(source) for name, source in found.items()} == {"train": 15, "val": 3, "test": 3}


def test_classes_keep_the_order_that_is_given(table: Path, make_images: MakeImages) -> None:
    def order(**more: Any) -> list[str]:
        splits = open_splits(own(table, csv="table.csv", **more), 0)
        train = splits["train"]
        truth = {f"{i}.png": ("zebra", "ant")[i // 2 % 2] for i in range(24)}
        assert [train.classes[label] for label in labels_of(train)] == [truth[key] for key in train.keys]
        return train.classes

    assert order() == ["ant", "zebra"]
    assert order(classes="listed") == ["zebra", "ant"]
    assert order(classes=["zebra", "ant"]) == ["zebra", "ant"]
    (table / "classes.txt").write_text("zebra\nant\n")
    assert order() == ["zebra", "ant"]
    assert order(classes=["ant", "zebra"]) == ["ant", "zebra"]
    (table / "classes.txt").write_text("zebra\n")
    with pytest.raises(UserError, match=r"classes\.txt lacks 1 class.*ant"):
        order()
    for given, message in (
        (["zebra", "ant", "emu"], "1 class.* without images, the first is emu"),
        (["ant", "ant"], "ant is named twice"),
        ("sorted", "sorted is not a list of classes"),
    ):
        with pytest.raises(UserError, match=message):
            order(classes=given)
    plain = make_images(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)), root="plain")
    assert open_splits(own(plain, classes=["dog", "cat"]), 0)["train"].classes == ["dog", "cat"]
    with pytest.raises(UserError, match="only a CSV"):
        open_splits(own(plain, classes="listed"), 0)
    with pytest.raises(UserError, match=r"dataset\.classes: the classes of digits have an order of their own"):
        open_splits(digits(classes=["0"]), 0)


def test_folds_of_images_with_several_labels_keep_their_rows() -> None:
    tested = 0
    for fold in range(3):
        splits = open_splits(DatasetConfig(name="digits_multi", size=32, folds=3, fold=fold), 0)
        for source in splits.values():
            rows = source.labels
            assert rows is not None and rows.shape == (len(source), len(source.classes))
            assert rows.any(0).all() and (rows[5] == source[5][1]).all()
        tested += len(splits["test"])
    assert tested == len(splits["train"]) + len(splits["test"])


def test_patients_of_a_csv_with_several_labels_are_on_one_side(table: Path) -> None:
    lines = [f"{i}.png,{'cat;dog' if i // 2 % 3 == 0 else ('cat', 'dog')[i // 2 % 2]},p{i // 2}" for i in range(24)]
    (table / "several.csv").write_text("\n".join(["path,labels,group", *lines]) + "\n")
    splits = open_splits(own(table, csv="several.csv", val_fraction=0.3), 0)
    assert members(splits["train"]) and members(splits["val"])
    assert not members(splits["train"]) & members(splits["val"])
