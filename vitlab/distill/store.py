"""TargetStore: the teacher's output for every (image, slot) on disk, with random access.

Files and record: :mod:`vitlab.distill.store_spec`; writing: :mod:`vitlab.distill.store_writer`. A slot is a memory map
whose records are addressed by image index, so opening loads nothing and reading a batch is one gather.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store_blocks import SealedBlocks
from vitlab.distill.store_spec import (
    BLOCK,
    CRC,
    KEYS,
    RECORDS,
    SPEC,
    StoreSpec,
    keys_digest,
    refuse_foreign,
    slot_folder,
)
from vitlab.distill.store_writer import (
    SlotWriter,
    checksums,
    count_bits,
    is_sealed,
    read_bitmaps,
    read_bits,
    read_seal,
    seal,
)
from vitlab.errors import UserError
from vitlab.files import atomic_write, sha256, write_json

SLACK = 5e-3
"""How far above 1 rounding may bring a stored probability."""

_MEANING = {
    "data_fingerprint": "another data set",
    "keys_sha256": "another list of images",
    "images": "another number of images",
    "classes": "another number of classes",
    "augmentation_fingerprint": "another augmentation",
    "base_seed": "another seed",
    "teacher": "another teacher",
}


class TargetStore:
    """A store of targets in ``folder``: :meth:`create` makes it, :meth:`open` opens it, at no cost in memory."""

    def __init__(self, folder: Path, spec: StoreSpec, allow_partial: bool) -> None:
        self.folder = folder
        self.spec = spec
        self.allow_partial = allow_partial
        self._record = spec.record
        self._raw: dict[int, NDArray[np.uint8]] = {}
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._blocks: dict[int, SealedBlocks] = {}

    @classmethod
    def create(cls, folder: Path, spec: StoreSpec, keys: Sequence[str]) -> TargetStore:
        """Make the store, or continue an existing one. ``keys``: one per image, stable, in index order.

        Raises:
            UserError: if the folder holds a store of another spec, or files that are not a store's.
            ValueError: if the keys are not those of the spec.
        """
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign(folder, spec.slots)
        if (folder / SPEC).exists():
            stored = StoreSpec.load(folder)
            if differences := stored.differences(spec):
                raise UserError(
                    f"{folder} holds targets of another kind ({'; '.join(differences)}).",
                    "Store them in another folder, or delete this one.",
                )
            return cls(folder, stored, allow_partial=True)
        if len(keys) != spec.images or keys_digest(keys) != spec.keys_sha256:
            raise ValueError(f"{len(keys)} keys are not those of the spec ({spec.images} images)")
        atomic_write(folder / KEYS, "".join(f"{key}\n" for key in keys))
        # Last: a folder with store.json is a store, so a kill before this line leaves nothing to continue wrongly.
        write_json(folder / SPEC, spec.to_dict())
        return cls(folder, spec, allow_partial=True)

    @classmethod
    def open(cls, folder: Path, expect: Mapping[str, Any] | None = None, allow_partial: bool = False) -> TargetStore:
        """Open for reading. ``expect``: fields of the spec and the values that they must have.

        Of a slot that is not sealed (``allow_partial``), only the records complete at its first read are visible.

        Raises:
            UserError: if there is no store, it is for another data set or augmentation, holds foreign files, or has
                slots that are not sealed (unless ``allow_partial``; then reading a missing record raises).
        """
        if not (folder / SPEC).is_file():
            raise UserError(
                f"There is no store of targets in {folder} ({SPEC} is missing).", "Name the folder that holds it."
            )
        spec = StoreSpec.load(folder)
        refuse_foreign(folder, spec.slots)
        for name, expected in (expect or {}).items():
            if (stored := getattr(spec, name)) != expected:
                meaning = _MEANING.get(name, f"another {name}")
                cure = "Point at the store that was made for it, or run the store stage again in another folder."
                if name in ("data_fingerprint", "images"):
                    cure += " Images that dataset.val_fraction holds out are not stored: give the value of that run."
                raise UserError(
                    f"The targets in {folder} were stored for {meaning} ({name}: {stored}, expected {expected}).", cure
                )
        store = cls(folder, spec, allow_partial)
        if not allow_partial and (unsealed := [s for s in range(spec.slots) if not store.is_sealed(s)]):
            raise UserError(
                f"{folder} is not finished: {len(unsealed)} of {spec.slots} slots are not sealed, first {unsealed[0]}.",
                "Run the command that stores targets again; it continues.",
            )
        return store

    @property
    def fingerprint(self) -> str:
        """sha256 hex of the spec and of all checksums, hence of the content. RuntimeError unless all is sealed."""
        unsealed = [s for s in range(self.spec.slots) if not self.is_sealed(s)]
        if unsealed:
            raise RuntimeError(f"{self.folder}: slot {unsealed[0]} is not sealed, so there is no fingerprint yet")
        spec = {k: v for k, v in self.spec.to_dict().items() if k != "versions"}
        seals = [read_seal(self._slot_folder(slot)) for slot in range(self.spec.slots)]
        return hashlib.sha256(json.dumps([spec, seals], sort_keys=True).encode()).hexdigest()

    def keys(self) -> Iterator[str]:
        """The image keys in index order, read from the file."""
        with open(self.folder / KEYS, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                yield line.removesuffix("\n")

    def is_sealed(self, slot: int) -> bool:
        """Whether the slot is complete, checksummed and closed."""
        return is_sealed(self._slot_folder(slot))

    def missing(self, slot: int) -> NDArray[np.int64]:
        """Images of the slot that no writer has on disk yet, ascending."""
        if self.is_sealed(slot):
            return np.zeros(0, np.int64)
        bits = np.unpackbits(read_bitmaps(self._slot_folder(slot), self.spec.images), bitorder="little")
        return np.flatnonzero(bits[: self.spec.images] == 0)

    def count(self, slot: int) -> int:
        """Images of the slot that are on disk."""
        if self.is_sealed(slot):
            return self.spec.images
        return count_bits(read_bitmaps(self._slot_folder(slot), self.spec.images))

    def writer(self, slot: int, writer_id: int | str = 0, buffer: int = BLOCK, interval: float = 5.0) -> SlotWriter:
        """A writer of this slot; each process needs its own id (its rank). Use it in a ``with`` statement.

        Raises:
            RuntimeError: if the slot is sealed.
            UserError: if another process writes under the same id.
        """
        if self.is_sealed(slot):
            raise RuntimeError(f"slot {slot} of {self.folder} is sealed")
        return SlotWriter(self.folder, self.spec, slot, writer_id, buffer, interval)

    def seal(self, slot: int) -> None:
        """Checksum and close a complete slot (RuntimeError if records are missing); its bytes do not depend on the
        writers. Call it from one process when all writers are closed; calling it again does nothing."""
        seal(self._slot_folder(slot), self.spec)

    def records(self, slot: int, index: ArrayLike) -> NDArray[np.void]:
        """Records [B] of one slot as stored, with all their fields (a copy).

        Raises:
            IndexError: for an image outside the store.
            RuntimeError: for a record that is not on disk yet.
        """
        return self._take(slot, np.asarray(index)).view(self._record)[:, 0]

    def gather(self, slot: ArrayLike, index: ArrayLike) -> tuple[NDArray[np.int32], SparseTarget]:
        """Seeds [B] and targets of many (slot, image) pairs, ``slot`` and ``index`` integers [B].

        Raises:
            IndexError: for a slot or an image outside the store.
            RuntimeError: for a record that is not on disk yet.
            UserError: a slot is damaged: truncated, a block with another checksum, a record with the seed of another
                view or impossible probabilities.
            ValueError: if the records of this store hold no seed (:meth:`read` is for them).
        """
        if not self.spec.seeded:
            raise ValueError(f"records of protocol {self.spec.protocol} hold no seeds")
        slots, raw = self._gather(slot, index)
        indices = np.asarray(index)
        seed = self._column(raw, "seed")[:, 0].copy()
        if self.spec.base_seed is not None:
            wrong = np.flatnonzero(seed != seeds_of(self.spec.base_seed, slots, indices))
            if len(wrong):
                row = int(wrong[0])
                slot_of_row = np.broadcast_to(slots, indices.shape)[row]
                raise self._damaged(
                    int(slot_of_row),
                    f"the record of image {indices[row]} in slot {slot_of_row} holds seed {seed[row]}, not its own",
                )
        return seed, self._checked(self._target(raw), slots, indices)

    def read(self, slot: ArrayLike, index: ArrayLike) -> tuple[NDArray[np.void], SparseTarget]:
        """Records [B] with all their fields, and targets of many (slot, image) pairs.

        Raises:
            IndexError: for a slot or an image outside the store.
            RuntimeError: for a record that is not on disk yet.
            UserError: a slot is damaged, see :meth:`gather`.
        """
        slots, raw = self._gather(slot, index)
        return raw.view(self._record)[:, 0], self._checked(self._target(raw), slots, np.asarray(index))

    def _gather(self, slot: ArrayLike, index: ArrayLike) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Slots, [B] or one for all, and records as bytes [B, record bytes]."""
        slots, indices = np.asarray(slot), np.asarray(index)
        if slots.shape != indices.shape or slots.ndim != 1 or not len(slots):
            raise ValueError(f"slot and index must both be [B], B > 0; got {slots.shape} and {indices.shape}")
        first = int(slots[0])
        if (slots == first).all():
            slots = slots[0]  # the usual case: one slot in an epoch
            raw = self._take(first, indices)
        else:
            raw = np.empty((len(slots), self._record.itemsize), np.uint8)
            for each in np.unique(slots).tolist():
                rows = np.flatnonzero(slots == each)
                raw[rows] = self._take(each, indices[rows])
        return slots, raw

    def _target(self, raw: NDArray[np.uint8]) -> SparseTarget:
        classes = torch.from_numpy(self._column(raw, "index")).to(torch.int64)
        prob = torch.from_numpy(self._column(raw, "prob"))
        if self.spec.prob == "bf16":
            prob = prob.view(torch.bfloat16)
        return SparseTarget(prob.to(torch.float32), classes, self.spec.classes)

    def _checked(self, target: SparseTarget, slots: NDArray[Any], index: NDArray[Any]) -> SparseTarget:
        """``target``, whose classes the head has and whose probabilities are some; two passes over [B, K] numbers."""
        low, high = torch.aminmax(target.prob)  # NaN if one is
        if int(target.index.max()) < self.spec.classes and low >= 0 and high <= 1 + SLACK:
            return target
        wrong = (target.index >= self.spec.classes) | ~((target.prob >= 0) & (target.prob <= 1 + SLACK))
        row, column = wrong.nonzero()[0].tolist()
        slot = int(np.broadcast_to(slots, index.shape)[row])
        held = f"class {int(target.index[row, column])} with probability {float(target.prob[row, column])}"
        raise self._damaged(
            slot, f"the record of image {index[row]} in slot {slot} holds {held}, of {self.spec.classes} classes"
        )

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read every sealed slot and return the problems found; an empty list is a sound store.

        Checked: keys, sizes, checksums, seeds, classes in range and unique in a row, probabilities finite, in [0, 1],
        descending, adding up to one at most. ``progress(done, all)`` counts blocks.
        """
        problems = []
        if sha256(self.folder / KEYS) != self.spec.keys_sha256:
            problems.append(f"{KEYS}: not the keys that the store was made with")
        sealed = [slot for slot in range(self.spec.slots) if self.is_sealed(slot)]
        blocks = (self.spec.images + BLOCK - 1) // BLOCK
        for position, slot in enumerate(sealed):
            folder = self._slot_folder(slot)
            stored = np.fromfile(folder / CRC, "<u4").tolist()
            size = (folder / RECORDS).stat().st_size
            if size != self.spec.slot_bytes or len(stored) != blocks:
                expected = f"{self.spec.slot_bytes} and {blocks}"
                problems.append(f"slot {slot}: {size} bytes and {len(stored)} checksums, expected {expected}")
                continue
            for block, (expected_crc, crc) in enumerate(zip(stored, checksums(folder, self.spec), strict=True)):
                rows = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.spec.images))
                where = f"slot {slot}, images {rows[0]}..{rows[-1]}"
                if crc != expected_crc:
                    problems.append(f"{where}: checksum {crc:08x}, expected {expected_crc:08x}")
                problems += [f"{where}: {problem}" for problem in self._check_block(slot, rows)]
                if progress is not None:
                    progress(position * blocks + block + 1, len(sealed) * blocks)
        return problems

    def _check_block(self, slot: int, rows: NDArray[np.int64]) -> Iterator[str]:
        raw = self._take(slot, rows, check=False)  # what is wrong is reported, not raised
        records, target = raw.view(self._record)[:, 0], self._target(raw)
        slack = 4e-3 if self.spec.prob == "bf16" else 1e-3  # each value is rounded by up to half a unit
        spec = self.spec
        if (
            spec.seeded
            and spec.base_seed is not None
            and (records["seed"] != seeds_of(spec.base_seed, slot, rows)).any()
        ):
            yield "a seed is not the one that belongs to its image"
        if (target.index >= self.spec.classes).any():
            yield f"a class is outside 0..{self.spec.classes - 1}"
        if (target.index.sort(1).values.diff(dim=1) == 0).any():
            yield "a class is twice in a row"
        if not bool(((target.prob >= 0) & (target.prob <= 1 + slack)).all()):
            yield "a probability is outside [0, 1]"
        if spec.seeded and (target.prob.diff(dim=1) > 0).any():  # official reinforcements keep their own order
            yield "probabilities are not in descending order"
        if (target.prob.sum(1) > 1 + slack).any():
            yield "probabilities of an image add up to more than one"

    def _slot_folder(self, slot: int) -> Path:
        if not 0 <= slot < self.spec.slots:
            raise IndexError(f"slot {slot} is outside 0..{self.spec.slots - 1} of {self.folder}")
        return slot_folder(self.folder, slot)

    def _take(self, slot: int, index: NDArray[Any], check: bool = True) -> NDArray[np.uint8]:
        """Records as bytes [B, record bytes]."""
        if slot not in self._raw:
            self._map(slot)
        if len(index) and (index.min() < 0 or index.max() >= self.spec.images):
            raise IndexError(f"image {index.min()}..{index.max()} is outside 0..{self.spec.images - 1}")
        if slot in self._bits and not (present := read_bits(self._bits[slot], index)).all():
            raise RuntimeError(f"{self.folder}: image {index[~present][0]} of slot {slot} is not stored yet")
        if check and slot not in self._bits:
            try:
                if slot not in self._blocks:
                    self._blocks[slot] = SealedBlocks(self._slot_folder(slot), self.spec)
                self._blocks[slot].check(index)
            except ValueError as error:
                raise self._damaged(slot, str(error)) from error
        return self._raw[slot].take(index, axis=0)

    def _map(self, slot: int) -> None:
        folder = self._slot_folder(slot)
        if not self.is_sealed(slot):
            if not self.allow_partial:
                raise RuntimeError(f"slot {slot} of {self.folder} is not sealed")
            self._bits[slot] = read_bitmaps(folder, self.spec.images)
        path = folder / RECORDS
        size = path.stat().st_size if path.exists() else 0
        if size != self.spec.slot_bytes:
            raise self._damaged(slot, f"{path.name} has {size} bytes, expected {self.spec.slot_bytes}")
        shape = (self.spec.images, self.spec.record.itemsize)
        with open(path, "rb") as file:
            # Read-only and shared: the loader workers of a machine share one copy in the page cache.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Images are read in shuffled order: read-ahead (megabytes on some disks) would fetch pages that are not needed.
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        self._raw[slot] = np.frombuffer(mapped, np.uint8).reshape(shape)

    def _damaged(self, slot: int, problem: str) -> UserError:
        folder = self._slot_folder(slot)
        return UserError(
            f"The stored targets in {folder} are damaged: {problem}.",
            f"Delete that folder, and {self.folder.parent / 'done.json'} where a run made it: the command that "
            "stored the targets stores these again. mode=verify checks the rest.",
        )

    def _column(self, raw: NDArray[np.uint8], name: str) -> NDArray[Any]:
        """One field of raw records as [B, n], in a layout that torch accepts."""
        kind, offset = self._record.fields[name][:2]  # type: ignore[index]  # a structured type has fields
        column = raw[:, offset : offset + kind.itemsize].view(kind.base)
        # Records are packed: an odd record length or offset leaves the field unaligned, and torch cannot wrap that.
        if column.strides[0] % kind.base.itemsize or not column.flags.aligned:
            return column.copy()
        return column
