"""A source: labelled images with a stable order and stable names.

Everything that must be the same tomorrow hangs on a source: stored teacher labels are addressed by its indices and
refused when :func:`fingerprint` differs, and every subset or split here is a function of keys and seed alone, never of
the order in which a file system lists names.

This module is free of torch, so that a plan can be printed quickly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitlab.errors import UserError

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


class Source(Protocol):
    """What the rest of vitlab needs to know about a data set."""

    split_name: str
    """Which split this really is: ``test`` where a set has no ``val`` and ``val`` was asked for."""

    in_memory: bool
    """Images are cheap to get: no worker processes are needed by default."""

    @property
    def classes(self) -> list[str]:
        """Class names; the label is the position."""

    @property
    def keys(self) -> Sequence[str]:
        """One stable name per image: its path relative to the root, or its index as text."""

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """``[N]`` class numbers, or ``[N, K]`` rows of 0 and 1 where images have several labels; None where only
        decoding every image would tell."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, Any]:
        """The RGB image and its target: a class number, or a row [K] of 0 and 1."""


class Strings(Sequence[str]):
    """Many short strings in two arrays.

    A list of 14 million paths costs about 1.5 GB and is copied into every loader worker as reference counts touch it;
    this costs the bytes of the paths and is shared by all processes.
    """

    def __init__(self, items: Iterable[str]) -> None:
        # surrogateescape: a file name on Linux is any bytes, and must come back as it was.
        encoded = [item.encode("utf-8", "surrogateescape") for item in items]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """sha256 hex of all strings: as fast as their bytes can be read."""
        digest = hashlib.sha256(self._ends.data)
        digest.update(self._bytes.data)
        return digest.hexdigest()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} strings")
        start, stop = self._ends[position], self._ends[position + 1]
        return self._bytes[start:stop].tobytes().decode("utf-8", "surrogateescape")


class Arrays:
    """A source whose images lie in memory, ``[N, H, W]`` grey or ``[N, H, W, 3]`` uint8."""

    in_memory = True

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: Labels, classes: list[str], keys: Sequence[str], split_name: str
    ) -> None:
        if not len(images) == len(labels) == len(keys):
            raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(keys)} keys")
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes
        self.keys = Strings(keys)
        self.split_name = split_name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.labels[index])


class MapStyle:
    """Any map-style data set whose items are ``(PIL image, target)``.

    Labels are taken from ``labels``, else from the data set's own ``targets`` (as torchvision's data sets have them),
    else they stay unknown until needed. Keys are indices as text unless given: give real names where the order of the
    data set may change, for keys and labels are all by which stored targets recognise it.
    """

    in_memory = False

    def __init__(
        self,
        dataset: Any,
        classes: list[str],
        split_name: str = "train",
        labels: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        known = labels if labels is not None else getattr(dataset, "targets", None)
        self.dataset = dataset
        self.classes = classes
        self.labels: Labels | None = None if known is None else np.asarray(known, dtype=np.int64)
        self.keys = Strings(keys if keys is not None else map(str, range(len(dataset))))
        self.split_name = split_name
        if len(self.keys) != len(dataset) or (self.labels is not None and len(self.labels) != len(dataset)):
            raise ValueError(f"{len(dataset)} items, {len(self.keys)} keys: labels and keys must match the data set")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.dataset[index]
        return image if image.mode == "RGB" else image.convert("RGB"), int(target)


class Subset:
    """Some images of a source, in the given order, under their own keys."""

    def __init__(self, source: Source, indices: Indices) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.classes = source.classes
        self.keys = Strings(source.keys[int(i)] for i in self.indices)
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.split_name = source.split_name
        self.in_memory = source.in_memory
        self.held_out: bool = getattr(source, "held_out", False)  # see hold_out

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[int(self.indices[index])]


def labels_of(source: Source) -> Labels:
    """``[N]`` labels of a source; reads every item where they are not known. Where images have several labels, the
    rarest of each image: see :func:`rarest`."""
    known = source.labels
    if known is None:
        known = np.asarray([source[i][1] for i in range(len(source))], dtype=np.int64)
    return rarest(known) if known.ndim == 2 else known


def rarest(targets: npt.NDArray[Any]) -> Labels:
    """[N] strata of rows [N, K] of 0 and 1: the number of the rarest label of each, K where there is none."""
    order = np.argsort(targets.sum(0), kind="stable")  # rarest first
    sorted_rows = targets[:, order]
    first = sorted_rows.argmax(1)
    found: Labels = np.where(sorted_rows.any(1), order[first], targets.shape[1]).astype(np.int64)
    return found


def fingerprint(source: Source) -> str:
    """SHA-256 over length, class names, keys and labels: two sources are one data set if this agrees.

    Pixels are not read; a file replaced under the same name and label is not noticed. Unknown labels count as absent.
    """
    digest = hashlib.sha256(json.dumps({"length": len(source), "classes": source.classes}).encode())
    for start in range(0, len(source), 65536):
        block = "\n".join(source.keys[start : start + 65536]) + "\n"
        digest.update(block.encode("utf-8", "surrogateescape"))
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def class_rank(keys: Sequence[str], labels: Labels, seed: int) -> Indices:
    """``[N]`` place of each image within its own class, in an order fixed by keys and seed.

    The order is that of SHA-256(seed, key): it does not depend on how the images are listed, and adding an image moves
    the others by at most one place. Taking ranks below n gives nested subsets: 10 per class lie within 20 per class.
    """
    draws = np.frombuffer(
        b"".join(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()[:8] for key in keys),
        dtype=">u8",
    )
    order = np.lexsort((draws, labels))
    counts = np.bincount(labels)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank


def per_class_subset(source: Source, n: int, seed: int) -> Subset:
    """``n`` images of each class, stratified and seeded, in the source's order.

    Raises:
        UserError: if a class has fewer images.
    """
    if source.labels is not None and source.labels.ndim == 2:
        raise UserError(
            f"dataset.labels_per_class={n} counts images of a class, and these images have several labels each.",
            "Leave it out; debug.max_images takes fewer images.",
        )
    labels = labels_of(source)
    counts = np.bincount(labels, minlength=len(source.classes))
    if n < 1 or counts.min() < n:
        small = int(counts.argmin())
        raise UserError(
            f"dataset.labels_per_class={n} cannot be met: class '{source.classes[small]}' has {counts[small]} images.",
            f"Give a number between 1 and {counts[small]}.",
        )
    return Subset(source, np.flatnonzero(class_rank(source.keys, labels, seed) < n))


def limit(source: Source, n: int, seed: int) -> Source:
    """At most ``n`` images, taken from the classes in turn, in the source's order."""
    if n >= len(source):
        return source
    labels = labels_of(source)
    turn = np.lexsort((labels, class_rank(source.keys, labels, seed)))
    return Subset(source, np.sort(turn[:n]))


def hold_out(train: Source, fraction: float) -> tuple[Source, Source]:
    """``train`` without ``fraction`` of every class, and that part, called ``val`` and marked ``held_out``.

    The choice is that of :func:`held_out`: the same images for every run and every seed, so that no run trains on what
    another is calibrated on.

    Raises:
        UserError: no class has an image to spare.
    """
    held = held_out(train.keys, labels_of(train), fraction)
    if not held.any():
        raise UserError(
            f"dataset.val_fraction={fraction:g}: no class has an image to spare.", "Give dataset.val_fraction=0."
        )
    val = Subset(train, np.flatnonzero(held))
    val.split_name, val.held_out = "val", True
    return Subset(train, np.flatnonzero(~held)), val


def held_out(keys: Sequence[str], labels: Labels, fraction: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """``[N]`` true where an image is held out: ``round(fraction * n)`` of each class's n images, at least one.

    A class with a single image keeps it for training. The choice is that of :func:`class_rank`.
    """
    counts = np.bincount(labels)
    quota = np.array([min(max(round(fraction * int(n)), 1), int(n) - 1) if n else 0 for n in counts], dtype=np.int64)
    held: npt.NDArray[np.bool_] = class_rank(keys, labels, seed) < quota[labels]
    return held
