"""Reinforcements on disk: a :class:`~vitlab.distill.store.TargetStore` whose records are parameters, not seeds.

Every slot of the store is one sample of every image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import ArrayLike

from vitlab.distill.draw import Draw
from vitlab.distill.reinforce_draw import PROTOCOL, Reinforcement
from vitlab.distill.reinforce_record import decode
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import SPEC, StoreSpec
from vitlab.errors import UserError
from vitlab.files import read_json


class Reinforcements(Protocol):
    """Interface of the readers of reinforcements, whatever their file format."""

    images: int
    samples: int
    classes: int
    parts: tuple[int, ...]  # samples of each folder, in the order of their numbers; one number for a single store
    backend: str  # of the teacher's views: pil or tensor
    interpolation: str  # the filter that resized the teacher's views

    def read(self, slot: ArrayLike, index: ArrayLike) -> tuple[list[Draw], SparseTarget]:
        """Draws and targets of these (sample, image) pairs, both integers [B]."""


class ReinforcedStore:
    """The packed store in ``folder``; opening it in every loader worker is cheap.

    Raises:
        UserError: as :meth:`TargetStore.open`, and for a store whose records hold seeds (TinyViT's).
    """

    def __init__(self, folder: Path, expect: Mapping[str, Any] | None = None) -> None:
        if (folder / SPEC).is_file() and (protocol := read_json(folder / SPEC).get("protocol")) != PROTOCOL:
            raise UserError(
                f"{folder} holds stored labels of protocol {protocol}, not reinforcements ({PROTOCOL}).",
                "Give a folder that method=reinforce made; method=tinyvit reads that kind.",
            )
        self.store = TargetStore.open(folder, expect)
        self.spec: StoreSpec = self.store.spec
        self.backend = str(self.spec.teacher.get("backend", "pil"))
        self.views = Reinforcement.from_dict(self.spec.augmentation)
        self.interpolation = self.views.interpolation
        self.images, self.samples, self.classes = self.spec.images, self.spec.slots, self.spec.classes
        self.parts: tuple[int, ...] = (self.samples,)

    def read(self, slot: ArrayLike, index: ArrayLike) -> tuple[list[Draw], SparseTarget]:
        """Draws and targets of these (sample, image) pairs, both integers [B]."""
        records, target = self.store.read(slot, index)
        return decode(self.views, records), target
