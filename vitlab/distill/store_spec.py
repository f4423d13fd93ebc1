"""The format of a target store: its description (``store.json``), its record, and the names of its files.

::

    store.json              the description; written last, so a folder with it is a store
    keys.txt                one key per image, in index order
    slot_00000/records.bin  images x record bytes; the record of image i lies at i x record bytes
    slot_00000/done_W.bits  while writing: one bit per image (little-endian bits), set after its record is on the disk
    slot_00000/crc32.bin    sealed: little-endian u4 per block of 8192 records
    slot_00000/sealed.json  sealed: the marker; written last

A record is packed and little-endian: ``seed i4 | index K | prob K | further fields``; 404 bytes at K = 100 with
two-byte classes and probabilities. Reinforcements hold parameters instead of the seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitlab.distill.reinforce_draw import PROTOCOL
from vitlab.errors import UserError
from vitlab.files import read_as, stable_dict

FORMAT = "vitlab-store-1"
BLOCK = 8192
"""Records per checksum."""

SEEDLESS = frozenset({PROTOCOL})
"""Protocols whose records hold all parameters of a view, and no seed."""

SPEC, KEYS, RECORDS, CRC, SEALED = "store.json", "keys.txt", "records.bin", "crc32.bin", "sealed.json"
_PROB = {"f2": "<f2", "f4": "<f4", "bf16": "<u2"}


@dataclass(frozen=True)
class StoreSpec:
    """Everything that determines the meaning of a record. Two stores with equal specs hold equal bytes.

    ``images`` x ``slots`` records of ``k`` of ``classes`` probabilities, held as ``prob`` (f2, f4 or bf16).
    ``protocol`` names how a record becomes a Draw; with ``tinyvit-1`` the seed determines it. ``base_seed``: the seeds
    are ``draw.seed_of(base_seed, slot, index)``; None: they come from elsewhere and are not checked. ``fields``:
    further parts of the record as (name, numpy type, values per record), for protocols with explicit parameters; those
    of :data:`SEEDLESS` hold no seed, and ``base_seed`` is the seed of their draws (None: unknown).
    ``augmentation``, ``mean``, ``std``: of the teacher's views. ``teacher``: its name(s) and weight hashes.
    ``versions``: of the libraries, recorded but not part of the identity.

    Raises:
        ValueError: for sizes out of range.
    """

    images: int
    slots: int
    k: int
    classes: int
    keys_sha256: str
    data_fingerprint: str
    augmentation: dict[str, Any]
    augmentation_fingerprint: str
    teacher: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    base_seed: int | None
    prob: str = "f2"
    protocol: str = "tinyvit-1"
    fields: tuple[tuple[str, str, int], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    FIRST: ClassVar[tuple[str, ...]] = (
        *("images", "slots", "k", "classes", "keys_sha256", "data_fingerprint", "augmentation"),
        *("augmentation_fingerprint", "teacher", "mean", "std", "base_seed", "prob", "protocol", "fields", "versions"),
    )
    """Never changed: the fingerprints of stores of all times are made of these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        kinds = {"images": (int, np.integer), "keys_sha256": str, "augmentation": Mapping, "teacher": Mapping}
        kinds |= dict.fromkeys(("slots", "k", "classes"), kinds["images"])
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):  # type: ignore[arg-type]  # types, and tuples of types
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        object.__setattr__(self, "fields", tuple((str(n), str(t), int(c)) for n, t, c in self.fields))
        if self.images < 1 or self.slots < 1 or not 1 <= self.k <= self.classes <= 1 << 32:
            raise ValueError(
                f"no store of {self.images} images, {self.slots} slots, {self.k} of {self.classes} classes can be made"
            )
        if self.prob not in _PROB:
            raise ValueError(f"probabilities are stored as {', '.join(_PROB)}, not {self.prob!r}")
        for name, kind, _ in self.fields:
            if np.dtype(kind).hasobject or name in ("seed", "index", "prob"):
                raise ValueError(f"{name!r} of type {kind!r} cannot be a further field")

    @property
    def seeded(self) -> bool:
        """Whether a record holds the seed of its view."""
        return self.protocol not in SEEDLESS

    @property
    def record(self) -> np.dtype[np.void]:
        """numpy's type of a record. The probabilities of bf16 are their upper 16 bits as u2."""
        wide = "<u2" if self.classes <= 1 << 16 else "<u4"
        parts: list[tuple[str, str, tuple[int, ...]]] = [("seed", "<i4", ())] if self.seeded else []
        parts += [("index", wide, (self.k,)), ("prob", _PROB[self.prob], (self.k,))]
        parts += [(name, np.dtype(kind).newbyteorder("<").str, (count,)) for name, kind, count in self.fields]
        return np.dtype(parts)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot's records."""
        return self.images * self.record.itemsize

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form. A field that came after :attr:`FIRST` is left out where it is neutral."""
        return {"format": FORMAT, **stable_dict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreSpec:
        """The inverse of :meth:`to_dict`, also after JSON.

        Raises:
            UserError: for another format, or fields that this version does not know.
        """
        values = dict(values)
        if (found := values.pop("format", None)) != FORMAT:
            raise UserError(f"{SPEC} has format {found!r}; this version reads {FORMAT!r}.", "Make the store again.")
        if unknown := sorted(values.keys() - {one.name for one in dataclasses.fields(cls)}):
            raise UserError(f"{SPEC} has {', '.join(unknown)}, unknown to this version.", "Use a newer one.")
        return cls(**values)

    @classmethod
    def load(cls, folder: Path) -> StoreSpec:
        """The description of the store in ``folder``.

        Raises:
            UserError: as :meth:`from_dict`, or the file is damaged; it is named.
        """
        return read_as(folder / SPEC, cls.from_dict, "Take the file from a copy of the store, or make the store again.")

    def differences(self, other: StoreSpec) -> list[str]:
        """``name: mine -> other's`` for every part of the identity that differs."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "versions"]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}: {mine} -> {theirs}" for name, mine, theirs in pairs if mine != theirs]


def keys_digest(keys: Iterable[str]) -> str:
    """sha256 hex of the keys, one a line, in index order: the ``keys_sha256`` of a spec.

    Raises:
        UserError: if a key holds a line break.
    """
    digest = hashlib.sha256()
    for key in keys:
        if "\n" in key:
            raise UserError(f"The image key {key!r} holds a line break.", "Rename the file.")
        digest.update(key.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def slot_folder(folder: Path, slot: int) -> Path:
    """The folder of a slot."""
    return folder / f"slot_{slot:05d}"


def refuse_foreign(folder: Path, slots: int) -> None:
    """Refuse files in the folder of a store that do not belong to it.

    Raises:
        UserError: naming the first of them.
    """
    own = {SPEC, KEYS, *(slot_folder(folder, slot).name for slot in range(slots))}
    _refuse(folder, own, None)
    for slot in range(slots):
        inside = slot_folder(folder, slot)
        if inside.exists():
            _refuse(inside, {RECORDS, CRC, SEALED}, re.compile(r"done_[\w-]+\.bits"))


def _refuse(folder: Path, own: set[str], pattern: re.Pattern[str] | None) -> None:
    for path in sorted(folder.iterdir()):
        temporary = path.name.startswith(".") and path.name.endswith(".tmp")  # of a killed atomic write
        if path.name in own or temporary or (pattern is not None and pattern.fullmatch(path.name)):
            continue
        raise UserError(f"{path} does not belong to this store of targets.", "Move it out of the folder.")
