"""``mode=convert method=reinforce``: released reinforcements to our packed store, and back."""

from __future__ import annotations

from pathlib import Path

from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "stored labels from or to the papers' own files: method.store=A method.convert_to=B"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug")


def answer(composed: Composed) -> int:
    """A released set (folder or .tar.gz) to our packed store, or a store that was packed from one back to its files.

    Raises:
        UserError: no target folder, nothing to convert, or a store that the other format cannot represent.
    """
    from vitlab.data.build import open_splits
    from vitlab.data.sources import fingerprint
    from vitlab.distill.formats.imagenet_plus import is_imagenet_plus
    from vitlab.methods.reinforce.convert import ARCHIVE, pack, unpack
    from vitlab.training.progress import progress_bar

    config, options = composed.config, composed.config.method
    if options.store is None or isinstance(options.store, list) or options.convert_to is None:
        raise UserError(
            "mode=convert takes one set of reinforcements and a folder to write to.",
            "Give method.store=FOLDER (or .tar.gz) and method.convert_to=FOLDER.",
        )
    source, into = Path(options.store).expanduser(), Path(options.convert_to).expanduser()
    if not source.exists():
        raise UserError(f"method.store={options.store}: there is no such folder or archive.")
    with progress_bar("convert", "image") as progress:
        if source.is_file() or is_imagenet_plus(source):
            images = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
            found = pack(source, into, images.keys, len(images.classes), fingerprint(images), progress)
            result = f"our store, {found.images:,} images, {found.samples} samples"
            if (archive := found.spec.versions.get(ARCHIVE)) is not None:
                result += f"; SHA-256 of the archive {archive}"
        else:
            if into.exists() and any(into.iterdir()):
                raise UserError(f"method.convert_to={options.convert_to} is not empty.", "Name a new folder.")
            result = f"as released, {unpack(source, into, progress):,} images"
    print(f"{into}: {result}")
    return 0
