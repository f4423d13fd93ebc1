"""The data that are always there, and that must never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vitlab.config import DatasetConfig
from vitlab.data.sets.digits import splits as digits
from vitlab.data.sets.fake import splits as fake
from vitlab.data.sources import Source, fingerprint, labels_of


@pytest.fixture(scope="module")
def split() -> dict[str, Source]:
    return digits(DatasetConfig(name="digits"))


def test_digits_split_is_fixed_for_ever(split: dict[str, Source]) -> None:
    assert {name: len(source) for name, source in split.items()} == {"train": 1347, "test": 450}
    test = ",".join(split["test"].keys)
    assert (
        hashlib.sha256(test.encode()).hexdigest() == "29596cda303d8abe7e8e4dfbc56479617ca86828e1b1d22829e960bd912bce39"
    )
    assert fingerprint(split["train"]) == "ef4a91c1ba2fee55e7029723b65238c0bba27bf82ddda39ef71fd2d93f1e55be"


def test_digits_split_is_stratified_and_complete(split: dict[str, Source]) -> None:
    assert np.bincount(labels_of(split["test"])).tolist() == [44, 46, 44, 46, 45, 46, 45, 45, 44, 45]
    keys = [*split["train"].keys, *split["test"].keys]
    assert sorted(map(int, keys)) == list(range(1797))


def test_digits_are_the_digits(split: dict[str, Source]) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    source = split["test"]
    for i in (0, 100, 449):
        image, label = source[i]
        original = int(source.keys[i])
        assert label == data.target[original]
        assert image.mode == "RGB" and image.size == (8, 8)
        assert np.abs(np.asarray(image)[..., 1] / 255 * 16 - data.images[original]).max() <= 0.5


def test_fake_is_a_function_of_split_and_index() -> None:
    cfg = DatasetConfig(name="fake", length=40, num_classes=4)
    one, two = fake(cfg), fake(DatasetConfig(name="fake", length=80, num_classes=4))
    assert {name: len(source) for name, source in one.items()} == {"train": 40, "test": 10}
    assert (np.asarray(one["train"][7][0]) == np.asarray(two["train"][7][0])).all()
    first, second = np.asarray(one["train"][3][0]), np.asarray(one["test"][3][0])
    assert first.shape != second.shape or (first != second).any()
    assert all(image.width != image.height for image, _ in (one["train"][i] for i in range(40)))


def test_fake_can_be_learned() -> None:
    splits = fake(DatasetConfig(name="fake", length=80, num_classes=4))

    def features(source: Source) -> np.ndarray:
        return np.stack([np.asarray(source[i][0]).mean((0, 1)) for i in range(len(source))])

    means = [features(splits["train"])[labels_of(splits["train"]) == c].mean(0) for c in range(4)]
    distance = np.linalg.norm(features(splits["test"])[:, None] - np.stack(means), axis=2)
    assert (distance.argmin(1) == labels_of(splits["test"])).mean() > 0.9
