"""The target store: round trip, resume, integrity, refusal."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shared import skip_where_torch_is_not_forked
from vitlab.data.batch import Batch
from vitlab.distill.draw import Augmentation, seed_of, seeds_of
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_blocks import SealedBlocks
from vitlab.distill.store_spec import BLOCK, KEYS, StoreSpec, keys_digest
from vitlab.distill.store_writer import checksums
from vitlab.errors import UserError
from vitlab.files import atomic_write
from vitlab.training.label_views import _write

AUG = Augmentation(size=8, flip=0.5)


def make_spec(images: int = 40, **changes: object) -> StoreSpec:
    spec = StoreSpec(
        images=images,
        slots=2,
        k=3,
        classes=7,
        keys_sha256=keys_digest(make_keys(min(images, 1000))),
        data_fingerprint="data",
        augmentation=AUG.to_dict(),
        augmentation_fingerprint=AUG.fingerprint(),
        teacher={"name": "random"},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        base_seed=11,
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def make_keys(images: int) -> list[str]:
    return [f"class/{i}.png" for i in range(images)]


def label(spec: StoreSpec, slot: int, index: np.ndarray) -> SparseTarget:
    """A teacher that depends on (slot, index) alone."""
    logits = np.stack([np.random.default_rng([slot, i]).normal(0, 3, spec.classes) for i in index])
    return sparsify(torch.from_numpy(logits).softmax(1), spec.k)


def fill(store: TargetStore, slot: int, index: np.ndarray, writer_id: int = 0, buffer: int = 5) -> None:
    with store.writer(slot, writer_id, buffer=buffer) as writer:
        for part in np.array_split(index, max(1, len(index) // 4)):
            writer.write(part, seeds_of(11, slot, part), label(store.spec, slot, part))


def make_store(folder: Path, spec: StoreSpec | None = None) -> TargetStore:
    """A finished store."""
    spec = spec or make_spec()
    store = TargetStore.create(folder, spec, make_keys(spec.images))
    for slot in range(spec.slots):
        fill(store, slot, store.missing(slot))
        store.seal(slot)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("prob", ["f2", "f4", "bf16"])
@pytest.mark.parametrize(("classes", "k"), [(7, 3), (7, 7), (70_000, 5)])
def test_round_trip(tmp_path: Path, prob: str, classes: int, k: int) -> None:
    spec = make_spec(images=9, classes=classes, k=k, prob=prob)
    make_store(tmp_path, spec)
    store = TargetStore.open(
        tmp_path, expect={"data_fingerprint": "data", "augmentation_fingerprint": AUG.fingerprint()}
    )
    assert store.spec == spec
    index, slot = np.array([8, 0, 3, 3]), np.array([0, 1, 1, 0])
    seed, target = store.gather(slot, index)
    assert seed.tolist() == [seed_of(11, s, i) for s, i in zip(slot.tolist(), index.tolist(), strict=True)]
    wanted = [label(spec, s, np.array([i])) for s, i in zip(slot.tolist(), index.tolist(), strict=True)]
    assert target.index.equal(torch.cat([w.index for w in wanted])) and target.index.dtype == torch.int64
    exact = torch.cat([w.prob for w in wanted])
    kinds = {"f2": torch.float16, "f4": torch.float32, "bf16": torch.bfloat16}
    assert target.prob.equal(exact.to(kinds[prob]).float()) and target.classes == classes
    assert store.verify() == []


@pytest.mark.parametrize("prob", ["f2", "f4", "bf16"])
def test_probabilities_of_one_and_zero(tmp_path: Path, prob: str) -> None:
    """Probabilities of exactly one and zero are stored exactly and pass verification."""
    spec = make_spec(images=3, classes=7, k=3, prob=prob, slots=1)
    store = TargetStore.create(tmp_path, spec, make_keys(3))
    index = np.arange(3)
    sure = sparsify(torch.eye(7)[[4, 0, 6]], 3)
    with store.writer(0) as writer:
        writer.write(index, seeds_of(11, 0, index), sure)
    store.seal(0)
    store = TargetStore.open(tmp_path)
    assert store.gather([0, 0, 0], index)[1].prob.equal(sure.prob)
    assert store.verify() == []


def test_half_precision_bounds(tmp_path: Path) -> None:
    """|dp|/p <= 2^-11 for p >= 2^-14, |dp| <= 2^-25 below."""
    spec = make_spec(images=64, classes=500, k=500)
    make_store(tmp_path, spec)
    index = np.arange(64)
    exact = label(spec, 0, index).prob.double()
    error = (TargetStore.open(tmp_path).gather(np.zeros(64, int), index)[1].prob.double() - exact).abs()
    normal = exact >= 2**-14
    assert normal.any() and (~normal).any()
    assert (error[normal] / exact[normal]).max() <= 2**-11
    assert error[~normal].max() <= 2**-25


def test_record_is_the_papers(tmp_path: Path) -> None:
    """404 bytes at K = 100, 44 at K = 10, and TinyViT's example of K = 2, byte for byte."""
    assert make_spec(classes=21841, k=100).record.itemsize == 404
    assert make_spec(classes=1000, k=10).record.itemsize == 44
    assert (
        14_197_122 * 404 * 90 == 90 * make_spec(images=14_197_122, classes=21841, k=100).slot_bytes == 516_207_355_920
    )
    spec = make_spec(images=1, slots=1, classes=5, k=2, base_seed=None)
    store = TargetStore.create(tmp_path, spec, make_keys(1))
    with store.writer(0) as writer:
        writer.write([0], [305419896], SparseTarget(torch.tensor([[0.625, 0.25]]), torch.tensor([[3, 0]]), 5))
    assert (tmp_path / "slot_00000" / "records.bin").read_bytes().hex() == "785634120300000000390034"


def test_further_fields(tmp_path: Path) -> None:
    """Explicit parameters of another protocol travel beside the target, an odd record length included."""
    fields = (("crop", "<i2", 4), ("flip", "u1", 1))
    spec = make_spec(images=6, slots=1, base_seed=None, protocol="explicit", fields=fields)
    store = TargetStore.create(tmp_path, spec, make_keys(6))
    assert spec.record.itemsize % 2 == 1
    index = np.arange(6)
    crop, flip = np.arange(24).reshape(6, 4), (index % 2)[:, None]
    with store.writer(0) as writer:
        with pytest.raises(ValueError, match="further fields"):
            writer.write(index, index, label(spec, 0, index))
        writer.write(index, index, label(spec, 0, index), crop=crop, flip=flip)
    store.seal(0)
    records = TargetStore.open(tmp_path).records(0, [4, 1])
    assert records["crop"].tolist() == crop[[4, 1]].tolist() and records["flip"][:, 0].tolist() == [0, 1]
    assert store.gather(np.zeros(6, int), index)[1].prob.equal(label(spec, 0, index).prob.half().float())
    assert store.verify() == []


def test_bytes_do_not_depend_on_the_writers(tmp_path: Path) -> None:
    """1, 2 and 4 writers, any batch, any order, interruptions and duplicates: one and the same store."""
    reference = contents(make_store(tmp_path / "one").folder)
    for name, writers, buffer in (("two", 2, 3), ("four", 4, 100)):
        store = TargetStore.create(tmp_path / name, make_spec(), make_keys(40))
        for slot in (1, 0):
            for writer in range(writers):
                shard = np.arange(writer, 40, writers)[::-1]
                fill(store, slot, shard[: len(shard) // 2], writer, buffer)
                fill(store, slot, np.concatenate([shard, shard[:3]]), writer, buffer)
            store.seal(slot)
        assert contents(store.folder) == reference
        assert store.fingerprint == TargetStore.open(tmp_path / "one").fingerprint


def write_slowly(folder: Path, rank: int, world: int, pause: float) -> None:
    """One rank: write its share of the missing records, slot by slot. Runs in a process of its own."""
    store = TargetStore.create(folder, make_spec(images=400), make_keys(400))
    for slot in (0, 1):
        todo = store.missing(slot)
        todo = todo[todo % world == rank]
        with store.writer(slot, rank, buffer=7, interval=0.05) as writer:
            for index in todo.reshape(-1, 1):
                writer.write(index, seeds_of(11, slot, index), label(store.spec, slot, index))
                time.sleep(pause)


def start_writers(folder: Path, pause: float) -> list[multiprocessing.context.ForkProcess]:
    skip_where_torch_is_not_forked()
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds
    writers = [context.Process(target=write_slowly, args=(folder, rank, 2, pause)) for rank in (0, 1)]
    for writer in writers:
        writer.start()
    return writers


def test_killed_and_continued_by_two_processes(tmp_path: Path) -> None:
    """Two writers at once, both killed -9 in the middle, then both again: the bytes of an undisturbed store."""
    reference = contents(make_store(tmp_path / "reference", make_spec(images=400)).folder)
    folder = tmp_path / "killed"
    writers = start_writers(folder, pause=0.005)
    records = folder / "slot_00000" / "records.bin"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (records.exists() and np.count_nonzero(np.fromfile(records, "u1")) > 400):
        assert all(writer.is_alive() for writer in writers), "a writer died by itself"
        time.sleep(0.02)
    for writer in writers:
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    store = TargetStore.open(folder, allow_partial=True)
    assert 0 < store.count(0) < 400, "the kill came too late to show anything"
    done = np.setdiff1d(np.arange(400), store.missing(0))
    _seed, target = store.gather(np.zeros(len(done), int), done)  # marked records are complete
    assert target.index.equal(label(store.spec, 0, done).index)
    with pytest.raises(RuntimeError, match="cannot be sealed"):
        store.seal(0)
    for writer in start_writers(folder, pause=0):
        writer.join(timeout=120)
        assert writer.exitcode == 0
    for slot in (0, 1):
        assert len(store.missing(slot)) == 0
        store.seal(slot)
    assert contents(folder) == reference


def test_one_id_one_process(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path, make_spec(), make_keys(40))
    with store.writer(0, 0), pytest.raises(UserError, match="another process"):
        store.writer(0, 0)
    with store.writer(0, 0):  # free again
        pass


def test_a_child_of_a_killed_writer_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A loader's process outlives a killed parent for some seconds; the same command may start at once."""
    store = TargetStore.create(tmp_path, make_spec(), make_keys(40))
    skip_where_torch_is_not_forked()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def hold() -> None:
        writer = store.writer(0, 0)  # noqa: F841  (held until the process is killed)
        if (child := os.fork()) == 0:
            theirs.send(os.getpid())  # it runs
            time.sleep(600)
        time.sleep(600)
        os.kill(child, signal.SIGKILL)

    holder = context.Process(target=hold)
    holder.start()
    child = ours.recv()
    try:
        with pytest.raises(UserError, match="another process"):
            store.writer(0, 0)
        holder.kill()
        holder.join()
        with store.writer(0, 0):
            pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_an_exception_loses_nothing(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path, make_spec(), make_keys(40))
    index = np.array([3, 1])
    with pytest.raises(KeyboardInterrupt), store.writer(0) as writer:
        writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index))
        raise KeyboardInterrupt
    assert store.count(0) == 2 and not {1, 3} & set(store.missing(0).tolist())


def test_an_unfinished_store_needs_allow_partial(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path, make_spec(), make_keys(40))
    fill(store, 0, np.arange(39))
    with pytest.raises(UserError, match="2 of 2 slots are not sealed"):
        TargetStore.open(tmp_path)
    partial = TargetStore.open(tmp_path, allow_partial=True)
    assert len(partial.gather([0, 0], [0, 38])[1]) == 2
    with pytest.raises(RuntimeError, match="image 39 of slot 0 is not stored yet"):
        partial.gather([0, 0], [5, 39])
    with pytest.raises(RuntimeError, match="not sealed"):
        _ = partial.fingerprint


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"data_fingerprint": "other"}, "another data set"),
        ({"augmentation_fingerprint": Augmentation(size=8).fingerprint()}, "another augmentation"),
        ({"keys_sha256": "0"}, "another list of images"),
    ],
)
def test_another_data_set_or_augmentation_is_refused(tmp_path: Path, expect: dict[str, str], message: str) -> None:
    make_store(tmp_path)
    with pytest.raises(UserError, match=message):
        TargetStore.open(tmp_path, expect=expect)


def test_create_refuses_another_spec_and_wrong_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keys"):
        TargetStore.create(tmp_path, make_spec(), make_keys(39))
    make_store(tmp_path)
    with pytest.raises(UserError, match=r"teacher: .*random.* -> .*other"):
        TargetStore.create(tmp_path, make_spec(teacher={"name": "other"}), make_keys(40))
    newer = make_spec(versions={"numpy": "99"})  # another library version is no other store
    assert TargetStore.create(tmp_path, newer, make_keys(40)).spec.versions == {}


@pytest.mark.parametrize("name", ["rank3-values.bin", "slot_00009/records.bin", "slot_00001/old.bin"])
def test_foreign_files_are_named(tmp_path: Path, name: str) -> None:
    make_store(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(UserError, match="does not belong"):
        TargetStore.open(tmp_path)
    with pytest.raises(UserError, match="does not belong"):
        TargetStore.create(tmp_path, make_spec(), make_keys(40))


def test_records_whose_sync_failed_are_not_marked_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sync succeeds although the records are lost, so a writer that closes after an error makes none."""
    store, index = TargetStore.create(tmp_path, make_spec(), make_keys(40)), np.arange(8)
    writer = store.writer(0)
    writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index))
    sync = os.fsync

    def fail(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        writer.flush()
    writer.close()
    assert store.count(0) == 0 and len(store.missing(0)) == 40


def test_a_folder_is_a_store_only_with_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that ends while the keys are written leaves no store that the next would continue without them."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as ending, pytest.raises(KeyboardInterrupt):
        ending.setattr("vitlab.distill.store.atomic_write", end)
        TargetStore.create(tmp_path, make_spec(), make_keys(40))
    assert not (tmp_path / "store.json").exists()
    assert list(TargetStore.create(tmp_path, make_spec(), make_keys(40)).keys()) == make_keys(40)


def test_each_slot_of_a_wave_gets_its_own_rows(tmp_path: Path) -> None:
    """A batch holds the views of all slots of a wave, of each image one after the other."""
    store, index = TargetStore.create(tmp_path, make_spec(), make_keys(40)), np.arange(6)
    rows = [label(store.spec, slot, np.array([one])) for one in index for slot in range(2)]
    target = SparseTarget(torch.cat([row.prob for row in rows]), torch.cat([row.index for row in rows]), 7)
    image, of, slots = torch.zeros(12, 3, 2, 2), torch.arange(6).repeat_interleave(2), torch.arange(2).repeat(6)
    for slot in range(2):
        with store.writer(slot) as writer:
            assert _write(writer, Batch(image, of, of, slots), target, slot, 2) == 6
        expected = torch.cat([row.index for row in rows[slot::2]]).numpy()
        np.testing.assert_array_equal(store.records(slot, index)["index"], expected)


def test_every_block_of_a_batch_is_checked(tmp_path: Path) -> None:
    spec = make_spec(2 * BLOCK + 10)
    content = bytearray(spec.slot_bytes)
    (tmp_path / "records.bin").write_bytes(content)
    crc = np.fromiter(checksums(tmp_path, spec), "<u4").tobytes()
    (tmp_path / "crc32.bin").write_bytes(crc)
    (tmp_path / "sealed.json").write_text(json.dumps({"crc32": zlib.crc32(crc)}))
    content[-1] ^= 1  # of the last block
    (tmp_path / "records.bin").write_bytes(content)
    blocks = SealedBlocks(tmp_path, spec)
    blocks.check(np.array([0, BLOCK]))
    with pytest.raises(ValueError, match=f"images {2 * BLOCK} to"):
        blocks.check(np.array([0, 1, 2 * BLOCK + 3]))
    with pytest.raises(ValueError, match="checksum"):
        SealedBlocks(tmp_path, spec).check(np.array([0, BLOCK, 2 * BLOCK + 3]))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
def test_what_is_marked_as_done_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, records, marks: each is synced before the next; a mark without its record would pass zeros for a label.
    After the seal the folder is synced once more, or the marks may come back."""
    store, index = TargetStore.create(tmp_path, make_spec(), make_keys(40)), np.arange(40)
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with store.writer(0) as writer:
        assert synced == ["records.bin", "done_0.bits", "slot_00000"]
        writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index))
    assert synced[3:] == ["records.bin", "done_0.bits"]
    store.seal(0)
    crc, seal = (f".{name}.{os.getpid()}.tmp" for name in ("crc32.bin", "sealed.json"))
    assert synced[5:] == [crc, "slot_00000", seal, "slot_00000", "slot_00000"]


def reseal(folder: Path, spec: StoreSpec) -> None:
    """Make the checksums of a slot those of its content."""
    crc = np.fromiter(checksums(folder, spec), "<u4").tobytes()
    (folder / "crc32.bin").write_bytes(crc)
    marker = json.loads((folder / "sealed.json").read_text())
    (folder / "sealed.json").write_text(json.dumps(marker | {"crc32": zlib.crc32(crc)}))


@pytest.mark.parametrize("prob", ["f2", "f4", "bf16"])
@pytest.mark.parametrize(("field", "value"), [("index", 7), ("prob", math.nan), ("prob", -0.25), ("prob", 1.5)])
def test_impossible_targets_are_damage_of_the_store(tmp_path: Path, prob: str, field: str, value: float) -> None:
    """Also where the checksums are right: the record was damaged before it was sealed."""
    store = make_store(tmp_path, make_spec(prob=prob))
    folder = tmp_path / "slot_00001"
    records = np.fromfile(folder / "records.bin", store.spec.record)
    as_bf16 = field == "prob" and prob == "bf16"
    stored = torch.tensor([value]).bfloat16().view(torch.int16).numpy().view(np.uint16) if as_bf16 else [value]
    records[field][4, 1] = stored[0]
    records.tofile(folder / "records.bin")
    reseal(folder, store.spec)
    opened = TargetStore.open(tmp_path)
    for read in (opened.gather, opened.read):
        with pytest.raises(UserError, match=r"damaged: the record of image 4 in slot 1 holds class"):
            read([0, 1, 1], [4, 3, 4])
        read([0, 1, 1], [4, 3, 5])


def test_damage_is_found(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = tmp_path / "slot_00001" / "records.bin"
    good = path.read_bytes()
    size = store.spec.record.itemsize

    damaged = bytearray(good)
    damaged[size * 4 + 10] ^= 1  # in a probability
    path.write_bytes(damaged)
    assert any("checksum" in problem for problem in store.verify())
    opened = TargetStore.open(tmp_path)
    opened.gather([0], [4])  # the other slot is sound
    for read in (opened.gather, opened.read):
        with pytest.raises(UserError, match=r"slot_00001 are damaged: images 0 to 8191: checksum") as caught:
            read([1], [9])  # a record of the same block
        assert "Delete that folder" in caught.value.cure
    with pytest.raises(UserError, match="damaged"):
        opened.records(1, [9])

    damaged = bytearray(good)
    damaged[size * 4] ^= 1  # in a seed
    path.write_bytes(damaged)
    assert any("seed" in problem for problem in store.verify())
    reseal(path.parent, store.spec)
    with pytest.raises(UserError, match="image 4 in slot 1 holds seed"):
        TargetStore.open(tmp_path).gather([1], [4])

    path.write_bytes(good[:-1])
    with pytest.raises(UserError, match="bytes, expected"):
        TargetStore.open(tmp_path).gather([1], [4])
    assert any("bytes" in problem for problem in store.verify())

    path.write_bytes(good)
    reseal(path.parent, store.spec)
    (path.parent / "crc32.bin").write_bytes(b"????")
    with pytest.raises(UserError, match=r"crc32.bin is not the file that was sealed"):
        TargetStore.open(tmp_path).gather([1], [4])
    reseal(path.parent, store.spec)
    (tmp_path / "keys.txt").write_text("other\n")
    assert store.verify() == ["keys.txt: not the keys that the store was made with"]


def test_out_of_range_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for slot, index in ((0, 40), (0, -1), (2, 0), (-1, 0)):
        with pytest.raises(IndexError):
            store.gather([slot], [index])
    with pytest.raises(RuntimeError, match="is sealed"):
        store.writer(0)


def test_writer_refuses_invalid_records(tmp_path: Path) -> None:
    spec = make_spec()
    store = TargetStore.create(tmp_path, spec, make_keys(40))
    one = np.array([1])
    seed = seeds_of(11, 0, one)
    good = label(spec, 0, one)
    bad_class = SparseTarget(good.prob, torch.full_like(good.index, 7), 7)
    nan = SparseTarget(good.prob * float("nan"), good.index, 7)
    wide = SparseTarget(good.prob, good.index, 8)
    with store.writer(0) as writer:
        for index, seeds, target, words in (
            (one, seed, bad_class, "class outside"),
            (one, seed, nan, "probabilities"),
            (one, seed, wide, "3 of 8"),
            (np.array([40]), seed, good, "image index"),
            (one, seed + 1, good, "a seed is not"),
            (np.array([1, 2]), seed, good, "2 indices"),
        ):
            with pytest.raises(ValueError, match=words):
                writer.write(index, seeds, target)
    assert store.count(0) == 0


def test_a_written_record_is_never_written_twice(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path, make_spec(), make_keys(40))
    index = np.array([5, 2, 5])
    with store.writer(0) as writer:
        assert writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index)) == 2
        assert writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index)) == 0
    with store.writer(0, "other") as writer:
        assert writer.write(index, seeds_of(11, 0, index), label(store.spec, 0, index)) == 0


def test_keys_survive(tmp_path: Path) -> None:
    keys = ["ä b.png", "tab\there.png", "carriage\rreturn.png", " "]
    spec = make_spec(images=4, keys_sha256=keys_digest(keys))
    assert list(TargetStore.create(tmp_path, spec, keys).keys()) == keys
    with pytest.raises(UserError, match="line break"):
        keys_digest(["a\nb"])


def test_another_format_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path)
    values = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**values, "format": "vitlab-store-9"}))
    with pytest.raises(UserError, match="vitlab-store-9"):
        TargetStore.open(tmp_path)
    with pytest.raises(UserError, match="no store"):
        TargetStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[]", "[1]", "3", "null", "{}", "x", '{"format":"vitlab-store-1"}', "images", "k"])
def test_a_damaged_description_is_named(text: str, tmp_path: Path) -> None:
    """Not JSON, no mapping, without its keys, or with a value of another type."""
    make_store(tmp_path)
    path = tmp_path / "store.json"
    if text in ("images", "k"):
        text = json.dumps({**json.loads(path.read_text()), text: 2.5})
    path.write_text(text)
    for read in (lambda: TargetStore.open(tmp_path), lambda: make_store(tmp_path)):
        with pytest.raises(UserError, match=r"store\.json"):
            read()


def test_keys_that_are_not_utf8(tmp_path: Path) -> None:
    """Names of files are any bytes; two that differ in such a byte are two keys."""
    assert keys_digest(["a/\udcff.jpg"]) != keys_digest(["a/\udcfe.jpg"])
    assert keys_digest(["a/\udcff.jpg"]) == hashlib.sha256(b"a/\xff.jpg\n").hexdigest()
    atomic_write(tmp_path / KEYS, "a/\udcff.jpg\n")
    assert (tmp_path / KEYS).read_bytes() == b"a/\xff.jpg\n"
