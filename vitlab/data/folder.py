"""A user's own images as sources: class folders with or without splits, or a CSV.

:mod:`vitlab.data.folder_contents` lists what there is; :func:`folder_sources` splits it, and refuses the first fault
that makes a training impossible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data.archives import ArchivedFiles
from vitlab.data.decode import Files
from vitlab.data.folder_contents import FolderContents, Row, no_image_error, read_contents
from vitlab.data.folds import splits_of_fold
from vitlab.data.label_sets import LabelSetFiles
from vitlab.data.sources import Labels, Source, rarest_labels
from vitlab.data.split_file import splits_of_file
from vitlab.data.subsets import held_out, held_out_groups
from vitlab.errors import UserError

ALL = 1.0
"""``val_fraction`` of a folder without splits that is only measured: all of its images are. No value of the command
line, where it is below 1."""


def folder_sources(cfg: DatasetConfig) -> dict[str, Source]:
    """The data set in ``dataset.root``: a CSV if ``dataset.csv`` is given, else class folders, or an uncompressed
    archive for each class (:mod:`vitlab.data.archives`).

    Class folders may lie in ``train``, ``val`` and ``test`` sub-folders (``val`` and ``test`` each optional). Without
    ``val``, ``dataset.val_fraction`` of each class of ``train`` is held out, chosen by a hash of the paths: the same
    images for every run and every seed, so that no run trains on what another is measured on. Where a CSV has a column
    ``group``, complete groups are held out (:func:`vitlab.data.subsets.held_out_groups`).

    A CSV may give images several labels (:mod:`vitlab.data.label_sets`); they are then stratified by the rarest.

    Raises:
        UserError: as :func:`~vitlab.data.folder_contents.read_contents`; a class folder or a split without images, a
            class that a split lacks.
    """
    contents = read_contents(cfg)
    if contents.empty:
        raise no_image_error(contents.root / contents.empty[0])
    if cfg.csv:
        _require_files(contents, cfg)
    return _sources(cfg, contents)


def _require_files(contents: FolderContents, cfg: DatasetConfig) -> None:
    paths = [row.path for part in contents.rows.values() for row in part]
    absent = [path for path in paths if not (contents.root / path).is_file()]
    if absent:
        raise UserError(
            f"{cfg.csv}: {len(absent)} of {len(paths)} files do not exist under {contents.root}, the first is "
            f"{absent[0]}.",
            "Paths are relative to dataset.root, or to the CSV's folder when dataset.root is not given.",
        )


def split_rows(cfg: DatasetConfig, contents: FolderContents) -> dict[str, list[Row]]:
    """The rows by split: that of ``dataset.folds`` or ``dataset.split_file``, else that of the folders or the CSV;
    where there is no ``val``, ``dataset.val_fraction`` of ``train`` is held out as such.

    Raises:
        UserError: ``val_fraction`` is not in (0, 1) where ``train`` is the only split; a split that cannot be made.
    """
    if cfg.folds or cfg.split_file:
        rows = [row for part in contents.rows.values() for row in part]
        keys, groups = [row.path for row in rows], _groups(rows)
        targets = _label_rows(contents, rows) if contents.multilabel else _labels(contents, rows)
        if cfg.split_file:
            split = splits_of_file(cfg, keys, targets, contents.classes)
        else:
            split = splits_of_fold(cfg, keys, targets, contents.classes, groups)
        return {
            name: part
            for name in ("train", "val", "test")
            if (part := [row for row, one in zip(rows, split, strict=True) if one == name])
        }
    if not split_is_generated(cfg, contents):
        return contents.rows
    if cfg.val_fraction == ALL and set(contents.rows) == {"train"}:
        return {"test": contents.rows["train"]}
    if not 0 < cfg.val_fraction < 1:
        raise UserError(
            f"dataset.val_fraction={cfg.val_fraction} is not a share, and {contents.root} has no val or test split.",
            "Give a number between 0 and 1, or make val/ and test/ folders.",
        )
    part = contents.rows["train"]
    labels, groups = _labels(contents, part), _groups(part)
    if groups is not None:
        held = held_out_groups(groups, labels, cfg.val_fraction)
    else:
        held = held_out([row.path for row in part], labels, cfg.val_fraction)
    return {
        "train": [row for row, out in zip(part, held, strict=True) if not out],
        "val": [row for row, out in zip(part, held, strict=True) if out],
        **{split: rows for split, rows in contents.rows.items() if split != "train"},
    }


def _labels(contents: FolderContents, rows: Sequence[Row]) -> Labels:
    """[N] class numbers; of an image with several labels, the rarest."""
    number = {name: i for i, name in enumerate(contents.classes)}
    if contents.multilabel:
        return rarest_labels(_label_rows(contents, rows))
    return np.array([number[row.label] for row in rows], dtype=np.int64)


def _label_rows(contents: FolderContents, rows: Sequence[Row]) -> npt.NDArray[np.uint8]:
    """[N, K] of 0 and 1."""
    number = {name: i for i, name in enumerate(contents.classes)}
    targets = np.zeros((len(rows), len(number)), np.uint8)
    for position, row in enumerate(rows):
        targets[position, [number[name] for name in row.names]] = 1
    return targets


def _groups(rows: Sequence[Row]) -> list[str] | None:
    return [row.group for row in rows] if any(row.group for row in rows) else None


def split_is_generated(cfg: DatasetConfig, contents: FolderContents) -> bool:
    """Whether vitlab makes the split: by folds or a split file, or by holding ``val`` out of ``train`` where there is
    none, and it is requested or there is no ``test`` either."""
    if cfg.folds or cfg.split_file:
        return True
    return (
        "train" in contents.rows
        and "val" not in contents.rows
        and ("test" not in contents.rows or cfg.val_fraction != 0)
    )


def _sources(cfg: DatasetConfig, contents: FolderContents) -> dict[str, Source]:
    """Sources of the splits, whose classes must be the same."""
    classes = contents.classes
    given = {} if cfg.folds or cfg.split_file or contents.multilabel else contents.rows
    for split, part in given.items():
        absent = sorted(set(classes) - {row.label for row in part})
        if absent and split == "train":  # another split is measured on the classes that it has
            raise UserError(
                f"Data set in {contents.root}: split '{split}' has no image of class {', '.join(absent[:5])}"
                f"{' ...' if len(absent) > 5 else ''}, which another split has.",
                "Add images of them to train, or remove them from the other split.",
            )
    sources: dict[str, Source] = {}
    for split, part in split_rows(cfg, contents).items():
        if not part and split != "train":
            continue  # nothing could be held out; open_splits raises
        paths = [row.path for row in part]
        if contents.multilabel:
            labels = _label_rows(contents, part)
            if split == "train" and part and not labels.any(0).all():
                name = classes[int(labels.any(0).argmin())]
                raise UserError(
                    f"Data set in {contents.root}: no training image has the label {name}.",
                    "Add some, or leave the label out.",
                )
            source: Files = LabelSetFiles(contents.root, paths, labels, classes, split, groups=_groups(part))
        elif contents.places is not None:
            places = contents.places.take([row.place for row in part])
            given_labels, groups = _labels(contents, part), _groups(part)
            source = ArchivedFiles(contents.root, paths, given_labels, classes, split, places, groups)
        else:
            source = Files(contents.root, paths, _labels(contents, part), classes, split, groups=_groups(part))
        source.ignored = contents.ignored
        source.held_out = split == "val" and split_is_generated(cfg, contents)
        sources[split] = source
    return sources
