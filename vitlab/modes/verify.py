"""``mode=verify``: is a store of teacher labels sound? Structure, checksums; with method.recheck=N the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.compose.load import Composed
from vitlab.config import Config
from vitlab.errors import UserError

if TYPE_CHECKING:
    from vitlab.distill.store_spec import StoreSpec


def answer(composed: Composed) -> int:
    """Verify the store of ``run=`` or of ``method.store=``; 0 if it is sound, 1 if not.

    Raises:
        UserError: no store is meant, or there is none; records cannot be recomputed without the teacher.
    """
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
        asked = composed.config.method if composed.config.method.name == config.method.name else config.method
        sound = _recheck(config, folder, artifact, spec, wanted, getattr(asked, "backend", "auto"))
    print("sound" if sound else "NOT SOUND")
    return 0 if sound else 1


def find_store(composed: Composed) -> tuple[Config, Path, Path | None]:
    """The configuration that made the store, the store, and the artifact of its teacher where a run has one.

    Raises:
        UserError: neither ``run=`` nor ``method.store=`` names a store.
    """
    from vitlab.modes.find_runs import config_of, find_runs
    from vitlab.modes.select_store import refuse_released

    runs = find_runs(composed)
    given = getattr(composed.config.method, "store", None)
    if len(runs) == 1:
        run = runs[0][0]
        stage = "reinforce" if run.tree["method"]["name"] == "reinforce" else "store"  # type: ignore[index]
        elsewhere = run.tree["method"].get("store_to")  # type: ignore[attr-defined]
        folder = Path(elsewhere) if elsewhere else run.folder / stage / "targets"
        if not folder.is_dir():
            raise UserError(f"{run.folder} has no stored targets.", "Name a run whose method stores them.")
        return config_of(run, composed), folder, run.folder / "teacher"
    if given is None or isinstance(given, list) or runs:
        raise UserError(
            f"mode={composed.config.mode} is about one store of targets, and none is named.",
            "Give run=FOLDER, or method.store=FOLDER.",
        )
    folder = Path(given).expanduser()
    if composed.config.method.name == "reinforce":
        refuse_released(folder, composed.config.mode)
    if not folder.is_dir():
        raise UserError(f"method.store={given}: there is no such folder.")
    return composed.config, folder, None


def _recheck(config: Config, folder: Path, artifact: Path | None, spec: StoreSpec, records: int, backend: str) -> bool:
    from vitlab.distill.teachers import Ensemble
    from vitlab.methods.reinforce import recheck as reinforced
    from vitlab.methods.tinyvit.recheck import Recheck, recheck
    from vitlab.training.build import make_data, shortened
    from vitlab.training.distributed import device_of
    from vitlab.training.progress import Progress
    from vitlab.training.teacher import make_teacher, normalisation_of

    if artifact is None and (config.teacher.train or not config.teacher.members):
        raise UserError(
            "method.recheck asks the teacher, and no trained one is named.",
            "Give run=FOLDER of the run that stored the labels, or teacher= with pretrained members.",
        )
    recipe = shortened(config, config.recipe)
    data = make_data(config, recipe, *normalisation_of(config, artifact))
    device = device_of(config)
    teacher = make_teacher(config, artifact, data).to(device)
    batch_size = config.evaluation.batch_size
    with Progress("recheck", records, unit="view") as progress:

        def tell(done: int, whole: int) -> None:
            progress.update(min(done, records))

        found: reinforced.Replayed | Recheck
        if spec.seeded:
            found = recheck(data, folder, teacher, spec.slots, records, device, config.seed, batch_size, tell)
        else:
            for member in teacher.members if isinstance(teacher, Ensemble) else [teacher]:
                member.precision = config.method.precision
            found = reinforced.recheck(data, folder, teacher, records, device, backend, config.seed, batch_size, tell)
    print(found)
    return found.sound
