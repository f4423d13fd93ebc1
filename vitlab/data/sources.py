"""A source: labelled images with a stable order and stable names.

A source may also have ``groups``, the name of each image's group (a patient, a plant, a burst): images of one group are
not independent, so splits, subsets, folds and bootstrap resamples take groups as units. It may also state that it is
``synthetic``. Both are optional: :func:`groups_of` and ``getattr`` read them.

Reproducibility depends on sources: stored teacher labels are addressed by the indices of a source and refused when its
:func:`fingerprint` differs, and every subset or split is a function of keys and seed alone, never of the order in which
a file system lists names.

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

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


class Source(Protocol):
    """The interface of a data set: everything that the rest of vitlab reads of it."""

    split_name: str
    """Which split this really is: ``test`` where a set has no ``val`` and ``val`` was requested."""

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
        """``[N]`` class numbers, or ``[N, K]`` rows of 0 and 1 where images have several labels; None where they are
        known only by reading every item."""

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
        # String i is the bytes from _ends[i] to _ends[i + 1].
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """SHA-256 (hex) of all strings, without making them one by one."""
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
        self,
        images: npt.NDArray[np.uint8],
        labels: Labels,
        classes: list[str],
        keys: Sequence[str],
        split_name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        if not len(images) == len(labels) == len(keys) == len(keys if groups is None else groups):
            raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(keys)} keys; groups: {groups}")
        self.groups = None if groups is None else Strings(groups)
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
    data set may change, since stored targets are matched to it by keys and labels alone.
    """

    in_memory = False

    def __init__(
        self,
        dataset: Any,
        classes: list[str],
        split_name: str = "train",
        labels: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        known = labels if labels is not None else getattr(dataset, "targets", None)
        self.dataset = dataset
        self.classes = classes
        self.labels: Labels | None = None if known is None else np.asarray(known, dtype=np.int64)
        self.keys = Strings(keys if keys is not None else map(str, range(len(dataset))))
        self.groups = None if groups is None else Strings(groups)
        self.split_name = split_name
        if groups is not None and len(groups) != len(dataset):
            raise ValueError(f"{len(dataset)} items and {len(groups)} groups")
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
        groups = groups_of(source)
        self.groups = None if groups is None else Strings(groups[int(i)] for i in self.indices)
        self.split_name = source.split_name
        self.in_memory = source.in_memory
        self.held_out: bool = getattr(source, "held_out", False)  # see hold_out
        self.synthetic: bool = getattr(source, "synthetic", False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[int(self.indices[index])]


class Pool:
    """All splits of a data set concatenated to one source. Keys are those of the splits; where two splits share a key,
    as with index numbers, all are ``<split>/<key>``.
    """

    def __init__(self, parts: dict[str, Source]) -> None:
        self.parts = list(parts.values())
        first = self.parts[0]
        self.classes = first.classes
        names = [key for part in self.parts for key in part.keys]
        if len(set(names)) < len(names):
            names = [f"{split}/{key}" for split, part in parts.items() for key in part.keys]
        self.keys = Strings(names)
        self.labels: npt.NDArray[Any] = np.concatenate([targets_of(part) for part in self.parts])
        groups = [groups_of(part) for part in self.parts]
        self.groups = Strings(name for part in groups for name in part or ()) if all(groups) else None
        self.split_name = "all"
        self.in_memory = all(part.in_memory for part in self.parts)
        self.synthetic: bool = getattr(first, "synthetic", False)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[Source, int]:
        """The split that holds image ``index``, and its index there."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[which], index - (int(self._ends[which - 1]) if which else 0)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        part, at = self.locate(index)
        return part[at]


def groups_of(source: Source) -> Sequence[str] | None:
    """``[N]`` name of each image's group; None where the source has no groups."""
    groups: Sequence[str] | None = getattr(source, "groups", None)
    return groups


def groups_at(source: Source, index: Indices) -> list[str] | None:
    """``[M]`` the groups of some images of a source; None where it has no groups."""
    groups = groups_of(source)
    return None if groups is None else [groups[int(i)] for i in index]


def labels_of(source: Source) -> Labels:
    """``[N]`` labels of a source; reads every item where they are not known. Where images have several labels, the
    rarest of each image: see :func:`rarest_labels`."""
    known = targets_of(source)
    return rarest_labels(known) if known.ndim == 2 else known


def targets_of(source: Source) -> npt.NDArray[Any]:
    """``[N]`` class numbers or ``[N, K]`` rows of 0 and 1 of a source; reads every item where they are not known."""
    if source.labels is not None:
        return source.labels
    return np.asarray([source[i][1] for i in range(len(source))], dtype=np.int64)


def class_counts(targets: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """``[classes]`` images of each class; an image with several labels counts in each of them."""
    counts: npt.NDArray[np.int64] = (
        targets.sum(0, dtype=np.int64) if targets.ndim == 2 else np.bincount(targets, minlength=classes)
    )
    return counts


def rarest_labels(targets: npt.NDArray[Any]) -> Labels:
    """[N] strata of rows [N, K] of 0 and 1: the number of the rarest label of each, K where there is none."""
    if not targets.size:
        return np.full(len(targets), targets.shape[1], np.int64)
    order = np.argsort(targets.sum(0), kind="stable")  # rarest first
    sorted_rows = targets[:, order]
    first = sorted_rows.argmax(1)  # the first 1 of each row; 0 also for a row of zeros, which any() below separates
    found: Labels = np.where(sorted_rows.any(1), order[first], targets.shape[1]).astype(np.int64)
    return found


def fingerprint(source: Source) -> str:
    """SHA-256 over length, class names, keys and labels: two sources are one data set if this agrees.

    Pixels are not read; a file replaced under the same name and label is not noticed. Unknown labels count as absent.
    """
    digest = hashlib.sha256(json.dumps({"length": len(source), "classes": source.classes}).encode())
    for start in range(0, len(source), 65536):  # in blocks, so that not all keys are in memory as Python strings
        block = "\n".join(source.keys[start : start + 65536]) + "\n"
        digest.update(block.encode("utf-8", "surrogateescape"))
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    return digest.hexdigest()
