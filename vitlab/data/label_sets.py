"""A user's own images with several labels each: a CSV, with the images below ``dataset.root`` or beside the CSV.

Two forms are read, by their heading::

    path,labels[,split][,group]          path,cat,dog,rain[,split][,group]
    a.jpg,cat;dog                        a.jpg,1,1,0
    b.jpg,                               b.jpg,0,0,0

In the first, labels stand in one cell, separated by ``;`` (or ``|``); the classes are all labels that occur, sorted. In
the second every other column is a label, of 0 and 1; the classes have the order of the columns. An empty cell, or a row
of zeros, is an image that shows none of the labels.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.decode import Files
from vitlab.data.sources import Source, rarest
from vitlab.data.split_file import SPLITS
from vitlab.data.subsets import held_out, held_out_groups
from vitlab.errors import UserError

SEPARATORS = (";", "|")
KNOWN = ("path", "labels", "split", "group")


@dataclass
class Row:
    """One image of the set."""

    path: str  # relative to the root
    labels: frozenset[str]
    split: str
    group: str = ""  # images of one group stay on one side of a split


@dataclass
class Table:
    """A CSV of images with several labels."""

    path: Path
    root: Path
    classes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def targets(self, rows: list[Row]) -> np.ndarray:
        """[N, K] uint8 of 0 and 1."""
        number = {name: i for i, name in enumerate(self.classes)}
        found = np.zeros((len(rows), len(self.classes)), np.uint8)
        for at, row in enumerate(rows):
            found[at, [number[name] for name in row.labels]] = 1
        return found


def table_path(cfg: DatasetConfig) -> Path | None:
    """Where ``dataset.csv`` lies, if it gives images several labels; else None."""
    if not cfg.csv:
        return None
    table = Path(cfg.csv).expanduser()
    root = Path(cfg.root).expanduser() if cfg.root else table.parent
    if not table.is_file() and (root / table).is_file():
        table = root / table
    if not table.is_file():
        return None
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        columns = [name.strip() for name in next(csv.reader(file, skipinitialspace=True), [])]
    several = "labels" in columns or ("label" not in columns and len(set(columns) - set(KNOWN)) >= 2)
    return table if "path" in columns and several else None


def read_table(cfg: DatasetConfig, table: Path) -> Table:
    """The rows of the CSV; whether the files exist is not checked here.

    Raises:
        UserError: a line that cannot be understood.
    """
    root = Path(cfg.root).expanduser() if cfg.root else table.parent
    found = Table(table, root)
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = [str(name) for name in reader.fieldnames or []]
        named = [name for name in columns if name not in KNOWN]
        if "labels" in columns and named:
            raise UserError(
                f"{table} has a column labels and further ones: {', '.join(named[:5])}.",
                "Give the labels in one cell, or a column of 0 and 1 for each, not both.",
            )
        seen: dict[str, int] = {}
        for line in reader:
            at, path = reader.line_num, (line["path"] or "").strip()
            if not path:
                raise UserError(f"{table}, line {at}: the path is empty.", "Fill it, or remove the line.")
            if path in seen:
                raise UserError(f"{table}, line {at}: {path} stands already in line {seen[path]}.", "Remove one.")
            given = (line["split"] or "").strip() if "split" in columns else "train"
            split = SPLITS.get(given.lower())
            if split is None:
                raise UserError(f"{table}, line {at}: '{given}' is not a split.", "Write train, val or test.")
            labels = _in_cell(line["labels"]) if "labels" in columns else _in_columns(line, named, table, at)
            group = (line["group"] or "").strip() if "group" in columns else ""
            if "group" in columns and not group:
                raise UserError(f"{table}, line {at}: the group is empty.", "Give every image one, or none of them.")
            seen[path] = at
            found.rows.append(Row(path, labels, split, group))
    if not found.rows:
        raise UserError(f"{table} holds no rows.", "Add one line for each image.")
    found.classes = named or sorted({name for row in found.rows for name in row.labels})
    if len(found.classes) < 2:
        raise UserError(f"{table} has {len(found.classes)} label(s).", "Several labels an image need at least two.")
    return found


def _in_cell(cell: str | None) -> frozenset[str]:
    text = cell or ""
    separator = next((one for one in SEPARATORS if one in text), SEPARATORS[0])
    return frozenset(name for part in text.split(separator) if (name := part.strip()))


def _in_columns(line: dict[str, str], names: list[str], table: Path, at: int) -> frozenset[str]:
    for name in names:
        if (line[name] or "").strip() not in ("0", "1"):
            raise UserError(
                f"{table}, line {at}: column {name} holds '{line[name]}', not 0 or 1.",
                "Write 1 where the image shows it, else 0; or give the labels in one column, labels.",
            )
    return frozenset(name for name in names if line[name].strip() == "1")


def splits(cfg: DatasetConfig, table: Path) -> dict[str, Source]:
    """The splits of a CSV. Without ``val``, ``dataset.val_fraction`` of ``train`` is held out, as of a folder, so that
    rare labels are on both sides: images are stratified by the rarest of their labels.

    Raises:
        UserError: as :func:`read_table`; files that are missing, a label without a training image, keys of ``dataset``
            that need one label an image.
    """
    found = read_table(cfg, table)
    absent = [row.path for row in found.rows if not (found.root / row.path).is_file()]
    if absent:
        raise UserError(
            f"{table}: {len(absent)} of {len(found.rows)} files do not exist under {found.root}, the first is "
            f"{absent[0]}.",
            "Paths are relative to dataset.root, or to the CSV's folder when dataset.root is not given.",
        )
    for key in ("folds", "split_file", "classes"):
        if getattr(cfg, key) is not None:
            raise UserError(
                f"dataset.{key} is for images with one label each.",
                f"Give a column split in {table}, and leave it out.",
            )
    if cfg.leave_out:
        raise UserError(
            "dataset.leave_out is for images with one label each.", f"Remove the lines from {table}, and leave it out."
        )
    parts = {split: [row for row in found.rows if row.split == split] for split in ("train", "val", "test")}
    train = parts["train"]
    made_here = bool(train) and not parts["val"] and (not parts["test"] or cfg.val_fraction != 0)
    if made_here:
        if not 0 < cfg.val_fraction < 1:
            raise UserError(
                f"dataset.val_fraction={cfg.val_fraction} is not a share, and {table} has no val or test split.",
                "Give a number between 0 and 1, or a column split.",
            )
        strata, groups = rarest(found.targets(train)), _groups(train)
        if groups is None:
            held = held_out([row.path for row in train], strata, cfg.val_fraction)
        else:
            held = held_out_groups(groups, strata, cfg.val_fraction)
        parts["val"] = [row for row, out in zip(train, held, strict=True) if out]
        parts["train"] = [row for row, out in zip(train, held, strict=True) if not out]
    counts = found.targets(parts["train"]).sum(0)
    if parts["train"] and not counts.all():
        name = found.classes[int(counts.argmin())]
        raise UserError(f"{table}: no training image has the label {name}.", "Add some, or leave the label out.")
    sources: dict[str, Source] = {}
    for split, rows in parts.items():
        if rows:
            paths = [row.path for row in rows]
            source = LabelSetFiles(found.root, paths, found.targets(rows), found.classes, split, _groups(rows))
            source.held_out = made_here and split == "val"
            sources[split] = source
    return sources


def _groups(rows: list[Row]) -> list[str] | None:
    return [row.group for row in rows] if any(row.group for row in rows) else None


class LabelSetFiles(Files):
    """A source of image files with several labels each; items are (image, row [K] uint8 of 0 and 1)."""

    def __init__(
        self,
        root: Path,
        paths: list[str],
        targets: np.ndarray,
        classes: list[str],
        split_name: str,
        groups: list[str] | None = None,
    ) -> None:
        super().__init__(root, paths, targets, classes, split_name, groups=groups)
        self.labels = targets  # Files counts class numbers as int64

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]  # Image and row, where Files gives a number
        from vitlab.data.decode import read_rgb

        return read_rgb(self.root / self.keys[index], self.upright), self.labels[index]
