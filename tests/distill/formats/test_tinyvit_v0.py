"""TinyViT's official store: bytes, ranks, duplicates, refusals, and the way to our store and back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vitlab.data.sampler import EpochSampler
from vitlab.data.sources import Strings
from vitlab.distill.draw import Augmentation
from vitlab.distill.formats import open_targets
from vitlab.distill.formats.tinyvit_v0 import CACHE, V0Store, record_type, write_epoch
from vitlab.distill.store import TargetStore
from vitlab.errors import UserError
from vitlab.methods.tinyvit.convert import export_v0, import_v0

N, K, C = 37, 3, 9
KEYS = [f"n{i % 4:08d}/n{i % 4:08d}_{i}.JPEG" for i in range(N)]
AUG = Augmentation(size=32, crop_scale=(0.5, 1.0))
MIXED = Augmentation(size=32, crop_scale=(0.5, 1.0), mixup=0.8)


def records(seeds: NDArray[np.int64], epoch: int = 0) -> NDArray[np.void]:
    """Records whose content follows from image and epoch, with the given seeds."""
    rng = np.random.default_rng(epoch)
    prob = -np.sort(-rng.dirichlet(np.ones(C), len(seeds)), axis=1)[:, :K]
    found = np.zeros(len(seeds), record_type(K))
    found["seed"], found["prob"] = seeds, prob
    found["index"] = np.argsort(rng.random((len(seeds), C)), axis=1)[:, :K]
    return found


def write_tree(
    folder: Path, world: int, epochs: int = 2, named: bool = False, paired: bool = False
) -> list[NDArray[np.void]]:
    """What ``world`` official processes would write; the record of each image and epoch that must be read."""
    wanted = []
    for epoch in range(epochs):
        full = records(np.arange(N) * 10 + epoch, epoch)
        parts, right = {}, full.copy()
        seen: dict[int, int] = {}
        for rank in range(world):
            sampler = EpochSampler(N, 2 * world, rank=rank, world=world, paired=paired, padded=True)
            index, _ = sampler.order(epoch)
            mine = full[index].copy()
            mine["seed"] += rank * 100_000  # another process draws another seed for the same image
            for row, image in enumerate(index.tolist()):
                if image not in seen:
                    seen[image] = rank
                    right[image] = mine[row]
            keys = [Path(KEYS[i]).stem if named else str(i) for i in index.tolist()]
            parts[rank] = keys, mine
        if paired:  # the pair of an image is row t of two; row t is rank t mod world's
            order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).numpy()
            right["seed"][order] = full["seed"][order] + np.arange(N) // 2 % world * 100_000
        write_epoch(folder, epoch, K, parts)
        wanted.append(right)
    return wanted


def assert_reads(store: V0Store | TargetStore, wanted: list[NDArray[np.void]]) -> None:
    rng = np.random.default_rng(0)
    for epoch, right in enumerate(wanted):
        index = rng.permutation(N)
        seed, target = store.gather(np.full(N, epoch), index)
        assert np.array_equal(seed, right["seed"][index])
        assert np.array_equal(target.index.numpy(), right["index"][index])
        assert np.array_equal(target.prob.numpy(), right["prob"][index].astype(np.float32))
    mixed_epochs = np.arange(N) % len(wanted)
    seed, _ = store.gather(mixed_epochs, np.arange(N))
    assert seed.tolist() == [int(wanted[e]["seed"][i]) for i, e in enumerate(mixed_epochs)]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and CACHE not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_record_has_the_official_bytes() -> None:
    record = np.zeros(1, record_type(2))
    record["seed"], record["index"], record["prob"] = 305419896, [3, 0], [0.625, 0.25]
    assert record.tobytes().hex() == "785634120300000000390034"


def test_storage_is_the_papers() -> None:
    """Section 9.2: bytes per view, and the published sizes."""
    assert record_type(10).itemsize == 44 and record_type(100).itemsize == 404
    assert 14_197_122 * record_type(100).itemsize * 90 == 516_207_355_920
    assert 1_281_167 * record_type(10).itemsize * 300 == 16_911_404_400


@pytest.mark.parametrize("paired", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("named", [False, True], ids=["indices", "names"])
@pytest.mark.parametrize("world", [1, 3, 8])
def test_any_number_of_ranks_is_read(tmp_path: Path, world: int, named: bool, paired: bool) -> None:
    wanted = write_tree(tmp_path, world, named=named, paired=paired)
    store = open_targets(tmp_path, Strings(KEYS), C, paired)
    assert isinstance(store, V0Store)
    assert_reads(store, wanted)
    assert store.verify() == []
    survey = store.survey(1)
    assert (survey.duplicates > 0) == (world > 1) and survey.duplicates <= 2 * world - 1
    assert survey.extra == 0
    assert len(list((tmp_path / CACHE).iterdir())) == 2
    assert_reads(V0Store(tmp_path, Strings(KEYS), C, paired), wanted)  # by the index on the disk


def test_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    """Section 9.7: a duplicate across ranks is the lowest rank's, whatever was read before."""
    for number, order in enumerate(itertools.permutations(range(3))):
        folder = tmp_path / str(number)
        both = records(np.array([5, 6]))
        parts = {rank: (["0", "1"] if rank else ["1"], both if rank else both[1:].copy()) for rank in range(3)}
        for rank in order:
            parts[rank][1]["seed"] = 10 * rank + np.arange(len(parts[rank][1]))
            write_epoch(folder, 0, K, {rank: parts[rank]})
        for first in ([0, 1], [1, 0]):
            seed, _ = V0Store(folder, ["0", "1"], C).gather(np.zeros(2, int), np.array(first))
            assert dict(zip(first, seed.tolist(), strict=True)) == {0: 10, 1: 0}


def test_a_second_record_of_a_rank_is_dropped_when_written(tmp_path: Path) -> None:
    found = records(np.array([1, 2, 3]))
    inside = write_epoch(tmp_path, 0, K, {0: (["0", "1", "0"], found)})
    assert (inside / "rank0-keys.txt").read_text() == "0\n1\n"
    assert (inside / "rank0-values.bin").read_bytes() == found[:2].tobytes()


@pytest.mark.parametrize("world", [1, 3, 8])
@pytest.mark.parametrize("named", [False, True], ids=["indices", "names"])
def test_to_our_store_and_back(tmp_path: Path, world: int, named: bool) -> None:
    """What a store holds does not change on the way, and a tree that one rank wrote comes back byte for byte."""
    wanted = write_tree(tmp_path / "v0", world, named=named)
    done = import_v0(tmp_path / "v0", tmp_path / "ours", KEYS, C, AUG, "data")
    assert (done.records, done.epochs, done.extra) == (2 * N, 2, 0)
    assert done.duplicates == 2 * (-N % world)
    ours = TargetStore.open(tmp_path / "ours", expect={"augmentation_fingerprint": AUG.fingerprint()})
    assert_reads(ours, wanted)
    assert ours.verify() == []
    export_v0(tmp_path / "ours", tmp_path / "back", world, named)
    assert_reads(V0Store(tmp_path / "back", KEYS, C), wanted)
    if world == 1:
        assert tree(tmp_path / "back") == tree(tmp_path / "v0")
    import_v0(tmp_path / "back", tmp_path / "again", KEYS, C, AUG, "data")
    assert tree(tmp_path / "again") == tree(tmp_path / "ours")
    export_v0(tmp_path / "again", tmp_path / "more", world, named)
    assert tree(tmp_path / "more") == tree(tmp_path / "back")


def test_an_interrupted_import_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = write_tree(tmp_path / "v0", 3)

    def stop(done: int, total: int) -> None:
        if done > N:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_v0(tmp_path / "v0", tmp_path / "ours", KEYS, C, AUG, "data", stop)
    import_v0(tmp_path / "v0", tmp_path / "ours", KEYS, C, AUG, "data")
    assert_reads(TargetStore.open(tmp_path / "ours"), wanted)


def test_an_image_more_or_less(tmp_path: Path) -> None:
    """Named images may be a part of those stored; numbered ones say nothing of which data set they are."""
    wanted = write_tree(tmp_path / "named", 3, named=True)
    some = [0, 1, 2, 30]
    store = V0Store(tmp_path / "named", [KEYS[i] for i in some], C)
    assert store.survey(0).extra > 0
    assert store.gather(np.zeros(4, int), np.arange(4))[0].tolist() == wanted[0]["seed"][some].tolist()
    write_tree(tmp_path / "numbered", 3)
    with pytest.raises(UserError, match="is no image of this data set"):
        V0Store(tmp_path / "numbered", KEYS[:-1], C)
    with pytest.raises(UserError, match=r"no labels for 1 of 38 images, first 'other.png'"):
        V0Store(tmp_path / "numbered", [*KEYS, "other.png"], C)
    with pytest.raises(UserError, match="is no image of this data set"):
        V0Store(tmp_path / "named", ["a/cat.png", "b/dog.png"], C)
    with pytest.raises(UserError, match=r"Two images of this data set are called 'cat'"):
        V0Store(tmp_path / "named", ["a/cat.png", "b/cat.png"], C)


def test_a_changed_tree_is_indexed_again(tmp_path: Path) -> None:
    write_tree(tmp_path, 3)
    V0Store(tmp_path, KEYS, C)
    path = tmp_path / f"logits_top{K}_epoch0" / "rank1-keys.txt"
    path.write_text(path.read_text().replace("\n", "0\n", 1))
    with pytest.raises(UserError, match=r"no labels for 1|is no image|twice"):
        V0Store(tmp_path, KEYS, C)


def damage(folder: Path, how: str) -> None:
    epoch = folder / f"logits_top{K}_epoch1"
    values, keys = epoch / "rank1-values.bin", epoch / "rank1-keys.txt"
    match how:
        case "truncated":
            values.write_bytes(values.read_bytes()[:-1])
        case "other K":
            epoch.rename(folder / "logits_top4_epoch1")
        case "duplicate":
            lines = keys.read_text().splitlines()
            keys.write_text("".join(f"{line}\n" for line in [*lines[:-1], lines[0]]))
        case "half":
            values.unlink()
        case "gap":
            epoch.rename(folder / f"logits_top{K}_epoch7")
        case "foreign file":
            (epoch / "notes.txt").touch()
        case "foreign folder":
            (folder / "old").mkdir()
        case "empty":
            for path in epoch.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"rank1-values.bin has \d+ bytes; 13 keys of K=3 need 208"),
        ("other K", r"need 260"),
        ("duplicate", r"rank1-keys.txt: '\d+' is listed twice"),
        ("half", r"has a rank1-keys.txt but no rank1-values.bin"),
        ("gap", r"has no epoch 1 \(there are 2, up to 7\)"),
        ("foreign file", r"notes.txt does not belong"),
        ("foreign folder", r"old does not belong"),
        ("empty", r"holds no rank\*-keys.txt"),
    ],
)
def test_errors_name_the_broken_file(tmp_path: Path, how: str, message: str) -> None:
    write_tree(tmp_path, 3)
    damage(tmp_path, how)
    with pytest.raises(UserError, match=message):
        V0Store(tmp_path, KEYS, C).positions(1)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seed", -1, "a seed is negative"),
        ("index", [1, 1, 2], "a class is twice in a row"),
        ("index", [1, 2, C], f"a class is outside 0..{C - 1}"),
        ("prob", [0.25, 0.5, 0.0], "not in descending order"),
        ("prob", [np.nan, 0.5, 0.0], r"outside \[0, 1\]"),
        ("prob", [0.75, 0.5, 0.0], "more than one"),
    ],
)
def test_invalid_records_are_refused(tmp_path: Path, column: str, value: object, message: str) -> None:
    found = records(np.arange(N))
    found[column][7] = value
    write_epoch(tmp_path / "v0", 0, K, {0: (list(map(str, range(N))), found)})
    (problem,) = V0Store(tmp_path / "v0", KEYS, C).verify()
    assert problem.startswith(f"logits_top{K}_epoch0/rank0")
    with pytest.raises(UserError, match=message):
        import_v0(tmp_path / "v0", tmp_path / "ours", KEYS, C, AUG, "data")


def test_limits_of_the_format(tmp_path: Path) -> None:
    write_tree(tmp_path / "v0", 1)
    with pytest.raises(UserError, match="at most 32768 classes"):
        V0Store(tmp_path / "v0", KEYS, 40_000)
    with pytest.raises(UserError, match="K=3 probabilities of each view, but there are 2"):
        V0Store(tmp_path / "v0", KEYS, 2)
    import_v0(tmp_path / "v0", tmp_path / "mixed", KEYS, C, MIXED, "data")
    with pytest.raises(UserError, match="even number of images"):
        export_v0(tmp_path / "mixed", tmp_path / "out")
    with pytest.raises(IndexError):
        V0Store(tmp_path / "v0", KEYS, C).gather(np.array([2]), np.array([0]))


def test_a_read_only_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = write_tree(tmp_path, 3)

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("vitlab.distill.formats.tinyvit_v0.atomic_write", refuse)
    assert_reads(V0Store(tmp_path, KEYS, C), wanted)
    assert not (tmp_path / CACHE).exists()
