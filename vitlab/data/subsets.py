"""Subsets and held-out parts: functions of keys, groups and seed, never of the order in which files are listed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vitlab.data.sources import Indices, Labels, Source, Subset, groups_of, labels_of
from vitlab.errors import UserError


def hash_draws(keys: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """``[N]`` 64 random bits for each key: the first eight bytes of SHA-256 of ``"<seed>:<key>"``.

    A hash instead of a generator: the draw of an image depends on its key, not on its position or on the other images.
    """
    return np.frombuffer(
        b"".join(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()[:8] for key in keys),
        dtype=">u8",
    )


def class_rank(keys: Sequence[str], labels: Labels, seed: int, groups: Sequence[str] | None = None) -> Indices:
    """``[N]`` place of each image within its own class, in an order fixed by keys and seed.

    The order is that of SHA-256(seed, key): it does not depend on how the images are listed, and adding an image moves
    the others by at most one place. Taking ranks below n gives nested subsets: 10 per class lie within 20 per class.

    With ``groups`` the order is that of SHA-256(seed, group) first: a class's images of one group are consecutive, so
    that n of a class come from as small a number of groups as possible, as where labels are collected patient by
    patient.
    """
    draws = hash_draws(keys, seed)
    # lexsort sorts by its last key first: by class, within it by the draw (of the group, then of the image).
    order = np.lexsort((draws, labels) if groups is None else (draws, hash_draws(groups, seed), labels))
    counts = np.bincount(labels)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank


def per_class_subset(source: Source, n: int, seed: int) -> Subset:
    """``n`` images of each class, stratified and seeded, in the source's order; group by group where there are groups.

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
    return Subset(source, np.flatnonzero(class_rank(source.keys, labels, seed, groups_of(source)) < n))


def limit_images(source: Source, n: int, seed: int) -> Source:
    """At most ``n`` images, taken from the classes in turn (within a class group by group), in the source's order."""
    if n >= len(source):
        return source
    labels = labels_of(source)
    # By rank within the class first: the first image of every class, then the second of every class, ...
    turn = np.lexsort((labels, class_rank(source.keys, labels, seed, groups_of(source))))
    return Subset(source, np.sort(turn[:n]))


def hold_out(train: Source, fraction: float) -> tuple[Source, Source]:
    """``train`` without ``fraction`` of every class, and that part, called ``val`` and marked ``held_out``.

    The choice is that of :func:`held_out`, or of :func:`held_out_groups` where there are groups: the same images for
    every run and every seed, so that no run trains on what another is calibrated on.

    Raises:
        UserError: no class has an image to spare.
    """
    groups, labels = groups_of(train), labels_of(train)
    held = held_out(train.keys, labels, fraction) if groups is None else held_out_groups(groups, labels, fraction)
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


def held_out_groups(groups: Sequence[str], labels: Labels, fraction: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """``[N]`` true where an image is held out: complete groups, near ``fraction`` of every class.

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
    target = fraction * left
    have = np.zeros(classes, np.int64)
    out = np.zeros(len(names), bool)
    draws = [hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    for group in sorted(range(len(names)), key=draws.__getitem__):
        own = content[group]
        nearer = np.abs(target - have - own).sum() < np.abs(target - have).sum()
        # Only classes of this group can run out of training images.
        if nearer and bool((left - own)[own > 0].all()):
            out[group] = True
            have += own
            left = left - own
    held: npt.NDArray[np.bool_] = out[member]
    return held
