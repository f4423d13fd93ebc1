"""New stores of reinforcements from old ones: fewer samples or probabilities, or several runs in one.

Records hold all parameters of their view and do not contain their sample number, so they move between slots unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import BLOCK, StoreSpec
from vitlab.errors import UserError

Progress = Callable[[int, int], None]
"""Called with the samples done and their total."""


def subset(
    folder: Path, into: Path, samples: int | None, k: int | None, progress: Progress | None = None
) -> ReinforcedStore:
    """The first ``samples`` samples of every image with their ``k`` largest probabilities; None: all of them.

    The kept probabilities stay in the stored order. After a kill the same call continues.

    Raises:
        UserError: ``folder`` holds no finished reinforcements or fewer of them, or ``into`` holds something else.
    """
    old = ReinforcedStore(folder)
    for key, requested, available in (("samples", samples, old.samples), ("topk", k, old.spec.k)):
        if requested is not None and not 1 <= requested <= available:
            raise UserError(f"method.{key}={requested}: {folder} has {available}.", f"Give 1 to {available}.")
    samples, k = samples or old.samples, k or old.spec.k
    spec = dataclasses.replace(old.spec, slots=samples, k=k, teacher=_counted(old.spec.teacher, samples))
    return _write(into, spec, [(old.store, slot) for slot in range(samples)], progress)


def merge(folders: Sequence[Path], into: Path, progress: Progress | None = None) -> ReinforcedStore:
    """All samples of several stores, numbered consecutively in the order given. After a kill the same call continues.

    Raises:
        UserError: they are not of the same images, teacher and augmentation, or two hold the same views.
    """
    if len(folders) < 2:
        raise UserError("There is nothing to merge with only one store.", "Name several: method.store=[A,B].")
    stores = [ReinforcedStore(folder) for folder in folders]
    first = stores[0]
    samples = sum(one.samples for one in stores)
    by_seed: dict[object, Path] = {}
    for folder, one in zip(folders, stores, strict=True):
        seed = one.spec.base_seed if one.spec.base_seed is not None else one.store.fingerprint
        # Samples are a function of seed and sample number: a second run of one seed adds no new view.
        if seed in by_seed:
            raise UserError(
                f"{folder} and {by_seed[seed]} hold the same views (seed {seed}).", "Merge runs of different seeds."
            )
        by_seed[seed] = folder
        common = [_comparable(spec, samples) for spec in (first.spec, one.spec)]
        if differences := common[0].differences(common[1]):
            raise UserError(
                f"{folders[0]} and {folder} do not go together ({'; '.join(differences)}).",
                "Merge reinforcements of the same images, made by the same teacher with the same options.",
            )
    spec = dataclasses.replace(_comparable(first.spec, samples), versions=first.spec.versions)
    return _write(into, spec, [(one.store, slot) for one in stores for slot in range(one.samples)], progress)


def _write(
    into: Path, spec: StoreSpec, parts: Sequence[tuple[TargetStore, int]], progress: Progress | None
) -> ReinforcedStore:
    """Copy these slots of these stores, in order, to the slots of a new one."""
    store = TargetStore.create(into, spec, list(parts[0][0].keys()))
    for slot, (source, number) in enumerate(parts):
        if not store.is_sealed(slot):
            with store.writer(slot) as writer:
                for begin in range(0, spec.images, BLOCK):
                    index = np.arange(begin, min(begin + BLOCK, spec.images))
                    records, target = source.read(np.full(len(index), number), index)
                    fields: dict[str, Any] = {name: records[name] for name, _, _ in spec.fields}
                    writer.write(index, None, largest(target, spec.k), **fields)
            store.seal(slot)
        if progress is not None:
            progress(slot + 1, len(parts))
    return ReinforcedStore(into)


def largest(target: SparseTarget, k: int) -> SparseTarget:
    """The ``k`` largest of the stored probabilities [B, K], in the order in which they are stored; the earlier of
    equal ones."""
    if k == target.prob.shape[1]:
        return target
    place = target.prob.argsort(dim=1, descending=True, stable=True)[:, :k].sort(1).values
    return SparseTarget(target.prob.gather(1, place), target.index.gather(1, place), target.classes)


def _comparable(spec: StoreSpec, samples: int) -> StoreSpec:
    return dataclasses.replace(
        spec, slots=samples, base_seed=None, versions={}, teacher=_counted(spec.teacher, samples)
    )


def _counted(teacher: dict[str, Any], samples: int) -> dict[str, Any]:
    """The teacher's description; in the configuration of a released set, with the new number of samples."""
    if (config := teacher.get("official_config")) is None:
        return teacher
    return {**teacher, "official_config": {**config, "reinforce": {**config["reinforce"], "num_samples": samples}}}
