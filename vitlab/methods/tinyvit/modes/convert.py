"""``mode=convert method=tinyvit``: stored labels from the official files to ours, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "stored labels from or to the papers' own files: method.store=A method.convert_to=B"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug")


def answer(composed: Composed) -> int:
    """Convert ``method.store`` (or the store of ``run=``) into ``method.convert_to``; its format selects the direction.

    Raises:
        UserError: no target folder, or a store that the other format cannot represent.
    """
    from vitlab.modes.select_store import find_store

    options = composed.config.method
    config, folder, _ = find_store(composed)
    target = getattr(options, "convert_to", None)
    if target is None:
        raise UserError("mode=convert has no folder to write to.", "Give method.convert_to=FOLDER.")
    into = Path(target).expanduser()
    from vitlab.data.build import open_splits
    from vitlab.data.sources import fingerprint
    from vitlab.distill.draw import Augmentation
    from vitlab.distill.formats.tinyvit_v0 import is_v0
    from vitlab.methods.tinyvit.convert import export_v0, import_v0
    from vitlab.training.progress import progress_bar

    with progress_bar("convert", "record") as progress:
        if is_v0(folder):
            source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
            augmentation = Augmentation(size=config.dataset.size, **asdict(config.recipe.augmentation))
            found = import_v0(
                folder, into, source.keys, len(source.classes), augmentation, fingerprint(source), progress
            )
            kind = "our store"
        else:
            if into.exists() and any(into.iterdir()):
                raise UserError(f"method.convert_to={target} is not empty.", "Name a new folder.")
            found = export_v0(folder, into, options.ranks, options.named, progress)
            kind = f"an official store of {options.ranks} rank(s)"
    print(f"{into}: {kind}, {found.epochs} epochs, {found.records:,} records", end="")
    print(f"; {found.duplicates:,} duplicates across ranks" if found.duplicates else "", end="")
    print(f"; {found.extra:,} records of images that the data set lacks were left out" if found.extra else "")
    return 0
