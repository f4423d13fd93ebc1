"""A user's own images with several labels each: a CSV, with the images below ``dataset.root`` or beside the CSV.

Two forms are read, distinguished by their header line::

    path,labels[,split][,group]          path,cat,dog,rain[,split][,group]
    a.jpg,cat;dog                        a.jpg,1,1,0
    b.jpg,                               b.jpg,0,0,0

In the first, labels are in one cell, separated by ``;`` (or ``|``); the classes are all labels that occur, sorted. In
the second every other column is a label, of 0 and 1; the classes have the order of the columns. An empty cell, or a row
of zeros, is an image that shows none of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitlab.data.decode import Files, read_rgb
from vitlab.data.split_file import SPLITS
from vitlab.errors import UserError

SEPARATORS = (";", "|")
KNOWN = ("path", "label", "labels", "split", "group")


@dataclass(frozen=True)
class Line:
    """One image of the table."""

    path: str  # as written there
    labels: tuple[str, ...]
    split: str
    group: str
    number: int  # of the line


def has_label_sets(columns: Sequence[str]) -> bool:
    """Whether the header line of a CSV is one of the two forms."""
    # A single further column is left to read_csv, whose message names the columns that are expected.
    several = "labels" in columns or len(set(columns) - set(KNOWN)) >= 2
    return "path" in columns and "label" not in columns and several


def read_label_sets(
    table: Path, columns: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> tuple[list[str] | None, list[Line]]:
    """The labels in the order of their columns (None where they are in one cell), and the lines.

    Args:
        table: the file, for messages.
        columns, rows: of :func:`vitlab.data.table.read_table`.

    Raises:
        UserError: a line that cannot be parsed.
    """
    lines: list[Line] = []
    named = [name for name in columns if name not in KNOWN]
    if "labels" in columns and named:
        raise UserError(
            f"{table} has a column labels and further ones: {', '.join(named[:5])}.",
            "Give the labels in one cell, or a column of 0 and 1 for each, not both.",
        )
    seen: dict[str, int] = {}
    for at, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        path = row["path"]
        if not path:
            raise UserError(f"{table}, line {at}: the path is empty.", "Fill it, or remove the line.")
        if path in seen:
            raise UserError(f"{table}, line {at}: {path} is already in line {seen[path]}.", "Remove one.")
        given = row.get("split", "train")
        split = SPLITS.get(given.lower())
        if split is None:
            raise UserError(f"{table}, line {at}: '{given}' is not a split.", "Write train, val or test.")
        group = row.get("group", "")
        if "group" in columns and not group:
            raise UserError(
                f"{table}, line {at}: the group is empty.",
                "Give every image a group (one of its own, if need be), or remove the column.",
            )
        labels = _in_cell(row["labels"]) if "labels" in columns else _in_columns(row, named, table, at)
        seen[path] = at
        lines.append(Line(path, labels, split, group, at))
    if not lines:
        raise UserError(f"{table} holds no rows.", "Add one line for each image.")
    return named or None, lines


def _in_cell(cell: str | None) -> tuple[str, ...]:
    text = cell or ""
    separator = next((one for one in SEPARATORS if one in text), SEPARATORS[0])
    return tuple(dict.fromkeys(name for part in text.split(separator) if (name := part.strip())))


def _in_columns(row: dict[str, str], names: list[str], table: Path, at: int) -> tuple[str, ...]:
    for name in names:
        if (row[name] or "").strip() not in ("0", "1"):
            raise UserError(
                f"{table}, line {at}: column {name} holds '{row[name]}', not 0 or 1.",
                "Write 1 where the image shows it, else 0; or give the labels in one column, labels.",
            )
    return tuple(name for name in names if row[name].strip() == "1")


class LabelSetFiles(Files):
    """A source of image files with several labels each; items are (image, row [K] uint8 of 0 and 1)."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        rows: npt.NDArray[np.uint8],
        classes: list[str],
        split_name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(root, paths, np.zeros(len(paths), np.int64), classes, split_name, groups=groups)
        self.labels: npt.NDArray[Any] = rows

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return read_rgb(self.root / self.keys[index], self.upright), self.labels[index]
