"""``mode=verify``: is a store of teacher labels sound? Structure, checksums; with method.recheck=N the teacher."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from vitlab.config import Config
from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "stored labels: structure and checksums; with method.recheck=100 the teacher too"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug", "evaluation")
ONE_DEVICE = True


def answer(composed: Composed) -> int:
    """Verify the store of ``run=`` or of ``method.store=``; 0 if it is sound, 2 if not.

    Raises:
        UserError: no store is meant, or there is none; records cannot be recomputed without the teacher.
    """
    from vitlab.modes.select_store import find_store

    config, folder, artifact = find_store(composed)
    from vitlab.data.build import open_splits
    from vitlab.distill.formats.tinyvit_v0 import V0Store, is_v0
    from vitlab.distill.store import TargetStore
    from vitlab.distill.store_spec import BLOCK
    from vitlab.training.distributed import configure_torch
    from vitlab.training.progress import Progress

    configure_torch(config)
    source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
    store: TargetStore | V0Store
    if is_v0(folder):
        mixes = config.recipe.augmentation.mixup > 0 or config.recipe.augmentation.cutmix > 0
        store = V0Store(folder, source.keys, len(source.classes), mixes)
        problems = store.verify()
        kind = "TinyViT's official store"
    else:
        store = TargetStore.open(folder, allow_partial=True)
        slots = store.spec.slots
        unsealed = [slot for slot in range(slots) if not store.is_sealed(slot)]
        blocks = (slots - len(unsealed)) * -(-store.spec.images // BLOCK)
        with Progress("verify", blocks, unit="block") as progress:
            problems = [f"slot {slot} is not sealed: {store.count(slot):,} images are there" for slot in unsealed]
            problems += store.verify(lambda done, whole: progress.update(done))
        kind = "store"
    spec = store.spec
    print(
        f"{folder}: {kind} of {spec.images:,} images x {spec.slots} views, K={spec.k} of {spec.classes} classes, "
        f"{spec.images * spec.slots * spec.record.itemsize / 2**20:,.1f} MiB"
    )
    for problem in problems:
        print(f"  {problem}")
    wanted = getattr(composed.config.method, "recheck", 0)
    sound = not problems
    if wanted and sound:
        sound = _recheck(config, folder, artifact, wanted, composed.config.method)
    print("sound" if sound else "NOT SOUND")
    return 0 if sound else 2


def _recheck(config: Config, folder: Path, artifact: Path | None, records: int, typed: Any) -> bool:
    """Have the teacher label ``records`` stored views once more, compared as ``methods/<method>/recheck.py`` does.

    Args:
        typed: the method's options at the prompt, where the run has its own.
    """
    from vitlab.training.build import make_data, shortened
    from vitlab.training.distributed import device_of
    from vitlab.training.progress import Progress
    from vitlab.training.teacher import make_teacher, normalisation_of

    if artifact is None and (config.teacher.train or not config.teacher.members):
        raise UserError(
            "method.recheck runs the teacher, and no trained one is named.",
            "Give run=FOLDER of the run that stored the labels, or teacher= with pretrained members.",
        )
    name = config.method.name
    if importlib.util.find_spec(f"vitlab.methods.{name}.recheck") is None:
        raise UserError(f"method={name} stores no labels that can be computed again.", "Leave method.recheck out.")
    recheck = importlib.import_module(f"vitlab.methods.{name}.recheck")
    data = make_data(config, shortened(config, config.recipe), *normalisation_of(config, artifact))
    device = device_of(config)
    teacher = make_teacher(config, artifact, data).to(device)
    with Progress("recheck", records, unit="view") as progress:

        def show(done: int, total: int) -> None:
            progress.update(min(done, records))

        found = recheck.recheck_run(config, typed, data, folder, teacher, records, device, show)
    print(found)
    return bool(found.sound)
