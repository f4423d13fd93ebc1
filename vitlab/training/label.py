"""The stage that has a teacher label every view of every image once."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from vitlab.config import Config
from vitlab.data.module import VisionData
from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.teachers import Ensemble, OnlineTeacher
from vitlab.errors import UserError
from vitlab.stage import Context
from vitlab.training.assemble import epochs_of, make_data, shortened, whole_steps
from vitlab.training.devices import barrier, device_of, rank, world
from vitlab.training.interrupt import asked, asked_anywhere, stop
from vitlab.training.progress import Progress
from vitlab.training.teacher import make_teacher, normalisation_of

STORE = "targets"
"""Folder of the store inside the stage's; a store owns everything in its folder."""

RECORDED = ("numpy", "Pillow", "torch", "torchvision", "timm")
"""Libraries whose version decides what a view looks like or what the teacher says; written into every store."""


def label_views(
    context: Context,
    artifact: Path,
    topk: int,
    prob_dtype: str,
    slots: int | None = None,
    into: Path | None = None,
    only: range | None = None,
) -> dict[str, object]:
    """Have the teacher label every view of every training image, and seal the answers in ``context.folder``.

    What is on disk is not computed again: an interrupted pass continues, and its bytes equal an uninterrupted one's.

    Args:
        artifact: folder of the teacher.
        topk: probabilities kept of each view; all of them where there are fewer classes.
        prob_dtype: f2, f4 or bf16.
        slots: views of each image; None: one for each epoch of ``config.recipe``.
        into: folder of the store, which several runs may fill together; None: in the stage's own.
        only: the slots that this run labels; None: all that are missing.

    Raises:
        Interrupted: somebody asked to stop; everything labelled is on disk.
        UserError: the teacher knows other classes than the data, or changed; ``only`` reaches beyond the slots.
    """
    config = context.config
    recipe = shortened(config, config.recipe)
    data = make_data(config, recipe, *normalisation_of(config, artifact))
    wanted = slots
    slots = wanted or epochs_of(recipe, data)
    slots = min(slots, config.debug.max_slots or slots)
    part = range(slots) if only is None or context.trial else only
    if part.stop > slots:
        raise UserError(f"method.store_views={[part.start, part.stop]}: the store has {slots} views of every image.")
    teacher = make_teacher(config, artifact, data).to(device_of(config))
    folder = into if into is not None and not context.trial else context.folder / STORE
    spec = store_spec(config, data, teacher, min(topk, data.num_classes), prob_dtype, slots)
    if context.leads:
        TargetStore.create(folder, spec, list(data.train_source.keys))
    barrier()
    store = TargetStore.open(folder, allow_partial=True)
    seconds = fill(context, store, data, teacher, part)
    sealed = all(map(store.is_sealed, range(spec.slots)))
    if context.whole is not None:
        _, epochs, images = whole_steps(context.whole, context.whole.recipe)
        slots = min(wanted or epochs, context.whole.debug.max_slots or epochs)
        seconds *= images * slots / (spec.images * spec.slots)
        spec = replace(spec, images=images, slots=slots)
        part = range(slots) if only is None else only
        seconds *= len(part) / slots
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
    """What ``store.json`` will say."""
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


def fill(
    context: Context, store: TargetStore, data: VisionData, teacher: OnlineTeacher | Ensemble, slots: range
) -> float:
    """Label what is missing of ``slots``, one by one, and seal each; the seconds it took.

    Every process writes the batches that are its own, under its own name; nobody waits for anybody before the seal.
    """
    spec, batch_size = store.spec, context.config.evaluation.batch_size
    device = device_of(context.config)
    begun = time.monotonic()
    total = spec.images * len(slots)
    done = sum(store.count(slot) for slot in slots)
    quiet = context.trial or not context.leads
    with Progress(context.stage.name, total, done=done, unit="view", quiet=quiet) as progress:
        for slot in slots:
            if store.is_sealed(slot):
                continue
            batches = data.label_dataloader(slot, store.missing(slot), batch_size + batch_size % 2)
            with store.writer(slot, rank()) as writer:
                for batch in batches:
                    output = teacher(batch.to(device))
                    target = output if isinstance(output, SparseTarget) else sparsify(output, spec.k)
                    index = batch.index.numpy()
                    new = writer.write(index, seeds_of(context.config.seed, batch.slot.numpy(), index), target)
                    progress.update(min(total, progress.done + new * world()))
                    if asked():
                        break
            if asked_anywhere(device):
                stop()
            barrier()
            if context.leads:
                store.seal(slot)
            barrier()
    return time.monotonic() - begun
