"""Sources: names, subsets and splits that depend on keys and seed alone."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitlab.config import DatasetConfig
from vitlab.data.build import open_splits
from vitlab.data.sets.fake import splits as fake
from vitlab.data.sources import (
    Arrays,
    MapStyle,
    Source,
    Strings,
    fingerprint,
    labels_of,
)
from vitlab.data.subsets import class_rank, held_out, limit_images, per_class_subset
from vitlab.errors import UserError


def source(length: int = 30, classes: int = 3, order: np.ndarray | None = None) -> Arrays:
    order = np.arange(length) if order is None else order
    images = np.broadcast_to(order.astype(np.uint8)[:, None, None], (length, 4, 4))
    names = [f"class {c}" for c in range(classes)]
    return Arrays(np.ascontiguousarray(images), order % classes, names, [f"image {i}" for i in order], "train")


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_strings_are_a_list_of_strings(items: list[str]) -> None:
    strings = Strings(items)
    assert list(strings) == items
    assert strings[1:] == items[1:]
    assert list(pickle.loads(pickle.dumps(strings))) == items


def test_strings_keep_file_names_that_are_not_utf8() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert Strings([name])[-1] == name
    with pytest.raises(IndexError):
        Strings([name])[1]


def test_subset_shows_the_same_images_under_the_same_keys() -> None:
    full = source()
    part = per_class_subset(full, 4, seed=0)
    assert np.bincount(part.labels if part.labels is not None else []).tolist() == [4, 4, 4]
    for i, index in enumerate(part.indices):
        image, label = part[i]
        assert (np.asarray(image) == np.asarray(full[int(index)][0])).all()
        assert (part.keys[i], label) == (full.keys[int(index)], full[int(index)][1])


def test_subset_does_not_depend_on_the_order_of_the_source() -> None:
    shuffled = source(order=np.random.default_rng(0).permutation(30))
    assert set(per_class_subset(source(), 4, 7).keys) == set(per_class_subset(shuffled, 4, 7).keys)
    assert set(limit_images(source(), 8, 7).keys) == set(limit_images(shuffled, 8, 7).keys)


def test_subsets_are_nested_and_seeded() -> None:
    subset, more = (set(per_class_subset(source(), n, 0).keys) for n in (2, 5))
    assert subset < more
    assert subset != set(per_class_subset(source(), 2, 1).keys)


def test_too_many_labels_per_class_is_answered() -> None:
    with pytest.raises(UserError, match=r"labels_per_class=11.*'class 0' has 10 images.*between 1 and 10"):
        per_class_subset(source(), 11, 0)


def test_limit_takes_classes_in_turn() -> None:
    part = limit_images(source(), 7, 0)
    assert np.bincount(labels_of(part)).tolist() == [3, 2, 2]
    assert limit_images(source(), 30, 0).keys[29] == "image 29"


def test_class_rank_counts_within_each_class() -> None:
    full = source()
    rank = class_rank(full.keys, full.labels, 0)
    for label in range(3):
        assert sorted(rank[full.labels == label].tolist()) == list(range(10))


def test_held_out_share_of_each_class() -> None:
    labels = np.array([0] * 40 + [1] * 3 + [2])
    held = held_out([str(i) for i in range(44)], labels, 0.2)
    assert np.bincount(labels[held], minlength=3).tolist() == [8, 1, 0]


def test_fingerprint_sees_every_part() -> None:
    base = fingerprint(source())
    assert base == fingerprint(source())
    changed = [source(29), source(classes=2), source(order=np.arange(30)[::-1])]
    renamed = source()
    renamed.classes = ["a", "b", "c"]
    relabelled = source()
    relabelled.labels[3] = 2
    assert len({base, *map(fingerprint, [*changed, renamed, relabelled])}) == 6


def test_any_map_style_data_set_becomes_a_source() -> None:
    class Shells:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (5, 4), index * 10), index % 2

    shells = MapStyle(Shells(), ["cowrie", "limpet"])
    image, label = shells[3]
    assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (30, 30, 30), 1)
    assert shells.labels is None and labels_of(shells).tolist() == [0, 1, 0, 1, 0, 1]
    assert list(per_class_subset(shells, 3, 0).keys) == ["0", "1", "2", "3", "4", "5"]
    known = MapStyle(Shells(), ["cowrie", "limpet"], labels=[0, 1, 0, 1, 0, 1])
    assert fingerprint(known) != fingerprint(shells)
    with pytest.raises(ValueError, match="must match"):
        MapStyle(Shells(), ["cowrie", "limpet"], labels=[0, 1])


def digits_with(**more: Any) -> DatasetConfig:
    return DatasetConfig(name="digits", size=32, **more)


def test_a_part_of_train_is_held_out_and_never_trained_on() -> None:
    """``dataset.val_fraction`` of a built-in set: of every class, for every seed; to a store, other data."""
    full = open_splits(digits_with(), 0)
    assert full["val"] is full["test"]
    for fraction in (0.1, 0.25):
        splits = open_splits(digits_with(val_fraction=fraction), 0)
        train, val = splits["train"], splits["val"]
        assert sorted([*train.keys, *val.keys]) == sorted(full["train"].keys)
        assert (val.split_name, splits["test"].split_name) == ("val", "test")
        assert fingerprint(splits["test"]) == fingerprint(full["test"])
        assert fingerprint(train) != fingerprint(full["train"])
        counts = [np.bincount(labels_of(part), minlength=10) for part in (val, full["train"])]
        assert counts[0].tolist() == [round(fraction * n) for n in counts[1].tolist()]
        again = open_splits(digits_with(val_fraction=fraction, labels_per_class=7), 3)
        assert list(again["val"].keys) == list(val.keys)
        assert len(again["train"]) == 70 and set(again["train"].keys) < set(train.keys)
        image, label = val[3]
        where = list(full["train"].keys).index(val.keys[3])
        assert label == full["train"][where][1] and image.tobytes() == full["train"][where][0].tobytes()


def test_a_set_that_is_measured_on_val_keeps_it_and_one_with_both_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*names: str) -> dict[str, Source]:
        cfg = DatasetConfig(name="x", size=8, val_fraction=0.5)
        one = SimpleNamespace(splits=lambda cfg: {name: fake(cfg)["train"] for name in names})
        monkeypatch.setattr("vitlab.data.build.find_set", lambda name: one)
        return open_splits(cfg, 0)

    splits = opened("train", "val")
    assert len(splits["test"]) == 256 and len(splits["val"]) + len(splits["train"]) == 256
    with pytest.raises(UserError, match=r"val_fraction=0\.5: x has a val split of its own"):
        opened("train", "val", "test")
    with pytest.raises(UserError, match="neither a val nor a test split"):
        opened("train")
