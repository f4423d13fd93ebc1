"""What a data set holds, cheap to take for a million images: by it a later command notices that images have changed.

:func:`vitlab.data.sources.fingerprint` covers names and labels; here the sizes of the files are added, so that other
pictures under the same names, or pictures that were edited, count as others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data.archives import ArchivedFiles
from vitlab.data.build import open_splits
from vitlab.data.decode import Files
from vitlab.data.sources import Pool, Source, Subset, class_counts, fingerprint, targets_of

SHOWN = 3  # classes that a line on changes names


def size_at(source: Source, index: int) -> int | None:
    """Bytes of the file of image ``index``, -1 for one that is missing; None where images are no files. A file in a
    class archive counts as if it were unpacked."""
    if isinstance(source, ArchivedFiles) and source.places.archive[index] >= 0:
        return int(source.places.size[index])
    if isinstance(source, Files):
        try:
            return (source.root / source.keys[index]).stat().st_size
        except OSError:
            return -1
    if isinstance(source, Subset):
        return size_at(source.source, int(source.indices[index]))
    if isinstance(source, Pool):
        return size_at(*source.locate(index))
    return None


def file_sizes(source: Source) -> npt.NDArray[np.int64] | None:
    """``[N]`` bytes of each file, -1 for one that is missing; None where images are no files."""
    if len(source) == 0 or size_at(source, 0) is None:
        return None
    return np.fromiter((size_at(source, index) or 0 for index in range(len(source))), np.int64, len(source))


def content(source: Source) -> str:
    """SHA-256 over :func:`~vitlab.data.sources.fingerprint` and, where images are files, their sizes."""
    sizes = file_sizes(source)
    names = fingerprint(source)
    return names if sizes is None else hashlib.sha256(names.encode() + sizes.astype("<i8").tobytes()).hexdigest()


def record(cfg: DatasetConfig, seed: int) -> dict[str, Any]:
    """The data set as a training finds it, JSON-able: of each split the number of images, those of each class, and
    :func:`content`."""
    splits = open_splits(replace(cfg, labels_per_class=None), seed)
    made: dict[str, Any] = {}
    for name, source in splits.items():
        counts = class_counts(targets_of(source), len(source.classes))
        made[name] = {
            "images": len(source),
            "classes": {one: int(count) for one, count in zip(source.classes, counts, strict=True)},
            "content": content(source),
        }
    return made


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two results of :func:`record`, a short text for each split; [] where they are equal."""
    lines = []
    for split in sorted(before.keys() | now.keys(), key=lambda name: ("train", "val", "test", name).index(name)):
        old, new = before.get(split), now.get(split)
        if old == new:
            continue
        if old is None or new is None:
            lines.append(f"the {split} split {'is new' if old is None else 'is gone'}")
            continue
        differing = [
            f"{name} {old['classes'].get(name, 0):,} → {new['classes'].get(name, 0):,}"
            for name in sorted(old["classes"].keys() | new["classes"].keys())
            if old["classes"].get(name, 0) != new["classes"].get(name, 0)
        ]
        more = f" and {len(differing) - SHOWN} more classes" if len(differing) > SHOWN else ""
        if differing:
            text = f"{old['images']:,} → {new['images']:,} images ({', '.join(differing[:SHOWN])}{more})"
        else:
            text = f"{new['images']:,} images as before, but with other names, labels or sizes of files"
        lines.append(f"{split}: {text}")
    return lines
