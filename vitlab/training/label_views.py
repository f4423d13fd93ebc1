"""The stage in which a teacher labels every view of every image once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlab.config import Config
from vitlab.data.batch import Batch
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import Loader
from vitlab.data.reinforced import RecordBatch
from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.store_writer import SlotWriter
from vitlab.distill.teachers import Ensemble, OnlineTeacher
from vitlab.errors import UserError
from vitlab.stage import Context
from vitlab.training.build import epochs_of, full_steps, make_data, shortened
from vitlab.training.distributed import barrier, device_of, rank, world_size
from vitlab.training.interrupt import stop, stop_requested, stop_requested_on_any_rank
from vitlab.training.profile import Tally
from vitlab.training.progress import Progress
from vitlab.training.teacher import make_teacher, normalisation_of

STORE = "targets"
"""Folder of the store inside the stage's; a store owns everything in its folder."""

RECORDED = ("numpy", "Pillow", "torch", "torchvision", "timm")
"""Libraries whose version decides what a view looks like or what the teacher gives for it; written into every store."""

BUFFER = 4096
"""Records that a writer of a slot keeps in memory before it writes."""

Batches = Callable[[range, NDArray[np.int64]], Iterable[Batch]]


def label_views(
    context: Context,
    artifact: Path,
    topk: int,
    prob_dtype: str,
    slots: int | None = None,
    into: Path | None = None,
    only: range | None = None,
) -> dict[str, object]:
    """Label every view of every training image with the teacher, and seal the targets in ``context.folder``.

    What is on disk is not computed again: an interrupted pass continues, and its bytes equal an uninterrupted one's.

    Args:
        artifact: folder of the teacher.
        topk: probabilities kept of each view; all of them where there are fewer classes.
        prob_dtype: f2, f4 or bf16.
        slots: views of each image; None: one for each epoch of ``config.recipe``.
        into: folder of the store, which several runs may fill together; None: in the stage's own.
        only: the slots that this run labels; None: all that are missing.

    Raises:
        Interrupted: a signal asked to stop; everything labelled is on disk.
        UserError: the teacher knows other classes than the data, or changed; ``only`` reaches beyond the slots.
    """
    config = context.config
    recipe = shortened(config, config.recipe)
    data = make_data(config, recipe, *normalisation_of(config, artifact))
    wanted = slots
    slots = wanted or epochs_of(recipe, data)
    slots = min(slots, config.debug.max_slots or slots)
    if only is not None and not context.dry_run and only.stop > slots:
        raise UserError(f"method.store_views={[only.start, only.stop]}: the store has {slots} views of every image.")
    teacher = make_teacher(config, artifact, data).to(device_of(config))
    folder = into if into is not None and not context.dry_run else context.folder / STORE
    spec = store_spec(config, data, teacher, min(topk, data.num_classes), prob_dtype, slots)
    batch_size = config.evaluation.batch_size

    def batches(wave: range, missing: NDArray[np.int64]) -> Loader:
        return data.label_dataloader(wave.start, missing, batch_size + batch_size % 2)

    return fill_store(context, folder, spec, data.train_source.keys, teacher, batches, wanted, only)


def fill_store(
    context: Context,
    folder: Path,
    spec: StoreSpec,
    keys: Sequence[str],
    teacher: OnlineTeacher | Ensemble,
    batches: Batches,
    slots: int | None,
    only: range | None = None,
    wave: int = 1,
) -> dict[str, object]:
    """Make the store of ``spec`` in ``folder``, or continue it; what the stage's marker records.

    Args:
        keys: of the images.
        batches: for the slots of a wave and the images that one of them lacks, batches of views: of each image those
            of all slots of the wave, one after the other.
        slots: views of each image in the real thing; None: one an epoch. A rehearsal reports the sizes of so many.
        only: the slots that are filled, None: all; a rehearsal fills all that it has, and reports these.
        wave: slots that are filled together, so that an image is decoded once for all of them.

    Raises:
        Interrupted: a signal asked to stop; everything labelled is on disk.
    """
    if context.is_main:
        TargetStore.create(folder, spec, list(keys))
    barrier()
    store = TargetStore.open(folder, allow_partial=True)
    part = range(spec.slots) if only is None or context.dry_run else only
    seconds = _fill(context, store, teacher, batches, part, wave)
    sealed = all(map(store.is_sealed, range(spec.slots)))
    if context.full_config is not None:
        _, epochs, images = full_steps(context.full_config, context.full_config.recipe)
        full_slots = slots or epochs
        full_slots = min(full_slots, context.full_config.debug.max_slots or full_slots)
        seconds *= images * full_slots / (spec.images * spec.slots)
        spec = replace(spec, images=images, slots=full_slots)
        part = range(full_slots) if only is None else only
        seconds *= len(part) / full_slots
    return {
        "seconds": round(seconds, 2),
        "views": spec.images * len(part),
        "images": spec.images,
        "slots": spec.slots,
        "probabilities_kept": spec.k,
        "bytes": spec.slot_bytes * spec.slots,
        "fingerprint": store.fingerprint if sealed else "",  # other runs are still to fill their part
    }


def store_spec(
    config: Config, data: VisionData, teacher: OnlineTeacher | Ensemble, k: int, prob_dtype: str, slots: int
) -> StoreSpec:
    """The description for ``store.json``."""
    return StoreSpec(
        images=len(data.train_source),
        slots=slots,
        k=k,
        classes=data.num_classes,
        keys_sha256=keys_digest(data.train_source.keys),
        data_fingerprint=data.fingerprint,
        augmentation=data.augmentation.to_dict(),
        augmentation_fingerprint=data.augmentation.fingerprint(),
        teacher=teacher.describe(),
        mean=data.mean,
        std=data.std,
        base_seed=config.seed,
        prob=prob_dtype,
        versions={name: version(name) for name in RECORDED},
    )


def _fill(
    context: Context, store: TargetStore, teacher: OnlineTeacher | Ensemble, batches: Batches, slots: range, size: int
) -> float:
    """Label what is missing of ``slots``, ``size`` of them at a time, and seal each; the seconds it took.

    Each rank labels its own batches into files of its own; the ranks meet at the seal of a wave, not before.
    """
    spec, device = store.spec, device_of(context.config)
    begun = time.monotonic()
    total = spec.images * len(slots)
    done = sum(store.count(slot) for slot in slots)
    quiet = context.dry_run or not context.is_main
    tally = Tally(context.config.debug.profile is not None and not quiet, device)
    with Progress(context.stage.name, total, done=done, unit="view", quiet=quiet) as progress:
        for first in range(slots.start, slots.stop, size):
            wave = range(first, min(first + size, slots.stop))
            # What is on disk decides what is left to do, not a counter: a pass that was killed goes on from any state,
            # also with another number of ranks.
            unsealed = [slot for slot in wave if not store.is_sealed(slot)]
            if context.is_main:  # a kill between the seal and the deletion of its bitmaps
                for slot in set(wave) - set(unsealed):
                    store.seal(slot)
            if not unsealed:
                continue
            # The union: one decoded image serves all slots of the wave; a writer leaves records that it has already.
            missing = reduce(np.union1d, [store.missing(slot) for slot in unsealed])
            with ExitStack() as stack:
                writers = {slot: stack.enter_context(store.writer(slot, rank(), BUFFER)) for slot in unsealed}
                tally.charge(None)
                for batch in batches(wave, missing):
                    tally.batches += 1
                    tally.charge("data")
                    output = teacher(batch.to(device))
                    target = _sparse(output, spec.k, context).to("cpu")
                    tally.charge("teacher")
                    new = sum(_write(writers[slot], batch, target, slot - first, len(wave)) for slot in unsealed)
                    tally.charge("writing")
                    progress.update(min(total, progress.done + new * world_size()))
                    if stop_requested():
                        break  # alone: the writers flush on leaving the block, and the ranks agree below
            tally.charge("writing")  # what the writers held back
            if stop_requested_on_any_rank(device):
                stop()
            barrier()  # every rank has flushed its records; a seal before that would miss some
            if context.is_main:
                for slot in unsealed:
                    store.seal(slot)
            barrier()  # no rank reads or continues before the seal is on disk
            tally.charge("sealing")
    tally.report(context.stage.name, context.folder / "profile")
    return time.monotonic() - begun


def _sparse(output: SparseTarget | Tensor, k: int, context: Context) -> SparseTarget:
    """The teacher's ``k`` largest probabilities.

    Raises:
        UserError: one is not a number.
    """
    if isinstance(output, SparseTarget):
        return output
    try:
        return sparsify(output, k)
    except ValueError as error:
        if bool(torch.isfinite(output).all()):
            raise
        raise UserError(
            f"Stage {context.stage.name}: the teacher's outputs are not finite; nothing of that batch was stored.",
            "Use trainer.precision=32-true or bf16-mixed, or another teacher. The same command continues.",
        ) from error


def _write(writer: SlotWriter, batch: Batch, target: SparseTarget, first: int, step: int) -> int:
    """Every ``step``-th row of a labelled batch from ``first`` on, which are those of one slot."""
    rows = slice(first, None, step)
    part = SparseTarget(target.prob[rows], target.index[rows], target.classes)
    index = batch.index[rows].cpu().numpy()
    if isinstance(batch, RecordBatch):
        return writer.write(index, None, part, **{name: values[rows] for name, values in batch.fields.items()})
    assert writer.spec.base_seed is not None  # views that were drawn here
    return writer.write(index, seeds_of(writer.spec.base_seed, batch.slot[rows].cpu().numpy(), index), part)
