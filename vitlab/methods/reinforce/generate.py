"""The *reinforce* stage: every image is decoded once for up to ``group`` views, which are labelled and stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitlab.config.size import plain_size
from vitlab.data.loader import Loader
from vitlab.distill.reinforce_draw import PROTOCOL, Reinforcement
from vitlab.distill.reinforce_record import record_fields
from vitlab.distill.store_spec import SPEC
from vitlab.distill.teachers import Ensemble
from vitlab.files import read_as
from vitlab.methods.reinforce.options import ReinforceOptions, warn_of_filter
from vitlab.stage import Context
from vitlab.training.build import make_data, shortened
from vitlab.training.distributed import device_of
from vitlab.training.label_views import STORE, fill_store, store_spec
from vitlab.training.teacher import make_teacher, normalisation_of


def filter_of(folder: Path, interpolation: str) -> str:
    """The filter that resizes stored views: the recipe's ``interpolation``, so that a comparison has one filter; for a
    store that was begun its own, since a former version always stored bilinear views."""
    if not (folder / SPEC).is_file():
        return interpolation
    return read_as(
        folder / SPEC,
        lambda found: Reinforcement.from_dict(found["augmentation"]).interpolation,
        "Take the file from a copy of the store, or make the store again.",
    )


def reinforce_images(context: Context, artifact: Path, options: ReinforceOptions) -> dict[str, object]:
    """Reinforce every training image with ``options.samples`` views; sealed in ``context.folder``.

    The bytes are a function of data, teacher, seed and options: not of the number of processes or loader workers, of
    any batch size, or of interruptions.

    Args:
        artifact: folder of the teacher.

    Raises:
        Interrupted: a stop was requested; everything labelled is on disk.
        UserError: the teacher has other classes than the data, or changed.
    """
    config = context.config
    data = make_data(config, shortened(config, config.recipe), *normalisation_of(config, artifact))
    teacher = make_teacher(config, artifact, data)
    for member in teacher.members if isinstance(teacher, Ensemble) else [teacher]:
        member.precision = options.precision
    teacher = teacher.to(device_of(config))
    folder = context.folder / STORE
    interpolation = filter_of(folder, config.recipe.augmentation.interpolation)
    if context.is_main:
        warn_of_filter(config, interpolation, folder)
    views = Reinforcement(**vars(options.views), interpolation=interpolation)
    samples = min(options.samples, config.debug.max_slots or options.samples)
    backend = "pil" if options.backend == "auto" else options.backend
    spec = replace(
        store_spec(config, data, teacher, min(options.topk, data.num_classes), options.prob_dtype, samples),
        augmentation=views.to_dict(),
        augmentation_fingerprint=views.fingerprint(),
        teacher={
            **teacher.describe(),
            "view_size": plain_size(config.dataset.size),
            "group": options.group,
            **({} if backend == "pil" else {"backend": backend}),
        },
        protocol=PROTOCOL,
        fields=record_fields(views),
    )

    def batches(wave: range, missing: NDArray[np.int64]) -> Loader:
        return data.fresh_dataloader(views, wave, missing, max(1, options.group // len(wave)), backend)

    keys = data.train_source.keys
    return fill_store(context, folder, spec, keys, teacher, batches, options.samples, wave=options.group)
