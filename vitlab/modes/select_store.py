"""Which store of teacher labels the prompt means, for the modes that read one."""

from __future__ import annotations

from pathlib import Path

from vitlab.config import Config
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.methods.base import find_method
from vitlab.modes.find_runs import config_of, find_runs

TARGETS = "targets"
"""Folder of the store below that of the stage which made it."""


def find_store(composed: Composed) -> tuple[Config, Path, Path | None]:
    """The configuration that made the store, the store, and the artifact of its teacher where a run has one.

    Raises:
        UserError: neither ``run=`` nor ``method.store=`` names a store.
    """
    runs = find_runs(composed)
    given = getattr(composed.config.method, "store", None)
    if len(runs) == 1:
        run = runs[0][0]
        config = config_of(run, composed)
        stages = [stage for stage in find_method(config.method.name).stages(config) if stage.makes == "store"]
        elsewhere = getattr(config.method, "store_to", None)
        folder = Path(elsewhere) if elsewhere else run.folder / (stages[0].name if stages else "store") / TARGETS
        if not folder.is_dir():
            raise UserError(f"{run.folder} has no stored targets.", "Name a run whose method stores them.")
        return config, folder, run.folder / "teacher"
    if given is None or isinstance(given, list) or runs:
        raise UserError(
            f"mode={composed.config.mode} is about one store of targets, and none is named.",
            "Give run=FOLDER, or method.store=FOLDER.",
        )
    folder = Path(given).expanduser()
    if composed.config.mode != "convert":
        refuse_released(folder, composed.config.mode)
    if not folder.is_dir():
        raise UserError(f"method.store={given}: there is no such folder.")
    return composed.config, folder, None


def refuse_released(folder: Path, mode: str) -> None:
    """Refuse what only a training reads as it is, and ``mode=convert``.

    Raises:
        UserError: ``folder`` is a released set or its archive.
    """
    from vitlab.distill.formats.imagenet_plus import is_imagenet_plus

    if folder.is_file() or is_imagenet_plus(folder):
        raise UserError(
            f"mode={mode} reads the packed store, and {folder} is a set as it was released.",
            f"Pack it first (all of it is checked): mode=convert method=reinforce method.store={folder} "
            "method.convert_to=FOLDER.",
        )
