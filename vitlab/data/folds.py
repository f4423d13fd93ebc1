"""Cross-validation: which fold each image is tested in, and the splits of one fold.

All images of a set are pooled, its own splits included, and each is tested in exactly one fold. The choice is a
function of keys (or groups), labels and the number of folds, never of the seed or of the order of the files, so that
the runs of all folds, of all seeds and of all methods agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data.sources import Indices, Labels, class_counts, rarest_labels
from vitlab.data.subsets import class_rank, hash_draws, held_out, held_out_groups
from vitlab.errors import UserError


def fold_numbers(keys: Sequence[str], labels: Labels, folds: int, groups: Sequence[str] | None = None) -> Indices:
    """``[N]`` the fold in which each image is tested, 0 to ``folds - 1``, stratified by class.

    Without groups the images of a class are assigned to the folds in turn, in the order of SHA-256 of their keys; a
    class starts at the fold after the last one of the class before it. Folds differ by at most one image, in every
    class and in total.

    Groups are not divided. From the largest to the smallest (equal ones by SHA-256 of their names), each goes to the
    fold for which the sum, over all folds and classes, of ``(images of the class in the fold / images of the class)^2``
    stays smallest, which evens out every class; of equally good folds it goes to the one with fewer images.

    Args:
        keys: [N] names of the images.
        labels: [N] class numbers.
        folds: how many, at least 2.
        groups: [N] name of each image's group.

    Raises:
        ValueError: fewer than two folds, or more folds than images or groups.
    """
    units = len(keys) if groups is None else len(set(groups))
    if not 2 <= folds <= units:
        raise ValueError(f"{folds} folds of {units} {'images' if groups is None else 'groups'}")
    if groups is None:
        counts = np.bincount(labels)
        # The offset of each class: if all began at fold 0, the remainders would add up in the first folds.
        before = np.cumsum(counts) - counts
        numbers: Indices = (class_rank(keys, labels, 0) + before[labels]) % folds
        return numbers
    names, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    content = np.zeros((len(names), int(labels.max()) + 1), np.int64)
    np.add.at(content, (member, labels), 1)
    weight = 1.0 / np.maximum(content.sum(0), 1) ** 2
    have = np.zeros((folds, content.shape[1]), np.int64)
    fold_of_group = np.zeros(len(names), np.int64)
    for group in np.lexsort((hash_draws(names.tolist(), 0), -content.sum(1))):
        own = content[group]
        # (have + own)^2 - have^2: the growth of the sum. Rounded, so that equal folds tie on every machine.
        growth = ((2 * have + own) * own * weight).sum(1)
        fold = int(np.lexsort((np.arange(folds), have.sum(1), growth.round(12)))[0])
        fold_of_group[group] = fold
        have[fold] += own
    by_image: Indices = fold_of_group[member]
    return by_image


def checked_fold_numbers(
    cfg: DatasetConfig,
    keys: Sequence[str],
    targets: npt.NDArray[Any],
    classes: Sequence[str],
    groups: Sequence[str] | None,
) -> Indices:
    """:func:`fold_numbers`, checked: outside of every fold each class has an image to train on. ``targets`` are class
    numbers [N], or rows [N, K] of 0 and 1, which are stratified by the rarest label of each.

    Raises:
        UserError: too many folds, or a class whose images are all in one fold.
    """
    assert cfg.folds is not None
    unit = "images" if groups is None else "groups"
    try:
        numbers = fold_numbers(keys, rarest_labels(targets) if targets.ndim == 2 else targets, cfg.folds, groups)
    except ValueError as error:
        raise UserError(f"dataset.folds={cfg.folds}: {error}.", f"Give from 2 folds to as many as {unit}.") from None
    table = np.stack([class_counts(targets[numbers == fold], len(classes)) for fold in range(cfg.folds)], axis=1)
    alone = np.flatnonzero((table > 0).sum(1) < 2)
    if len(alone):
        raise UserError(
            f"dataset.folds={cfg.folds}: class '{classes[alone[0]]}' has all of its {int(table[alone[0]].sum())} "
            f"image(s) in one fold, so that fold would leave none to train on.",
            f"Every class needs images in two {unit} at least; add some, or leave the class out.",
        )
    return numbers


def splits_of_fold(
    cfg: DatasetConfig,
    keys: Sequence[str],
    targets: npt.NDArray[Any],
    classes: Sequence[str],
    groups: Sequence[str] | None,
) -> npt.NDArray[np.str_]:
    """``[N]`` the split of each image in fold ``dataset.fold`` of ``dataset.folds``: its images are ``test``.

    ``dataset.val_fraction`` of the others is held out as ``val`` (complete groups, the same for every seed); with a
    fraction of 0 there is no ``val``, and ``test`` is used in its place, as for any set without ``val``.

    Raises:
        UserError: as :func:`checked_fold_numbers`.
    """
    numbers = checked_fold_numbers(cfg, keys, targets, classes, groups)
    labels = rarest_labels(targets) if targets.ndim == 2 else targets
    split = np.where(numbers == cfg.fold, "test", "train").astype("<U6")
    if cfg.val_fraction:
        rest = np.flatnonzero(split == "train")
        if groups is None:
            held = held_out([keys[int(i)] for i in rest], labels[rest], cfg.val_fraction)
        else:
            held = held_out_groups([groups[int(i)] for i in rest], labels[rest], cfg.val_fraction)
        split[rest[held]] = "val"
    return split
