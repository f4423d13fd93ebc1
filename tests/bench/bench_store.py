"""The target store's speed: reading batches, writing, opening. Run as a script for the table.

Every way of reading must give the same numbers; that is what the test holds. Speeds are printed, never asserted.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import CRC, RECORDS, SEALED, SPEC, StoreSpec, keys_digest, slot_folder
from vitlab.distill.store_writer import checksums
from vitlab.files import write_json

Batch = tuple[NDArray[np.int32], torch.Tensor, torch.Tensor]


def make_spec(images: int, k: int, keys: list[str]) -> StoreSpec:
    """A store over as many classes as ImageNet-22k has."""
    return StoreSpec(
        images=images,
        slots=1,
        k=k,
        classes=21_841,
        keys_sha256=keys_digest(keys),
        data_fingerprint="",
        augmentation={},
        augmentation_fingerprint="",
        teacher={},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        base_seed=0,
    )


def random_target(rows: int, k: int) -> SparseTarget:
    """Plausible probabilities, cheap to make."""
    generator = torch.Generator().manual_seed(0)
    prob = torch.rand(rows, k, generator=generator).sort(1, descending=True).values / k
    return SparseTarget(prob, torch.arange(k).expand(rows, k) + torch.arange(rows)[:, None] % 1000, 21_841)


def write(folder: Path, images: int, k: int, batch: int, order: NDArray[np.int64]) -> float:
    """Fill and seal a store in the given order of images; returns the seconds of wall time until all is on the disk."""
    keys = [str(i) for i in range(images)]
    store = TargetStore.create(folder, make_spec(images, k, keys), keys)
    target = random_target(batch, k)
    start = time.perf_counter()
    with store.writer(0) as writer:
        for first in range(0, images, batch):
            index = order[first : first + batch]
            part = SparseTarget(target.prob[: len(index)], target.index[: len(index)], target.classes)
            writer.write(index, seeds_of(0, 0, index), part)
    seconds = time.perf_counter() - start
    store.seal(0)
    return seconds


def readers(folder: Path) -> dict[str, Callable[[NDArray[np.int64]], Batch]]:
    """Ways to read a batch of one slot, to float32 and int64 tensors."""
    store = TargetStore.open(folder)
    spec = store.spec
    path = slot_folder(folder, 0) / RECORDS
    records = np.memmap(path, spec.record, "r")
    file = open(path, "rb")  # noqa: SIM115  # stays open during the measurement, as in a loader worker

    def gather(index: NDArray[np.int64]) -> Batch:
        seed, target = store.gather(np.zeros(len(index), np.int64), index)
        return seed, target.index, target.prob

    def plain_numpy(index: NDArray[np.int64]) -> Batch:
        rows = records[index]
        classes, prob = rows["index"].astype(np.int64), rows["prob"].astype(np.float32)
        return rows["seed"], torch.from_numpy(classes), torch.from_numpy(prob)

    def seek_and_read(index: NDArray[np.int64]) -> Batch:
        rows = []
        for one in index.tolist():
            file.seek(one * spec.record.itemsize)
            rows.append(np.frombuffer(file.read(spec.record.itemsize), spec.record)[0])
        seed = np.array([row["seed"] for row in rows], np.int32)
        classes = torch.stack([torch.from_numpy(row["index"].astype(np.int64)) for row in rows])
        return seed, classes, torch.stack([torch.from_numpy(row["prob"].astype(np.float32)) for row in rows])

    return {"TargetStore.gather": gather, "numpy memmap": plain_numpy, "seek + read": seek_and_read}


def reading_rate(read: Callable[[NDArray[np.int64]], Batch], images: int, batch: int, batches: int) -> float:
    """Records per second of CPU time, random indices, the best of five rounds."""
    rng = np.random.default_rng(0)
    indices = [rng.integers(0, images, batch) for _ in range(batches)]
    read(indices[0])
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for index in indices:
            read(index)
        best = min(best, time.process_time() - start)
    return batch * batches / best


def make_large(folder: Path, images: int, slots: int) -> None:
    """A sealed store of holes: of the requested size, without disk space."""
    spec = dataclasses.replace(make_spec(1, 100, ["0"]), images=images, slots=slots, base_seed=None)
    for slot in range(slots):
        inside = slot_folder(folder, slot)
        inside.mkdir(parents=True)
        (inside / RECORDS).touch()
        os.truncate(inside / RECORDS, spec.slot_bytes)
        if not slot:  # the others are like it
            crc = np.fromiter(checksums(inside, spec), "<u4").tobytes()
        (inside / CRC).write_bytes(crc)
        write_json(inside / SEALED, {"crc32": zlib.crc32(crc)})
    write_json(folder / SPEC, spec.to_dict())


def opening(folder: Path) -> tuple[float, float, float]:
    """Seconds to open a store, seconds to read a first batch of 256, and MiB of resident memory that both take."""
    before, start = _resident(), time.perf_counter()
    store = TargetStore.open(folder)
    opened = time.perf_counter()
    store.gather(np.zeros(256, np.int64), np.random.default_rng(0).integers(0, store.spec.images, 256))
    return opened - start, time.perf_counter() - opened, (_resident() - before) / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_all_readers_agree(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(500)
    assert write(tmp_path / "store", 500, 100, 64, order) > 0
    index = np.random.default_rng(2).integers(0, 500, 33)
    results = {name: read(index) for name, read in readers(tmp_path / "store").items()}
    seed, classes, prob = results["TargetStore.gather"]
    for other_seed, other_classes, other_prob in results.values():
        assert np.array_equal(seed, other_seed) and classes.equal(other_classes) and prob.equal(other_prob)
    make_large(tmp_path / "large", 1000, 3)
    assert opening(tmp_path / "large")[0] > 0


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    images = 500_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in (100, 10):
            for title, order in (
                ("in order", np.arange(images)),
                ("shuffled", np.random.default_rng(0).permutation(images)),
            ):
                seconds = write(folder / f"{k}-{title}", images, k, 256, order)
                print(f"write  K={k:<4} {title:<22} {images / seconds:>12,.0f} records/s (to the disk)")
            for title, read in readers(folder / f"{k}-in order").items():
                for batch in (64, 256, 1024):
                    rate = reading_rate(read, images, batch, max(4, (4_000 if "seek" in title else 100_000) // batch))
                    print(f"read   K={k:<4} {title:<18} B={batch:<5}{rate:>10,.0f} records/s of CPU")
        make_large(folder / "large", 14_197_122, 90)
        opened, first, memory = opening(folder / "large")
        print("open   14,197,122 x 90 records (480.8 GiB, sparse)", end="")
        print(f" {opened * 1e3:.1f} ms, first batch {first * 1e3:.1f} ms, {memory:.1f} MiB resident")


if __name__ == "__main__":
    main()
