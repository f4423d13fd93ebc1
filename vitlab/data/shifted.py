"""ImageNet's validation images and the test sets with a distribution shift, each read as it is downloaded.

=============  =============================================  ========================================================
name           folder below the root                          what is in it
=============  =============================================  ========================================================
val            val (also in imagenet/)                        ``<wnid>/``, or flat with the devkit beside it
v2             imagenetv2-matched-frequency-format-val        ``0/`` to ``999/``: numbers of classes
v2_threshold   imagenetv2-threshold0.7-format-val             the same
v2_top         imagenetv2-top-images-format-val               the same
a              imagenet-a                                     ``<wnid>/`` of 200 classes
r              imagenet-r                                     ``<wnid>/`` of 200 classes
sketch         sketch (or ImageNet-Sketch)                    ``<wnid>/`` of 1,000 classes
objectnet      objectnet-1.0                                  ``images/<folder>/`` and ``mappings/``; 113 classes count
c              imagenet-c, or its families as unpacked        ``[<family>/]<corruption>/<severity>/<wnid>/``
=============  =============================================  ========================================================

Labels are WordNet ids, so that they are matched to a network's logits by class name and not by number. The classes of a
set are those that it was published with (of A and R the lists that timm's package ships), not the folders that are
there: an incomplete copy is answered among as many classes as the complete one.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitlab.data.decode import Files
from vitlab.data.folder_contents import list_nonempty_classes
from vitlab.data.sets.imagenet import flat_val, wordnet_ids
from vitlab.errors import UserError
from vitlab.measure.robustness_names import FAMILIES, SEVERITIES

BORDER = 2  # pixels around every image of ObjectNet, red so that they are recognised in training data


@dataclass
class ShiftedImages:
    """One of the sets, as found on disk.

    Attributes:
        source: images; a label is a number into ``accepted``.
        accepted: for each class of the published set, with images here or not, the WordNet ids that are right answers.
        published: images of the published set, by which an incomplete copy is recognised.
    """

    name: str
    title: str
    source: Files
    accepted: list[tuple[str, ...]]
    published: int

    @property
    def absent(self) -> int:
        """Classes of the published set that have no image here."""
        return len(self.accepted) - len(np.unique(self.source.labels))


def find_set(root: Path, name: str) -> ShiftedImages | None:
    """One of :data:`SETS` (but ``c``: see :func:`find_corrupted`) below ``root``; None where its folder is not there.

    Raises:
        UserError: the folder is there and is not laid out as the set is.
    """
    title, folders, published, read = SETS[name]
    for folder in folders:
        if (root / folder).is_dir():
            source, accepted = read(root / folder)
            return ShiftedImages(name, title, source, accepted, published)
    return None


@functools.cache
def listed_ids(name: str) -> tuple[str, ...]:
    """The 200 WordNet ids of ImageNet-A (``a``) or ImageNet-R (``r``), sorted: the authors' list, as timm ships it."""
    table = importlib.resources.files("timm.data") / "_info" / f"imagenet_{name}_synsets.txt"
    return tuple(sorted(table.read_text(encoding="utf-8").split()))


def _by_wordnet(
    folder: Path, classes: Sequence[str] | None = None, title: str = "ImageNet-1k"
) -> tuple[Files, list[tuple[str, ...]]]:
    """Folders named by WordNet ids, a part of ``classes`` (None: all of ImageNet-1k's)."""
    classes = wordnet_ids() if classes is None else classes
    listing = list_nonempty_classes(folder, folder)
    strange = sorted(set(listing) - set(classes))
    if strange or not listing:
        raise UserError(
            f"{folder} holds {f'a folder {strange[0]}, which' if strange else 'no class folder that'} is "
            f"{'not ' if strange else ''}named like a class of {title} ({classes[0]}, ...).",
            "Unpack the archive there again.",
        )
    return _files(folder, listing, classes), [(name,) for name in classes]


def _adversarial(folder: Path) -> tuple[Files, list[tuple[str, ...]]]:
    return _by_wordnet(folder, listed_ids("a"), "ImageNet-A")


def _renditions(folder: Path) -> tuple[Files, list[tuple[str, ...]]]:
    return _by_wordnet(folder, listed_ids("r"), "ImageNet-R")


def _by_number(folder: Path) -> tuple[Files, list[tuple[str, ...]]]:
    """ImageNetV2. Its folders are numbers, and sorting their names as text (0, 1, 10, 100, ...) would mix them up."""
    listing = list_nonempty_classes(folder, folder)
    strange = sorted(name for name in listing if not name.isdecimal() or int(name) >= len(wordnet_ids()))
    if strange or not listing:
        raise UserError(
            f"{folder} holds {f'a folder {strange[0]}' if strange else 'no class folder'}; ImageNetV2 has 0 to 999.",
            "Unpack the archive there again.",
        )
    named = {wordnet_ids()[int(name)]: paths for name, paths in listing.items()}
    return _files(folder, named, wordnet_ids()), [(name,) for name in wordnet_ids()]


def _val(folder: Path) -> tuple[Files, list[tuple[str, ...]]]:
    if list_nonempty_classes(folder, folder):
        return _by_wordnet(folder)
    return flat_val(folder.parent, list(wordnet_ids())), [(name,) for name in wordnet_ids()]


class Framed(Files):
    """Images in a frame that is cut off first."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Decode image ``index``, without its frame."""
        image, label = super().__getitem__(index)
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER)), label


def _objectnet(folder: Path) -> tuple[Files, list[tuple[str, ...]]]:
    """ObjectNet's mappings give, for 113 of its 313 classes, the ImageNet classes that are right: one or several."""
    mappings = folder / "mappings"
    try:
        titles: dict[str, str] = json.loads((mappings / "folder_to_objectnet_label.json").read_text())
        overlap: dict[str, str] = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text())
        line_of: dict[str, int] = json.loads((mappings / "pytorch_to_imagenet_2012_id.json").read_text())
        lines = (mappings / "imagenet_to_label_2012_v2").read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"ObjectNet's mappings cannot be read: {error}.", "Unpack objectnet-1.0 again.") from None
    # The overlap names ImageNet classes by text; text -> line of the list -> number of the class in PyTorch's order.
    number_at = {int(line): int(number) for number, line in line_of.items()}
    number_of = {text.strip(): number_at.get(line) for line, text in enumerate(lines)}
    accepted: dict[str, tuple[str, ...]] = {}
    for name, title in titles.items():
        if title in overlap:
            numbers = [number_of.get(text.strip()) for text in overlap[title].split("; ")]
            if None in numbers:
                raise UserError(f"ObjectNet's mappings do not place its class {title}.", "Unpack objectnet-1.0 again.")
            accepted[name] = tuple(wordnet_ids()[number] for number in numbers if number is not None)
    listing = {
        name: paths for name, paths in list_nonempty_classes(folder, folder / "images").items() if name in accepted
    }
    if not listing:
        raise UserError(
            f"{folder / 'images'} holds no folder that ObjectNet's mappings name.", "Unpack objectnet-1.0 again."
        )
    plain = _files(folder, listing, sorted(accepted))
    source = Framed(folder, list(plain.keys), plain.labels, plain.classes, "test", upright=False)
    return source, [accepted[name] for name in sorted(accepted)]


def _files(root: Path, listing: dict[str, list[str]], classes: Sequence[str]) -> Files:
    """The images of the classes that are there, labelled by their place in ``classes``, sorted."""
    paths = [path for name in classes for path in listing.get(name, ())]
    labels = np.repeat(np.arange(len(classes)), [len(listing.get(name, ())) for name in classes])
    return Files(root, paths, labels, list(classes), "test", upright=False)


Reader = Callable[[Path], tuple[Files, list[tuple[str, ...]]]]

SETS: dict[str, tuple[str, Sequence[str], int, Reader]] = {
    "val": ("ImageNet val", ("val", "imagenet/val", "ILSVRC2012/val"), 50_000, _val),
    "v2": (
        "ImageNetV2 matched frequency",
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
        10_000,
        _by_number,
    ),
    "v2_threshold": (
        "ImageNetV2 threshold 0.7",
        ("imagenetv2-threshold0.7-format-val", "imagenetv2-threshold0.7"),
        10_000,
        _by_number,
    ),
    "v2_top": (
        "ImageNetV2 top images",
        ("imagenetv2-top-images-format-val", "imagenetv2-topimages-format-val", "imagenetv2-top-images"),
        10_000,
        _by_number,
    ),
    "a": ("ImageNet-A", ("imagenet-a",), 7_500, _adversarial),
    "r": ("ImageNet-R", ("imagenet-r",), 30_000, _renditions),
    "sketch": ("ImageNet-Sketch", ("sketch", "imagenet-sketch", "ImageNet-Sketch"), 50_889, _by_wordnet),
    "objectnet": ("ObjectNet", ("objectnet-1.0",), 18_574, _objectnet),
}
"""Name to title, folders below the root, images of the published set, and its reader."""

CORRUPTED = "ImageNet-C"


def find_corrupted(root: Path) -> dict[tuple[str, int], ShiftedImages]:
    """The parts of ImageNet-C that are present: (corruption, severity) to its images. There is one archive for each
    family, which may be unpacked with or without a folder of its own."""
    homes = [root / name for name in ("imagenet-c", "ImageNet-C", "imagenet_c", "ImageNetC")] + [root]
    found = {}
    for family, names in FAMILIES.items():
        for name in names:
            places = [home / part / name for home in homes for part in ("", family)]
            place = next((one for one in places if one.is_dir()), None)
            for severity in SEVERITIES if place is not None else ():
                folder = place / str(severity) if place is not None else root
                if folder.is_dir():
                    source, accepted = _by_wordnet(folder)
                    title = f"{CORRUPTED} {name} {severity}"
                    found[name, severity] = ShiftedImages("c", title, source, accepted, 50_000)
    return found
