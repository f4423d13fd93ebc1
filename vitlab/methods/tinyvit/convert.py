"""Conversion between TinyViT's official store ("v0") and ours, without teacher or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitlab.data.sampler import EpochSampler
from vitlab.distill.draw import Augmentation
from vitlab.distill.formats.tinyvit_v0 import MAX_CLASSES, V0Store, check_records, record_type, stem, write_epoch
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import BLOCK, keys_digest
from vitlab.errors import UserError

Progress = Callable[[int, int], None]
"""Called with the records done and their total."""


@dataclass(frozen=True)
class Converted:
    """Counts of a conversion."""

    records: int
    epochs: int
    duplicates: int = 0  # records of an image that another rank had too; the lowest rank's was taken
    extra: int = 0  # records of images that the data set lacks; left out


def import_v0(
    folder: Path,
    into: Path,
    keys: Sequence[str],
    classes: int,
    augmentation: Augmentation,
    data_fingerprint: str,
    progress: Progress | None = None,
) -> Converted:
    """Convert an official store to ours; after a kill the same call continues.

    Args:
        keys, classes, data_fingerprint: of the data set that was labelled.
        augmentation: with which it was labelled, recorded in our store; the official one does not hold it.

    Raises:
        UserError: an invalid record, or as :class:`V0Store`.
    """
    official = V0Store(folder, keys, classes, paired=augmentation.mixes)
    spec = replace(
        official.spec,
        keys_sha256=keys_digest(keys),
        data_fingerprint=data_fingerprint,
        augmentation=augmentation.to_dict(),
        augmentation_fingerprint=augmentation.fingerprint(),
        teacher={"name": "imported from an official TinyViT store"},
    )
    store = TargetStore.create(into, spec, list(keys))
    duplicates = extra = done = 0
    for epoch in range(spec.slots):
        survey = official.survey(epoch)
        duplicates, extra = duplicates + survey.duplicates, extra + survey.extra
        if store.is_sealed(epoch):
            continue
        missing = store.missing(epoch)
        with store.writer(epoch) as writer:
            for start in range(0, len(missing), BLOCK):
                index = missing[start : start + BLOCK]
                records = official.records(epoch, index)
                if wrong := list(check_records(records, classes)):
                    raise UserError(f"{folder}, epoch {epoch}: {wrong[0]}.", "The store is damaged: copy it again.")
                seed, target = official.gather(epoch, index)
                writer.write(index, seed, target)
                done += len(index)
                if progress is not None:
                    progress(done, spec.images * spec.slots)
        store.seal(epoch)
    return Converted(spec.images * spec.slots, spec.slots, duplicates, extra)


def export_v0(
    folder: Path, into: Path, ranks: int = 1, named: bool = False, progress: Progress | None = None
) -> Converted:
    """Write our sealed store as an official one, as if ``ranks`` processes had stored it.

    Every rank holds the images that the official sampler assigns to it, the padding of an epoch included.

    Args:
        named: keys are the images' names without suffix (ImageNet-22k); else their decimal indices.

    Raises:
        UserError: unsupported by the format: more classes, other precisions, other pairs, names that repeat.
    """
    store = TargetStore.open(folder)
    spec = store.spec
    mixes = Augmentation.from_dict(spec.augmentation).mixes
    if spec.classes > MAX_CLASSES:
        raise UserError(f"{folder} has {spec.classes} classes; an official store holds at most {MAX_CLASSES}.")
    if spec.prob != "f2":
        raise UserError(
            f"{folder} holds probabilities as {spec.prob}; an official store holds f2.",
            "Store with method.prob_dtype=f2.",
        )
    if mixes and (spec.images % 2 or spec.base_seed):
        raise UserError(
            f"{folder} mixes views in pairs that the official sampler would not make ({spec.images} images, seed "
            f"{spec.base_seed}).",
            "Export needs an even number of images and seed=0, or views that are not mixed.",
        )
    keys = store.keys()
    names = list(map(stem, keys)) if named else [str(i) for i in range(spec.images)]
    if len(set(names)) != len(names):
        raise UserError(f"{folder}: two images share a name without folder and suffix.", "Export with decimal keys.")
    written = 0
    for slot in range(spec.slots):
        parts = {}
        for rank in range(ranks):
            sampler = EpochSampler(spec.images, 2 * ranks, rank=rank, world=ranks, paired=mixes, padded=True)
            index, _ = sampler.order(slot)
            found = store.records(slot, index)
            records = np.empty(len(index), record_type(spec.k))
            for name in ("seed", "index", "prob"):
                records[name] = found[name]
            parts[rank] = [names[i] for i in index.tolist()], records
            written += len(np.unique(index))
            if progress is not None:
                progress(slot * ranks + rank + 1, spec.slots * ranks)
        write_epoch(into, slot, spec.k, parts)
    return Converted(written, spec.slots, written - spec.images * spec.slots)
