"""Published sets: small ones in the layouts as downloaded, compared with torchvision's own readers."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from scipy.io import savemat

from vitlab.config import DatasetConfig
from vitlab.data.build import open_splits
from vitlab.data.sets.cifar10 import splits as cifar10
from vitlab.data.sets.cifar100 import splits as cifar100
from vitlab.data.sets.fashion_mnist import splits as fashion_mnist
from vitlab.data.sets.flowers102 import splits as flowers102
from vitlab.data.sets.food101 import splits as food101
from vitlab.data.sets.imagenet import splits as imagenet
from vitlab.data.sources import labels_of
from vitlab.errors import UserError

MakeImages = Callable[..., Path]


def cfg(name: str, root: Path, **more: object) -> DatasetConfig:
    return DatasetConfig(name=name, root=str(root), **more)  # type: ignore[arg-type]


def write_cifar10(folder: Path) -> np.ndarray:
    """Five batches of four images and a test batch, as the python version has them; all pixel rows in order."""
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (24, 3072), dtype=np.uint8)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = rows[number * 4 : number * 4 + 4]
        content = {"batch_label": name, "labels": [0, 1, 2, number], "data": part, "filenames": ["x"] * 4}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"label_names": [f"name{i}" for i in range(10)], "num_cases_per_batch": 4, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return rows


def write_fashion_mnist(folder: Path, packed: bool) -> dict[str, np.ndarray]:
    """Six training and four test images as IDX files, gzipped as downloaded or not; the pixels."""
    folder.mkdir(parents=True)
    draws, pixels = np.random.default_rng(0), {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        pixels[prefix] = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for name, array in (("images-idx3", pixels[prefix]), ("labels-idx1", labels)):
            head = np.array([0x800 + array.ndim, *array.shape], dtype=">u4").tobytes()
            content, file = head + array.tobytes(), folder / f"{prefix}-{name}-ubyte"
            (file.with_name(f"{file.name}.gz") if packed else file).write_bytes(
                gzip.compress(content) if packed else content
            )
    return pixels


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(packed: bool, tmp_path: Path) -> None:
    pixels = write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed)
    found = fashion_mnist(cfg("fashion_mnist", tmp_path))
    assert {name: len(source) for name, source in found.items()} == {"train": 6, "test": 4}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        image, label = found[name][3]
        array = np.asarray(image)
        assert array.shape == (32, 32, 3) and label == 3
        np.testing.assert_array_equal(array[2:30, 2:30], pixels[prefix][3][..., None].repeat(3, -1))
        assert not array[:2].any() and not array[:, 30:].any()
        if not packed:  # torchvision reads the unpacked files alone
            theirs, target = tv.FashionMNIST(str(tmp_path), train=name == "train")[3]
            np.testing.assert_array_equal(array[2:30, 2:30, 0], np.asarray(theirs))
            assert target == label


@pytest.mark.parametrize("cut", [0, 10, 100])
def test_a_damaged_fashion_mnist_file_is_named(cut: int, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", True)
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="t10k-images"):
        fashion_mnist(cfg("fashion_mnist", tmp_path))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar10(tmp_path / "cifar-10-batches-py")
    splits = cifar10(cfg("cifar10", tmp_path))
    assert {name: len(source) for name, source in splits.items()} == {"train": 20, "test": 4}
    assert splits["train"].classes[3] == "name3"
    # torchvision's reader, given the checksums of these files, reads the same pixels and labels.
    base = tmp_path / "cifar-10-batches-py"
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in base.iterdir()}
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(tv.CIFAR10, name, [[file, sums[file]] for file, _ in getattr(tv.CIFAR10, name)])
    monkeypatch.setattr(tv.CIFAR10, "meta", tv.CIFAR10.meta | {"md5": sums["batches.meta"]})
    theirs = tv.CIFAR10(str(tmp_path), train=True)
    for i in range(20):
        assert (np.asarray(splits["train"][i][0]) == np.asarray(theirs[i][0])).all()
        assert splits["train"][i][1] == theirs[i][1]
    assert np.asarray(splits["test"][3][0])[0, 0, 2] == rows[23, 2048]
    assert open_splits(cfg("cifar10", base), 0)["val"].split_name == "test"  # the inner folder may be given, too


def test_old_numpy_names_are_read(tmp_path: Path) -> None:
    """The published files were pickled by Python 2 and name numpy.core, and their texts are byte strings."""
    write_cifar10(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert len(cifar10(cfg("cifar10", tmp_path))["test"]) == 4


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"fine{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["c"] * 20}, 2))
    for split, count in (("train", 6), ("test", 3)):
        data = np.full((count, 3072), count, np.uint8)
        content = {"data": data, "fine_labels": list(range(count)), "coarse_labels": [0] * count}
        (folder / split).write_bytes(pickle.dumps(content, 2))
    splits = cifar100(cfg("cifar100", tmp_path))
    assert labels_of(splits["train"]).tolist() == list(range(6)) and len(splits["test"].classes) == 100


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch broken-in",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(), 2), r"test_batch is not a CIFAR file.*posix\.system"),
        (b"\x80", r"test_batch is not a CIFAR file"),
        (pickle.dumps([1], 2), r"holds no dictionary"),
        (None, r"test_batch is missing.*incomplete"),
    ],
)
def test_a_bad_cifar_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        cifar10(cfg("cifar10", tmp_path))
    assert not (tmp_path / "broken-in").exists()


def test_flowers102(make_images: MakeImages) -> None:
    root = make_images(*(f"flowers-102/jpg/image_{i:05d}.jpg" for i in range(1, 13)))
    folder = root / "flowers-102"
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 13)[None]})
    savemat(
        folder / "setid.mat",
        {"trnid": np.array([[3, 1, 5]]), "valid": np.array([[2, 4]]), "tstid": np.array([[6, 7, 8, 9, 10, 11, 12]])},
    )
    splits = flowers102(cfg("flowers102", root))
    assert {name: len(source) for name, source in splits.items()} == {"train": 3, "val": 2, "test": 7}
    assert labels_of(splits["train"]).tolist() == [2, 0, 4]
    assert splits["train"].keys[0] == "jpg/image_00003.jpg" and splits["train"][0][1] == 2
    assert len(splits["train"].classes) == 102


def food_archive(make_images: MakeImages) -> Path:
    names = {"train": ["pie/1", "pie/2", "apple/7"], "test": ["pie/3", "apple/8"]}
    root = make_images(*(f"food-101/images/{path}.jpg" for part in names.values() for path in part))
    (root / "food-101/meta").mkdir()
    for split, paths in names.items():
        listed: dict[str, list[str]] = {}
        for path in paths:
            listed.setdefault(path.split("/")[0], []).append(path)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(listed))
    return root


def test_food101_agrees_with_torchvision(make_images: MakeImages) -> None:
    root = food_archive(make_images)
    splits = food101(cfg("food101", root))
    for split in ("train", "test"):
        ours, theirs = splits[split], tv.Food101(str(root), split)
        assert (ours.classes, len(ours)) == (theirs.classes, len(theirs))
        for i in range(len(ours)):
            assert ours[i][1] == theirs[i][1]
            assert (np.asarray(ours[i][0]) == np.asarray(theirs[i][0])).all()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address at which the files of ``tmp_path`` are served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_download_is_fetched_beside_and_renamed(
    make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    root = food_archive(make_images)
    archive = tmp_path / "food-101.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "food-101", "food-101")
    monkeypatch.setattr(tv.Food101, "_URL", f"{server}/food-101.tar.gz")
    monkeypatch.setattr(tv.Food101, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    new = tmp_path / "new"
    half = new / ".food-101.download/food-101/meta"  # what an interrupted one left
    half.mkdir(parents=True)
    (half / "train.json").write_text("{")
    splits = open_splits(cfg("food101", new, download=True), 0)
    assert len(splits["train"]) == 3 and splits["train"][2][0].size == (20, 16)
    assert sorted(path.name for path in new.iterdir()) == [".food-101.lock", "food-101"]
    monkeypatch.setattr(tv.Food101, "_URL", f"{server}/gone.tar.gz")
    with pytest.raises(UserError, match=r"could not be fetched"):
        food101(cfg("food101", tmp_path / "other", download=True))
    assert not (tmp_path / "other/food-101").exists()


def test_imagenet_class_folders(make_images: MakeImages) -> None:
    paths = [f"{s}/{w}/{w}_{i}.JPEG" for s, n in (("train", 4), ("val", 2)) for w in ("n02", "n01") for i in range(n)]
    root = make_images(*paths)
    splits = imagenet(cfg("imagenet", root))
    ours, theirs = splits["train"], tv.ImageFolder(str(root / "train"))
    assert ours.classes == theirs.classes == ["n01", "n02"]
    assert [(str(root / key), label) for key, label in zip(ours.keys, labels_of(ours), strict=True)] == theirs.samples
    assert len(splits["val"]) == 4
    (root / "val/n02").rename(root / "val/n03")
    with pytest.raises(UserError, match=r"train and val differ in 2 classes, the first is n02"):
        imagenet(cfg("imagenet", root))


def test_imagenet_flat_validation_is_labelled_by_the_devkit(make_images: MakeImages) -> None:
    train = [f"train/{wnid}/x.JPEG" for wnid in ("n02", "n01", "n03")]
    root = make_images(*train, *(f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)))
    with pytest.raises(UserError, match=r"devkit"):
        imagenet(cfg("imagenet", root))
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    synsets = np.array([(1, "n03"), (2, "n01"), (3, "n02")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n1\n")
    val = imagenet(cfg("imagenet", root))["val"]
    assert [val.classes[label] for label in labels_of(val)] == ["n02", "n03", "n01", "n03"]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n")
    with pytest.raises(UserError, match=r"holds 4 images, but .* labels 2"):
        imagenet(cfg("imagenet", root))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers102", "food101", "imagenet"])
def test_missing_sets_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"'{name}' was not found.*dataset\.root") as caught:
        open_splits(DatasetConfig(name=name), 0)
    assert "VITLAB_DATA" in str(caught.value)
    assert ("dataset.download=true" in str(caught.value)) == (name != "imagenet")


def test_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.name=cifar11 is unknown.*Did you mean cifar10"):
        open_splits(cfg("cifar11", tmp_path), 0)
