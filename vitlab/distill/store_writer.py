"""Writing one slot of a target store: from several processes at once, safe to kill at any moment, sealed at the end.

Every record has a fixed offset, so the bytes do not depend on which process writes which image, or in what order. A
record counts as written only when its bit is set in the bitmap of its writer, and bits are set only after the records
are on the disk.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store_spec import BLOCK, CRC, RECORDS, SEALED, StoreSpec, slot_folder
from vitlab.errors import UserError, written_to
from vitlab.files import atomic_write, fsync_dir, read_json, write_json
from vitlab.locks import acquire, release


class SlotWriter:
    """Writes records of one slot. Use as a context manager; leaving it, also by an exception, flushes.

    Records go to the file whenever ``buffer`` of them are there, and are synced to the disk and marked as done every
    ``interval`` seconds; a kill loses at most the work since then. (Syncing more often would write each page of a
    shuffled slot many times.)

    Raises:
        UserError: if another process writes under the same id.
    """

    def __init__(
        self,
        store: Path,
        spec: StoreSpec,
        slot: int,
        writer_id: int | str = 0,
        buffer: int = BLOCK,
        interval: float = 5.0,
    ) -> None:
        if not re.fullmatch(r"[\w-]+", str(writer_id)):
            raise ValueError(f"a writer id is a number or a word, got {writer_id!r}")
        self._folder = folder = slot_folder(store, slot)
        folder.mkdir(parents=True, exist_ok=True)
        self.spec = spec
        self._slot = slot
        self._interval = interval
        self._bitmap = os.open(folder / f"done_{writer_id}.bits", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            acquire(self._bitmap)
        except OSError:
            os.close(self._bitmap)
            raise UserError(f"{folder} is being written by another process.", "Wait for it, or stop it.") from None
        self._records = os.open(folder / RECORDS, os.O_RDWR | os.O_CREAT, 0o644)
        # Full length from the start (a sparse file): offsets are final, and writers need no agreement with each other.
        with written_to(folder / RECORDS, spec.slot_bytes):
            os.ftruncate(self._records, spec.slot_bytes)
            os.ftruncate(self._bitmap, bitmap_bytes(spec.images))
            os.fsync(self._records)
            os.fsync(self._bitmap)
        fsync_dir(folder)
        # Three bitmaps: _done is on the disk, of this writer; _drained adds its records written since the last sync;
        # _seen is the union over all writers at opening, plus this writer's buffer, to skip images stored already.
        self._done = np.frombuffer(os.pread(self._bitmap, bitmap_bytes(spec.images), 0), np.uint8).copy()
        self._drained = self._done.copy()
        self._seen = read_bitmaps(folder, spec.images)
        self._buffer = np.zeros(buffer, spec.record)
        self._where = np.zeros(buffer, np.int64)
        self._filled = 0
        self._last_flush = time.monotonic()
        self._failed = False  # a write or a sync failed: what this writer still holds is dropped

    def write(self, index: ArrayLike, seed: ArrayLike | None, target: SparseTarget, **fields: ArrayLike) -> int:
        """Add records: image ``index`` [B], ``seed`` [B] in [0, 2^31), the teacher's ``target``, further fields [B, n].

        ``seed`` is None where the protocol's records hold none.

        An image that this slot already has is left as it is, so padding and reruns do no harm. Returns how many
        records were new.

        Raises:
            ValueError: for shapes, classes or probabilities that the store cannot hold, or another image's seed.
        """
        indices, seeds = _integers(index), None if seed is None else _integers(seed)
        self._check(indices, seeds, target, fields)
        records = np.zeros(len(indices), self.spec.record)
        if seeds is not None:
            records["seed"] = seeds
        records["index"] = target.index.cpu().numpy()
        records["prob"] = _encode(target.prob, self.spec.prob)
        for name, values in fields.items():
            records[name] = values
        new = np.flatnonzero(~read_bits(self._seen, indices))
        # The first row of an image that the batch repeats, as padding does.
        new = new[np.unique(indices[new], return_index=True)[1]]
        set_bits(self._seen, indices[new])
        start = 0
        while start < len(new):
            part = new[start : start + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = records[part]
            self._where[self._filled : self._filled + len(part)] = indices[part]
            self._filled += len(part)
            start += len(part)
            if self._filled == len(self._buffer):
                self._drain()
        if time.monotonic() - self._last_flush > self._interval:
            self.flush()
        return len(new)

    def flush(self) -> None:
        """Sync everything written so far to the disk, and only then mark it as done."""
        self._drain()
        if not np.array_equal(self._done, self._drained):
            with self._once(), written_to(self._folder):
                # Records first: after a power loss a bit without its record would pass zeros off as a target.
                os.fsync(self._records)
                self._done[:] = self._drained
                _pwrite(self._bitmap, self._done.data, 0)
                os.fsync(self._bitmap)
        self._last_flush = time.monotonic()

    def _drain(self) -> None:
        """Hand the buffer to the operating system, one write for each run of consecutive images.

        Not a memory map: a full disk would then kill the process (SIGBUS) instead of raising an error.
        """
        if not self._filled:
            return
        order = np.argsort(self._where[: self._filled])
        where, records = self._where[order], self._buffer[order]
        size = self.spec.record.itemsize
        data = records.view(np.uint8).data
        starts = np.flatnonzero(np.diff(where, prepend=-2) != 1).tolist()
        with self._once(), written_to(self._folder / RECORDS, len(where) * size):
            for first, last in zip(starts, [*starts[1:], len(where)], strict=True):
                _pwrite(self._records, data[first * size : last * size], int(where[first]) * size)
        set_bits(self._drained, where)
        self._filled = 0

    @contextmanager
    def _once(self) -> Iterator[None]:
        """Remember that a write or a sync failed. A second sync would succeed although the records are lost: the
        operating system reports an error once, and then takes the pages for written."""
        try:
            yield
        except OSError:
            self._failed = True
            raise

    def close(self) -> None:
        """Flush, unless a write or a sync failed before, and close the files."""
        try:
            if not self._failed:
                self.flush()
        finally:
            os.close(self._records)
            release(self._bitmap)

    def __enter__(self) -> SlotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(
        self,
        index: NDArray[np.int64],
        seed: NDArray[np.int64] | None,
        target: SparseTarget,
        fields: dict[str, ArrayLike],
    ) -> None:
        spec, rows = self.spec, len(target)
        if target.classes != spec.classes or target.prob.shape[1] != spec.k:
            given = f"{target.prob.shape[1]} of {target.classes}"
            raise ValueError(f"the store holds {spec.k} of {spec.classes} classes, the target {given}")
        if (seed is not None) != spec.seeded:
            raise ValueError(f"records of protocol {spec.protocol} hold {'a' if spec.seeded else 'no'} seed")
        if len(index) != rows or (seed is not None and len(seed) != rows):
            raise ValueError(
                f"{len(index)} indices and {len(index if seed is None else seed)} seeds for {rows} targets"
            )
        if set(fields) != {name for name, _, _ in spec.fields}:
            raise ValueError(f"further fields are {[n for n, _, _ in spec.fields]}, got {sorted(fields)}")
        if rows == 0:
            return
        if index.min() < 0 or index.max() >= spec.images:
            raise ValueError(f"image index outside 0..{spec.images - 1}: {index.min()}..{index.max()}")
        if seed is not None and (seed.min() < 0 or seed.max() >= 1 << 31):
            raise ValueError("seeds are in [0, 2^31)")
        if (
            seed is not None
            and spec.base_seed is not None
            and (seed != seeds_of(spec.base_seed, self._slot, index)).any()
        ):
            raise ValueError(f"a seed is not seed_of(base_seed={spec.base_seed}, slot={self._slot}, image)")
        low, high = torch.aminmax(target.index)
        if low < 0 or high >= spec.classes:
            raise ValueError(f"class outside 0..{spec.classes - 1}: {int(low)}..{int(high)}")
        low, high = torch.aminmax(target.prob)  # NaN propagates, and then fails the comparison
        if not (low >= 0 and high <= 1.001):
            raise ValueError(f"probabilities are in [0, 1], got {float(low)}..{float(high)}")


def seal(folder: Path, spec: StoreSpec) -> None:
    """Finish a slot: write the checksums, then the marker, then delete the bitmaps. Idempotent.

    Raises:
        RuntimeError: if records are missing.
    """
    if not is_sealed(folder):
        missing = spec.images - count_bits(read_bitmaps(folder, spec.images))
        if missing:
            raise RuntimeError(f"{folder} lacks {missing} of {spec.images} records and cannot be sealed")
        crc = np.fromiter(checksums(folder, spec), "<u4").tobytes()
        # The marker follows the checksums that it certifies and precedes the deletion of the bitmaps, until then the
        # only list of complete records. After a kill between any two of these steps the next call completes them.
        atomic_write(folder / CRC, crc)
        write_json(folder / SEALED, {"records": spec.images, "block": BLOCK, "crc32": zlib.crc32(crc)})
    if bitmaps := list(folder.glob("done_*.bits")):
        for path in bitmaps:
            path.unlink(missing_ok=True)
        fsync_dir(folder)  # or a power failure brings them back, and nobody looks at a sealed slot again


def is_sealed(folder: Path) -> bool:
    """Whether the slot's marker exists."""
    return (folder / SEALED).is_file()


def read_seal(folder: Path) -> int:
    """The checksum of the slot's checksums, from the marker."""
    return int(read_json(folder / SEALED)["crc32"])


def checksums(folder: Path, spec: StoreSpec) -> Iterator[int]:
    """CRC32 of each block of 8192 records, in order."""
    with open(folder / RECORDS, "rb") as file:
        while block := file.read(BLOCK * spec.record.itemsize):
            yield zlib.crc32(block)


def bitmap_bytes(images: int) -> int:
    """Bytes of a bitmap."""
    return (images + 7) // 8


def read_bitmaps(folder: Path, images: int) -> NDArray[np.uint8]:
    """The union of the bitmaps of all writers: bit i for image i."""
    union = np.zeros(bitmap_bytes(images), np.uint8)
    for path in folder.glob("done_*.bits"):
        bits = np.fromfile(path, np.uint8)
        if len(bits) not in (0, len(union)):  # 0: killed between creating the file and sizing it
            raise UserError(f"{path} has {len(bits)} bytes, expected {len(union)}.", "Delete the file and run again.")
        union[: len(bits)] |= bits
    return union


def read_bits(bits: NDArray[np.uint8], index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the bit of each index is set."""
    return (bits[index >> 3] >> (index & 7).astype(np.uint8) & 1).astype(bool)


def set_bits(bits: NDArray[np.uint8], index: NDArray[np.int64]) -> None:
    """Set the bit of each index, in place."""
    np.bitwise_or.at(bits, index >> 3, np.left_shift(1, index & 7).astype(np.uint8))


def count_bits(bits: NDArray[np.uint8]) -> int:
    """Number of bits set."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _pwrite(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _encode(prob: torch.Tensor, kind: str) -> NDArray[np.generic]:
    """Probabilities in the stored type, rounded to nearest even."""
    prob = prob.detach().float().cpu()
    if kind == "bf16":
        return prob.bfloat16().view(torch.int16).numpy().view(np.uint16)
    return prob.half().numpy() if kind == "f2" else prob.numpy()


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"a list of integers is needed, got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)
