"""The stage that reinforces a data set: every image is decoded once for up to ``group`` views, labelled, stored."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import numpy as np

from vitlab.data.module import VisionData
from vitlab.data.reinforced import FreshViews
from vitlab.distill.reinforce_draw import PROTOCOL, Reinforcement
from vitlab.distill.reinforce_record import record_fields
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.teachers import Ensemble, OnlineTeacher
from vitlab.methods.base import Context
from vitlab.methods.reinforce.options import ReinforceOptions
from vitlab.training.assemble import make_data, shortened, whole_steps
from vitlab.training.devices import barrier, device_of, rank, world
from vitlab.training.interrupt import asked, asked_anywhere, stop
from vitlab.training.label import RECORDED, STORE
from vitlab.training.progress import Progress
from vitlab.training.teacher import make_teacher, normalisation_of


def reinforce_images(context: Context, artifact: Path, options: ReinforceOptions) -> dict[str, object]:
    """Reinforce every training image with ``options.samples`` views; sealed in ``context.folder``.

    The bytes are a function of data, teacher, seed and options: not of the number of processes, of loader workers, of
    any batch size, or of how often the work was interrupted.

    Args:
        artifact: folder of the teacher.

    Raises:
        Interrupted: somebody asked to stop; everything labelled is on disk.
        UserError: the teacher knows other classes than the data, or changed.
    """
    config = context.config
    data = make_data(config, shortened(config, config.recipe), *normalisation_of(config, artifact))
    teacher = make_teacher(config, artifact, data)
    for member in teacher.members if isinstance(teacher, Ensemble) else [teacher]:
        member.precision = options.precision
    teacher = teacher.to(device_of(config))
    views = Reinforcement(**vars(options.views))
    samples = min(options.samples, config.debug.max_slots or options.samples)
    spec = StoreSpec(
        images=len(data.train_source),
        slots=samples,
        k=min(options.topk, data.num_classes),
        classes=data.num_classes,
        keys_sha256=keys_digest(data.train_source.keys),
        data_fingerprint=data.fingerprint,
        augmentation=views.to_dict(),
        augmentation_fingerprint=views.fingerprint(),
        teacher={**teacher.describe(), "view_size": config.dataset.size, "group": options.group},
        mean=data.mean,
        std=data.std,
        base_seed=config.seed,
        prob=options.prob_dtype,
        protocol=PROTOCOL,
        fields=record_fields(views),
        versions={name: version(name) for name in RECORDED},
    )
    if context.leads:
        TargetStore.create(context.folder / STORE, spec, list(data.train_source.keys))
    barrier()
    store = TargetStore.open(context.folder / STORE, allow_partial=True)
    seconds = _fill(context, store, data, teacher, views, options.group)
    if context.whole is not None:
        images = whole_steps(context.whole, context.whole.recipe)[2]
        samples = min(options.samples, context.whole.debug.max_slots or options.samples)
        seconds *= images * samples / (spec.images * spec.slots)
        spec = replace(spec, images=images, slots=samples)
    return {
        "seconds": round(seconds, 2),
        "views": spec.images * spec.slots,
        "images": spec.images,
        "slots": spec.slots,
        "probabilities_kept": spec.k,
        "bytes": spec.slot_bytes * spec.slots,
        "fingerprint": store.fingerprint,
    }


def _fill(
    context: Context,
    store: TargetStore,
    data: VisionData,
    teacher: OnlineTeacher | Ensemble,
    views: Reinforcement,
    group: int,
) -> float:
    """Label what is missing and seal; the seconds it took.

    Work goes in waves of up to ``group`` samples: in a wave an image is decoded once and its views are labelled
    together, with those of as many neighbours as fill the group.
    """
    spec, device = store.spec, device_of(context.config)
    begun = time.monotonic()
    total = spec.images * spec.slots
    done = sum(store.count(slot) for slot in range(spec.slots))
    quiet = context.trial or not context.leads
    with Progress(context.stage.name, total, done=done, unit="view", quiet=quiet) as progress:
        for first in range(0, spec.slots, group):
            wave = range(first, min(first + group, spec.slots))
            open_slots = [slot for slot in wave if not store.is_sealed(slot)]
            if not open_slots:
                continue
            missing = reduce(np.union1d, [store.missing(slot) for slot in open_slots])
            batches = data.fresh_dataloader(views, wave, missing, max(1, group // len(wave)))
            with ExitStack() as stack:
                writers = {slot: stack.enter_context(store.writer(slot, rank(), buffer=512)) for slot in open_slots}
                for batch in batches:
                    assert isinstance(batch, FreshViews)
                    output = teacher(batch.to(device))
                    target = (output if isinstance(output, SparseTarget) else sparsify(output, spec.k)).to("cpu")
                    new = 0
                    for slot, writer in writers.items():
                        rows = slice(slot - first, None, len(wave))
                        part = SparseTarget(target.prob[rows], target.index[rows], spec.classes)
                        fields = {name: values[rows] for name, values in batch.fields.items()}
                        new += writer.write(batch.index[rows].numpy(), None, part, **fields)
                    progress.update(min(total, progress.done + new * world()))
                    if asked():
                        break
            if asked_anywhere(device):
                stop()
            barrier()
            if context.leads:
                for slot in open_slots:
                    store.seal(slot)
            barrier()
    return time.monotonic() - begun
