"""Stores in the papers' own file formats, and the functions that open a store of any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitlab.distill.formats.imagenet_plus import ImagenetPlus, is_imagenet_plus
from vitlab.distill.formats.tinyvit_v0 import V0Store, is_v0
from vitlab.distill.reinforce_store import ReinforcedStore, Reinforcements
from vitlab.distill.store import TargetStore
from vitlab.errors import UserError


def open_targets(
    folder: Path, keys: Sequence[str], classes: int, paired: bool = False, expect: Mapping[str, Any] | None = None
) -> TargetStore | V0Store:
    """The targets in ``folder``, ours or TinyViT's official store; both have ``gather`` and ``spec``.

    Args:
        keys: of the images, in index order.
        classes: of the teacher.
        paired: views were mixed in pairs.
        expect: required fields of our store's spec (:meth:`TargetStore.open`); the official store records none.

    Raises:
        UserError: no such store, or one of other images.
    """
    if is_v0(folder):
        return V0Store(folder, keys, classes, paired)
    return TargetStore.open(folder, expect=expect)


def open_reinforcements(
    folders: Sequence[Path], images: int, classes: int, expect: Mapping[str, Any] | None = None
) -> Reinforcements:
    """The reinforcements in ``folders``: one store of ours, or one or more folders as they were released.

    Args:
        images, classes: of the data set that they are read for.
        expect: required fields of our store's spec (:meth:`TargetStore.open`); released sets record none.

    Raises:
        UserError: no such store, or one of other images or classes.
    """
    reader: Reinforcements
    if all(is_imagenet_plus(folder) for folder in folders):
        reader = ImagenetPlus(folders, classes)
    elif len(folders) == 1:
        reader = ReinforcedStore(folders[0], expect)
    else:
        raise UserError(
            f"method.store names {len(folders)} folders, and they are not all reinforcements as they were released.",
            "Give one folder of ours (mode=merge makes one of several), or only folders that hold config.pth.tar.",
        )
    names = ", ".join(map(str, folders))
    for name, stored, expected in (("images", reader.images, images), ("classes", reader.classes, classes)):
        if stored != expected:
            raise UserError(
                f"The reinforcements in {names} are of {stored:,} {name}, the data set has {expected:,}.",
                "Give the data set that they were made for.",
            )
    return reader
