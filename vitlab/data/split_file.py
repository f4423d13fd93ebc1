"""``dataset.split_file``: a CSV that states the split of every image, read and written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data.sources import Source, class_counts, groups_of
from vitlab.data.table import read_table
from vitlab.errors import UserError
from vitlab.files import atomic_write

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of splits in folders and CSV files, lower case, and the split they mean."""

UNUSED = "unused"
"""In a split file: the image belongs to no split."""


def splits_of_file(
    cfg: DatasetConfig, keys: Sequence[str], targets: npt.NDArray[Any], classes: Sequence[str]
) -> npt.NDArray[np.str_]:
    """``[N]`` the split of each image according to ``dataset.split_file``: train, val, test or unused.

    The file is a CSV with the columns ``path,split`` and any others; ``path`` is the image's key. Every image is listed
    exactly once.

    Raises:
        UserError: no such file, a line that cannot be parsed or names no image, an image that no line names, or a class
            that ``train`` lacks.
    """
    table = Path(cfg.split_file or "").expanduser()
    if not table.is_file():
        raise UserError(f"dataset.split_file={table} does not exist.", "Give a CSV with the columns path,split.")
    number = {key: i for i, key in enumerate(keys)}
    split = np.full(len(keys), "", "<U6")
    columns, rows = read_table(table)
    if not {"path", "split"} <= set(columns):
        raise UserError(
            f"{table}: the first line must name the columns path,split; it reads: {','.join(columns)}.",
            "Add that line.",
        )
    for at, cells in rows:
        place, line = f"{table}, line {at}", dict(zip(columns, cells, strict=True))
        path, given = line["path"], line["split"]
        name = UNUSED if given.lower() == UNUSED else SPLITS.get(given.lower())
        if name is None:
            raise UserError(f"{place}: '{given}' is not a split.", f"Write train, val, test or {UNUSED}.")
        if path not in number:
            raise UserError(
                f"{place}: {path or 'an empty path'} is no image of data set '{cfg.name}'.",
                f"Its paths look like this: {keys[0]}. Remove the line, or choose the data that it was made for.",
            )
        if split[number[path]]:
            raise UserError(f"{place}: {path} is in the file twice.", "Remove one of the lines.")
        split[number[path]] = name
    absent = np.flatnonzero(split == "")
    if len(absent):
        raise UserError(
            f"{table} does not list {len(absent)} of the {len(keys)} images of data set '{cfg.name}', the first is "
            f"{keys[int(absent[0])]}.",
            f"Add a line for each; an image that is to be left out has the split {UNUSED}.",
        )
    lacking = np.flatnonzero(class_counts(targets[split == "train"], len(classes)) == 0)
    if len(lacking):
        raise UserError(
            f"{table}: train has no image of class {classes[int(lacking[0])]}.", "Every class needs some to train on."
        )
    return split


def write_split_file(path: Path, splits: dict[str, Source]) -> None:
    """Write the splits as :func:`splits_of_file` reads them, with a column ``group`` where the images have groups.

    Args:
        splits: of :func:`vitlab.data.build.open_splits`, before any subset of them is taken.
    """
    parts = {name: splits[name] for name in ("train", "val", "test")}
    if parts["test"] is parts["val"]:  # one is used in place of the other
        del parts["test" if parts["val"].split_name == "val" else "val"]
    keys = {name: list(source.keys) for name, source in parts.items()}
    if len(set().union(*keys.values())) < sum(map(len, keys.values())):  # as vitlab.data.sources.Pool names them
        origin = {name: "train" if getattr(source, "held_out", False) else name for name, source in parts.items()}
        keys = {name: [f"{origin[name]}/{key}" for key in own] for name, own in keys.items()}
    grouped = all(groups_of(source) is not None for source in parts.values())
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "split", *(["group"] if grouped else [])])
    for name, source in parts.items():
        columns = [keys[name], *([groups_of(source) or []] if grouped else [])]
        writer.writerows([row[0], name, *row[1:]] for row in zip(*columns, strict=True))
    atomic_write(path, buffer.getvalue().encode("utf-8", "surrogateescape"))
