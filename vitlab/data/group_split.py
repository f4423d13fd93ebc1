"""A held-out part that keeps groups whole: all pictures of one patient, one plant, one burst on the same side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitlab.data.sources import Labels


def held_out_groups(groups: Sequence[str], labels: Labels, fraction: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """``[N]`` true where an image is held out: whole groups, near ``fraction`` of every class.

    Groups are taken in the order of SHA-256(seed, group), so the choice depends on their names and not on their order.
    One is held out if that brings the held-out counts of the classes nearer to ``fraction`` of each class (the sum of
    the absolute differences falls) and leaves every class an image to train on. A class whose images are all in one
    group stays in training, as does a set of one group.

    Args:
        groups: [N] name of each image's group.
        labels: [N] class numbers.
        fraction: share to hold out, between 0 and 1.
    """
    names, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    classes = int(labels.max()) + 1 if len(labels) else 0
    content = np.zeros((len(names), classes), np.int64)
    np.add.at(content, (member, labels), 1)
    left = content.sum(0)
    want = fraction * left
    have = np.zeros(classes, np.int64)
    out = np.zeros(len(names), bool)
    draws = [hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    for group in sorted(range(len(names)), key=draws.__getitem__):
        own = content[group]
        nearer = np.abs(want - have - own).sum() < np.abs(want - have).sum()
        if nearer and bool((left - own)[own > 0].all()):
            out[group] = True
            have += own
            left = left - own
    held: npt.NDArray[np.bool_] = out[member]
    return held
