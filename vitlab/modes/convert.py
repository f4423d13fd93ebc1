"""``mode=convert``: stored labels and reinforcements from the papers' official files to ours, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vitlab.compose.load import Composed
from vitlab.errors import UserError


def answer(composed: Composed) -> int:
    """Convert ``method.store`` (or the store of ``run=``) into ``method.convert_to``; which way, the store says.

    Raises:
        UserError: no place to convert to, or a store that the other format cannot hold.
    """
    from vitlab.modes.verify import find_store

    options = composed.config.method
    if options.name == "reinforce":
        return _reinforcements(composed)
    config, folder, _ = find_store(composed)
    target = getattr(options, "convert_to", None)
    if target is None:
        raise UserError("mode=convert has no place to write to.", "Give method.convert_to=FOLDER.")
    into = Path(target).expanduser()
    from vitlab.data.build import open_splits
    from vitlab.data.sources import fingerprint
    from vitlab.distill.draw import Augmentation
    from vitlab.distill.formats.tinyvit_v0 import is_v0
    from vitlab.methods.tinyvit.convert import export_v0, import_v0
    from vitlab.training.progress import progress_bar

    with progress_bar("convert", "record") as tell:
        if is_v0(folder):
            source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
            augmentation = Augmentation(size=config.dataset.size, **asdict(config.recipe.augmentation))
            found = import_v0(folder, into, source.keys, len(source.classes), augmentation, fingerprint(source), tell)
            kind = "our store"
        else:
            if into.exists() and any(into.iterdir()):
                raise UserError(f"method.convert_to={target} is not empty.", "Name a new folder.")
            found = export_v0(folder, into, options.ranks, options.named, tell)
            kind = f"an official store of {options.ranks} rank(s)"
    print(f"{into}: {kind}, {found.epochs} epochs, {found.records:,} records", end="")
    print(f"; {found.duplicates:,} duplicates across ranks" if found.duplicates else "", end="")
    print(f"; {found.extra:,} records of images that the data set lacks were left out" if found.extra else "")
    return 0


def _reinforcements(composed: Composed) -> int:
    """A released set (folder or .tar.gz) to our packed store, or a store that was packed from one back to its files."""
    from vitlab.data.build import open_splits
    from vitlab.data.sources import fingerprint
    from vitlab.distill.formats.imagenet_plus import is_imagenet_plus
    from vitlab.methods.reinforce.convert import ARCHIVE, pack, unpack
    from vitlab.training.progress import progress_bar

    config, options = composed.config, composed.config.method
    if options.store is None or isinstance(options.store, list) or options.convert_to is None:
        raise UserError(
            "mode=convert takes one set of reinforcements and a place to write to.",
            "Give method.store=FOLDER (or .tar.gz) and method.convert_to=FOLDER.",
        )
    source, into = Path(options.store).expanduser(), Path(options.convert_to).expanduser()
    if not source.exists():
        raise UserError(f"method.store={options.store}: there is no such folder or archive.")
    with progress_bar("convert", "image") as tell:
        if source.is_file() or is_imagenet_plus(source):
            images = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
            found = pack(source, into, images.keys, len(images.classes), fingerprint(images), tell)
            told = f"our store, {found.images:,} images, {found.samples} samples"
            if (archive := found.spec.versions.get(ARCHIVE)) is not None:
                told += f"; SHA-256 of the archive {archive}"
        else:
            if into.exists() and any(into.iterdir()):
                raise UserError(f"method.convert_to={options.convert_to} is not empty.", "Name a new folder.")
            told = f"as released, {unpack(source, into, tell):,} images"
    print(f"{into}: {told}")
    return 0
