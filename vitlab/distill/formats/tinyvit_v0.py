"""TinyViT's official store of teacher labels, "v0": read in place, checked, written.

::

    logits_top{K}_epoch{e}/rank{r}-keys.txt    one key per line
    logits_top{K}_epoch{e}/rank{r}-values.bin  as many records, in the same order

A record is little-endian: ``seed i4 | index i2 x K | prob f2 x K``, 4 + 4K bytes; classes in descending order of
probability, at temperature 1. A key is the name of the image without suffix (ImageNet-22k), or the decimal index in
the data set (any other). An image may be in the files of several ranks, because the official sampler pads an epoch:
the lowest rank is read, independently of the order of the directory listing.

The tree records neither its teacher nor its augmentation; training from it needs the augmentation given again.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store_spec import BLOCK, StoreSpec
from vitlab.errors import UserError
from vitlab.files import atomic_write

MAX_CLASSES = 1 << 15
"""Classes are signed 16-bit numbers."""

CACHE = "vitlab-index"
"""Folder in the tree for the index that finds an image's record; built at first use, safe to delete."""

_EPOCH = re.compile(r"logits_top(\d+)_epoch(\d+)")
_RANK = re.compile(r"rank(\d+)-(keys\.txt|values\.bin)")
Positions = NDArray[np.int64]


def record_type(k: int) -> np.dtype[np.void]:
    """numpy's type of a record of K classes, 4 + 4K bytes."""
    return np.dtype([("seed", "<i4"), ("index", "<i2", (k,)), ("prob", "<f2", (k,))])


def is_v0(folder: Path) -> bool:
    """Whether ``folder`` holds epochs of the official store."""
    return folder.is_dir() and any(_EPOCH.fullmatch(path.name) for path in folder.iterdir())


@dataclass(frozen=True)
class V0Epoch:
    """The files of one epoch: rank numbers, number of records of each, checked for consistency."""

    folder: Path
    k: int
    ranks: tuple[int, ...]
    records: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> V0Epoch:
        """Check names and sizes.

        Raises:
            UserError: a foreign file, an incomplete pair of files, or a values file that is truncated or of another K.
        """
        match = _EPOCH.fullmatch(folder.name)
        assert match is not None  # the caller lists folders of that name
        k = int(match[1])
        found: dict[int, set[str]] = {}
        for path in sorted(folder.iterdir()):
            part = _RANK.fullmatch(path.name)
            if part is None:
                raise UserError(f"{path} does not belong to an official TinyViT store.", "Move it out of the folder.")
            found.setdefault(int(part[1]), set()).add(part[2])
        if not found:
            raise UserError(f"{folder} holds no rank*-keys.txt.", "Copy the epoch again.")
        records = []
        for rank, parts in sorted(found.items()):
            if len(parts) != 2:
                (present,) = parts
                (absent,) = {"keys.txt", "values.bin"} - parts
                have, lack = f"rank{rank}-{present}", f"rank{rank}-{absent}"
                raise UserError(f"{folder} has a {have} but no {lack}.", f"Copy {lack} again.")
            lines = _count_lines(folder / f"rank{rank}-keys.txt")
            size, record = (folder / f"rank{rank}-values.bin").stat().st_size, record_type(k).itemsize
            if size != lines * record:
                raise UserError(
                    f"{folder}/rank{rank}-values.bin has {size} bytes; {lines} keys of K={k} need {lines * record}.",
                    "It is truncated, or its folder names another K: copy it again.",
                )
            records.append(lines)
        return cls(folder, k, tuple(sorted(found)), tuple(records))

    @property
    def starts(self) -> Positions:
        """Number of the first record of each rank, and of all records, [ranks + 1]."""
        return np.cumsum([0, *self.records]).astype(np.int64)

    def keys(self, rank: int) -> NDArray[np.bytes_]:
        """Keys of one rank in the order of its records."""
        text = (self.folder / f"rank{rank}-keys.txt").read_bytes()
        return np.array(text.split(b"\n")[: self.records[self.ranks.index(rank)]], dtype=np.bytes_)

    def values(self, rank: int) -> NDArray[np.void]:
        """Records of one rank, mapped."""
        count = self.records[self.ranks.index(rank)]
        if count == 0:
            return np.zeros(0, record_type(self.k))
        return np.memmap(self.folder / f"rank{rank}-values.bin", record_type(self.k), "r", shape=(count,))

    def stamp(self) -> str:
        """Changes whenever a file of the epoch does."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(self.folder.iterdir())]
        return hashlib.sha256(repr(files).encode()).hexdigest()


@dataclass(frozen=True)
class Survey:
    """Where the records of an epoch are: for each image its record's number among all, in rank order."""

    positions: Positions
    duplicates: int  # records of an image that is in another rank as well
    extra: int  # records of images that the data set lacks


class V0Store:
    """An official store, read without conversion: the same ``gather`` as our store's.

    Args:
        folder: of the epochs; they must be 0, 1, 2, ... without a gap.
        keys: of the images in index order, as our sources name them.
        classes: of the teacher.
        paired: the views were mixed in pairs. Of an image in several files the record of its own pair is then read,
            since padding an odd number of images pairs the first ones again.

    The position of an image comes from a binary index, built once for each epoch and kept in the folder
    ``vitlab-index`` of the tree (in memory where that is read-only).

    Raises:
        UserError: no store, gaps, different K, foreign or damaged files, more classes than the format can hold.
    """

    def __init__(self, folder: Path, keys: Sequence[str], classes: int, paired: bool = False) -> None:
        if classes > MAX_CLASSES:
            raise UserError(f"An official TinyViT store holds at most {MAX_CLASSES} classes, not {classes}.")
        self.folder = folder
        self.paired = paired
        self._keys = keys
        self._epochs = _list_epochs(folder)
        self._digest: str | None = None
        self._positions: dict[int, Positions] = {}
        self._values: dict[int, list[NDArray[np.void]]] = {}
        k = self._epochs[0].k
        if k > classes:
            raise UserError(f"{folder} stores K={k} probabilities of each view, but there are {classes} classes.")
        self.spec = StoreSpec(
            images=len(keys),
            slots=len(self._epochs),
            k=k,
            classes=classes,
            keys_sha256="",
            data_fingerprint="",
            augmentation={},
            augmentation_fingerprint="",
            teacher={},
            mean=(),
            std=(),
            base_seed=None,
        )
        self.positions(0)  # so that a foreign data set is refused at once

    def gather(self, slot: ArrayLike, index: ArrayLike) -> tuple[NDArray[np.int32], SparseTarget]:
        """Seeds [B] and targets of many (epoch, image) pairs; see :meth:`TargetStore.gather`.

        Raises:
            IndexError: for an epoch outside the store.
        """
        slots, indices = np.broadcast_arrays(np.asarray(slot), np.asarray(index))
        records = np.empty(len(indices), record_type(self.spec.k))
        for one in np.unique(slots).tolist():
            rows = np.flatnonzero(slots == one)
            records[rows] = self.records(one, indices[rows])
        classes = torch.from_numpy(records["index"].astype(np.int64))
        prob = torch.from_numpy(records["prob"].astype(np.float32))
        return records["seed"].copy(), SparseTarget(prob, classes, self.spec.classes)

    def records(self, epoch: int, index: NDArray[np.int64]) -> NDArray[np.void]:
        """Records [B] of one epoch (a copy)."""
        if not 0 <= epoch < self.spec.slots:
            raise IndexError(f"epoch {epoch} is outside 0..{self.spec.slots - 1} of {self.folder}")
        files = self._epochs[epoch]
        if epoch not in self._values:
            self._values[epoch] = [files.values(rank) for rank in files.ranks]
        where = self.positions(epoch)[index]
        rank = np.searchsorted(files.starts, where, side="right") - 1
        found = np.empty(len(where), record_type(self.spec.k))
        for one in np.unique(rank).tolist():
            rows = rank == one
            found[rows] = self._values[epoch][one][where[rows] - files.starts[one]]
        return found

    def positions(self, epoch: int) -> Positions:
        """For each image the number of its record among all of the epoch's, in rank order; from the index."""
        if epoch not in self._positions:
            cached = self._cache_file(epoch)
            if not cached.is_file():
                found = self.survey(epoch).positions
                buffer = io.BytesIO()
                np.save(buffer, found, allow_pickle=False)
                try:
                    atomic_write(cached, buffer.getvalue())
                except OSError:  # a read-only tree
                    self._positions[epoch] = found
                    return found
            self._positions[epoch] = np.load(cached, mmap_mode="r", allow_pickle=False)
        return self._positions[epoch]

    def verify(self) -> list[str]:
        """Read all records and return the problems found; an empty list is a sound store.

        Checked of every record: seed, classes in range and unique, probabilities finite, descending, adding up to one
        at most. Structure and keys were checked on opening; here they are for every epoch.
        """
        problems = []
        for number, files in enumerate(self._epochs):
            try:
                self.survey(number)
            except UserError as error:
                problems.append(str(error))
            for rank in files.ranks:
                values = files.values(rank)
                for start in range(0, len(values), BLOCK):
                    where = f"{files.folder.name}/rank{rank}, records from {start}"
                    wrong = check_records(np.asarray(values[start : start + BLOCK]), self.spec.classes)
                    problems += [f"{where}: {problem}" for problem in wrong]
        return problems

    def _cache_file(self, epoch: int) -> Path:
        if self._digest is None:
            own = getattr(self._keys, "digest", None)
            names = "\n".join(self._keys).encode("utf-8", "surrogateescape")
            self._digest = own() if own is not None else hashlib.sha256(names).hexdigest()
        text = f"{self._digest} {self.paired} {self._epochs[epoch].stamp()}"
        return self.folder / CACHE / f"epoch{epoch}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"

    def survey(self, epoch: int) -> Survey:
        """Find every image's record among the files of an epoch.

        Raises:
            UserError: a key twice in one rank, keys of another data set, images without a record.
        """
        files = self._epochs[epoch]
        owner = _owners(len(self._keys), epoch, len(files.ranks)) if self.paired else None
        find = _Lookup(self._keys)
        found = np.full(len(self._keys), -1, np.int64)
        own = np.full(len(self._keys), -1, np.int64)
        extra = 0
        for place, rank in reversed(list(enumerate(files.ranks))):  # the lowest rank comes last and wins
            keys = files.keys(rank)
            unique, counts = np.unique(keys, return_counts=True)
            if len(unique) != len(keys):
                twice = unique[counts > 1][0].decode()
                raise UserError(f"{files.folder}/rank{rank}-keys.txt: '{twice}' is listed twice.", "Copy it again.")
            index = find(keys)
            known = np.flatnonzero(index >= 0)
            if len(known) < len(keys) and (find.decimal(keys) or len(known) == 0):
                foreign = keys[np.flatnonzero(index < 0)[0]].decode()
                raise UserError(
                    f"{files.folder}/rank{rank}-keys.txt: '{foreign}' is no image of this data set.",
                    "The labels are of another one; give the dataset= and dataset.root= that they were stored with, "
                    "and dataset.val_fraction=0 where the keys are numbers.",
                )
            extra += len(keys) - len(known)
            number = files.starts[place] + known
            found[index[known]] = number
            if owner is not None:
                mine = owner[index[known]] == place
                own[index[known][mine]] = number[mine]
        found = np.where(own >= 0, own, found)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise UserError(
                f"{files.folder} has no labels for {len(missing)} of {len(found)} images, first "
                f"'{self._keys[int(missing[0])]}'.",
                "Its files are not complete, or the labels are of another data set.",
            )
        return Survey(found, sum(files.records) - extra - len(found), extra)


def check_records(records: NDArray[np.void], classes: int) -> Iterator[str]:
    """The problems of records of the official format."""
    index, prob = records["index"].astype(np.int64), records["prob"].astype(np.float32)
    if (records["seed"] < 0).any():
        yield "a seed is negative"
    if ((index < 0) | (index >= classes)).any():
        yield f"a class is outside 0..{classes - 1}"
    if (np.diff(np.sort(index, axis=1), axis=1) == 0).any():
        yield "a class is twice in a row"
    if not ((prob >= 0) & (prob <= 1.001)).all():
        yield "a probability is outside [0, 1]"
    if (np.diff(prob, axis=1) > 0).any():
        yield "probabilities are not in descending order"
    if (prob.sum(1) > 1 + 1e-3).any():
        yield "probabilities of an image add up to more than one"


def write_epoch(folder: Path, epoch: int, k: int, parts: Mapping[int, tuple[Sequence[str], NDArray[np.void]]]) -> Path:
    """Write one epoch: rank to (keys, records). A rank's second record for a key is dropped, as in the official code.

    Raises:
        ValueError: keys and records that do not match.
    """
    inside = folder / f"logits_top{k}_epoch{epoch}"
    for rank, (keys, records) in parts.items():
        if len(keys) != len(records) or records.dtype != record_type(k):
            raise ValueError(f"{len(keys)} keys for {len(records)} records of {records.dtype}")
        first = list({key: i for i, key in reversed(list(enumerate(keys)))}.values())
        first.sort()
        atomic_write(inside / f"rank{rank}-values.bin", records[first].tobytes())
        atomic_write(inside / f"rank{rank}-keys.txt", "".join(f"{keys[i]}\n" for i in first))
    return inside


def stem(key: str) -> str:
    """The name of an image without folder and suffix: its key in a store of ImageNet-22k."""
    return PurePosixPath(key).stem


class _Lookup:
    """Maps official keys to indices of the data set, -1 for unknown ones."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._sorted: tuple[NDArray[np.bytes_], Positions] | None = None

    def __call__(self, keys: NDArray[np.bytes_]) -> Positions:
        if len(keys) == 0:
            return np.zeros(0, np.int64)
        if self.decimal(keys):
            index = keys.astype(np.int64)
            return np.where(index < len(self._keys), index, -1)
        if self._sorted is None:
            named = np.array([stem(key).encode("utf-8", "surrogateescape") for key in self._keys], dtype=np.bytes_)
            order = np.argsort(named, kind="stable").astype(np.int64)
            named = named[order]
            if len(named) > 1 and (same := np.flatnonzero(named[1:] == named[:-1])).size:
                raise UserError(
                    f"Two images of this data set are called '{named[same[0]].decode()}'.",
                    "The store identifies images by name: rename one of them.",
                )
            self._sorted = named, order
        named, order = self._sorted
        place = np.minimum(np.searchsorted(named, keys), len(named) - 1)
        return np.where(named[place] == keys, order[place], -1)

    @staticmethod
    def decimal(keys: NDArray[np.bytes_]) -> bool:
        """Whether these keys are indices."""
        return bool(np.char.isdigit(keys).all())


def _list_epochs(folder: Path) -> list[V0Epoch]:
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _EPOCH.fullmatch(path.name)
        if match is not None:
            found.setdefault(int(match[2]), []).append(path)
        elif path.name != CACHE:
            raise UserError(f"{path} does not belong to an official TinyViT store.", "Move it out of the folder.")
    for epoch, paths in found.items():
        if len(paths) > 1:
            raise UserError(f"{folder} holds epoch {epoch} twice: {paths[0].name} and {paths[1].name}.")
    if missing := sorted(set(range(max(found) + 1)) - set(found)):
        raise UserError(
            f"{folder} has no epoch {missing[0]} (there are {len(found)}, up to {max(found)}).", "Copy it too."
        )
    epochs = [V0Epoch.open(found[epoch][0]) for epoch in sorted(found)]
    if other := [one for one in epochs if one.k != epochs[0].k]:
        raise UserError(f"{folder} mixes K={epochs[0].k} and K={other[0].k} ({other[0].folder.name}).")
    return epochs


def _owners(length: int, epoch: int, world: int) -> NDArray[np.int64]:
    """Rank [N] that labelled each image with its own partner: pair t of the permutation belongs to rank t mod world."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(epoch)).numpy()
    owner = np.empty(length, np.int64)
    owner[order] = np.arange(length) // 2 % world
    return owner


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        lines, last = 0, b"\n"
        while block := file.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")
