"""The stores of reinforcements that the command line names, for the modes that work on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.config import Config
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.modes.select_store import find_store, refuse_released

if TYPE_CHECKING:
    from vitlab.distill.reinforce_store import ReinforcedStore


def named_stores(composed: Composed) -> tuple[Config, list[Path]]:
    """The stores that ``run=`` or ``method.store`` names, and the configuration of their data.

    Raises:
        UserError: another method, or a set as it was released.
    """
    from vitlab.methods.reinforce.options import stores

    config = composed.config
    if config.run is not None:
        config, folder, _ = find_store(composed)
        return config, [folder]
    _check_method(composed)
    folders = [folder.expanduser() for folder in stores(config.method)]
    for folder in folders:
        refuse_released(folder, config.mode)
    return config, folders


def source_and_target(composed: Composed, several: bool) -> tuple[list[Path], Path]:
    """The stores that are named, and the folder ``method.convert_to``.

    Raises:
        UserError: another method, nothing named, or one store where several are needed and the reverse.
    """
    _check_method(composed)
    given, folders = composed.config.method.convert_to, named_stores(composed)[1]
    if not folders or (len(folders) > 1) != several or given is None:
        example = "[A,B]" if several else "FOLDER"
        raise UserError(
            f"mode={composed.config.mode} takes {'several stores' if several else 'one store'} and a folder to write "
            "to.",
            f"Give method.store={example} and method.convert_to=FOLDER.",
        )
    into = Path(given).expanduser()
    if into.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"method.convert_to={into} is the store that is read.", "Name a new folder.")
    return folders, into


def _check_method(composed: Composed) -> None:
    if getattr(composed.config.method, "name", "") != "reinforce":
        raise UserError(f"mode={composed.config.mode} works on reinforcements.", "Give method=reinforce.")


def describe_store(store: ReinforcedStore) -> str:
    """One line that describes a store."""
    spec = store.spec
    size = spec.slot_bytes * spec.slots / 2**20
    return (
        f"{spec.images:,} images x {spec.slots} samples ({store.views.variant}), K={spec.k} of {spec.classes} classes, "
        f"{spec.record.itemsize} bytes a sample, {size:,.1f} MiB"
    )
