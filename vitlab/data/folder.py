"""A user's own images: class folders with or without splits, or a CSV.

:func:`find` lists what there is and judges nothing, so that an audit can name every fault at once; :func:`folder` makes
sources of it and refuses the first fault that a training could not live with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitlab.config import DatasetConfig
from vitlab.data import label_sets
from vitlab.data.decode import EXTENSIONS, Files
from vitlab.data.folds import splits_of_fold
from vitlab.data.label_sets import LabelSetFiles
from vitlab.data.paths import data_roots, missing
from vitlab.data.sources import Labels, Source, rarest
from vitlab.data.split_file import SPLITS, splits_of_file
from vitlab.data.subsets import held_out, held_out_groups
from vitlab.data.table import read_table
from vitlab.errors import UserError


@dataclass(slots=True)
class Row:
    """One image of the set."""

    path: str  # relative to the root
    label: str
    group: str = ""  # images of one group stay on one side of a split; "": no groups
    line: int = 0  # of the CSV
    labels: tuple[str, ...] | None = None  # where an image has any number of them; ``label`` is then their text

    @property
    def names(self) -> tuple[str, ...]:
        """All labels."""
        return (self.label,) if self.labels is None else self.labels


@dataclass
class Found:
    """All that lies in a folder, or stands in a CSV."""

    root: Path
    rows: dict[str, list[Row]] = field(default_factory=dict)  # by split; only "train" where there are no splits
    empty: list[str] = field(default_factory=list)  # class folders without an image, relative to the root
    passed: dict[str, list[str]] = field(default_factory=dict)  # suffix or "hidden" -> files passed over
    left_out: list[str] = field(default_factory=list)  # images that dataset.leave_out names
    by_number: bool = False  # class names that are whole numbers are sorted as such
    order: list[str] | None = None  # of the classes, where one is given
    several: bool = False  # images have any number of labels each

    @property
    def ignored(self) -> dict[str, int]:
        """How many files of each kind were passed over."""
        return {kind: len(paths) for kind, paths in self.passed.items()}

    @property
    def classes(self) -> list[str]:
        """Names of all classes in the given order, else sorted; a CSV's as numbers where all are whole numbers."""
        if self.order is not None:
            return self.order
        names = {name for part in self.rows.values() for row in part for name in row.names}
        numeric = self.by_number and all(name.isdecimal() for name in names)
        return sorted(names, key=(lambda name: (int(name), name)) if numeric else None)


@dataclass
class Listing:
    """Images of one split by class, and what lay between them; all paths relative to the root."""

    images: dict[str, list[str]] = field(default_factory=dict)  # class -> paths, sorted
    passed: dict[str, list[str]] = field(default_factory=dict)  # suffix or "hidden" -> files passed over


def list_classes(root: Path, folder: Path) -> Listing:
    """Image paths (relative to ``root``) in each class folder of ``folder``, searched to any depth.

    Hidden files, files of other kinds and files beside the class folders are passed over and noted. A class folder
    without an image is listed as empty.
    """
    listing = Listing()
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not entry.is_dir():
            listing.passed.setdefault(_kind(entry.name), []).append(_inside(root, entry.path))
        elif not _hidden(entry.name):
            listing.images[entry.name] = sorted(_walk(root, Path(entry.path), listing.passed))
    return listing


def full_classes(root: Path, folder: Path) -> dict[str, list[str]]:
    """The images of :func:`list_classes`.

    Raises:
        UserError: a class folder holds no image.
    """
    images = list_classes(root, folder).images
    for name, paths in images.items():
        if not paths:
            raise _no_image(folder / name)
    return images


def _no_image(folder: Path) -> UserError:
    return UserError(
        f"Class folder {folder} holds no image.",
        f"Put images in it (one of {', '.join(sorted(EXTENSIONS))}), remove the folder, or name it in a text file: "
        "dataset.leave_out=FILE.",
    )


def _inside(root: Path, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _kind(name: str) -> str:
    return "hidden" if _hidden(name) else (Path(name).suffix.lower() or "no suffix")


def _walk(root: Path, folder: Path, passed: dict[str, list[str]]) -> Iterable[str]:
    base = os.fspath(root)
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        inside = os.path.relpath(path, base)
        for name in names:
            at = f"{inside}/{name}".replace(os.sep, "/")
            if _hidden(name) or os.path.splitext(name)[1].lower() not in EXTENSIONS:
                passed.setdefault(_kind(name), []).append(at)
            else:
                yield at


def _split_folders(root: Path) -> dict[str, Path]:
    """The split sub-folders of ``root``; empty when its sub-folders are classes.

    A folder is a split only if it has a split's name and sub-folders but no images of its own, so a class may be
    called ``train``.
    """
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        split = SPLITS.get(entry.name.lower())
        if split is None or not entry.is_dir():
            continue
        inside = list(os.scandir(entry.path))
        images = any(e.is_file() and Path(e.name).suffix.lower() in EXTENSIONS for e in inside)
        if not images and any(e.is_dir() and not _hidden(e.name) for e in inside):
            if split in found:
                raise UserError(
                    f"{root} holds two folders for the split '{split}': {found[split].name} and {entry.name}.",
                    "Keep one of them.",
                )
            found[split] = Path(entry.path)
    return found


def find(cfg: DatasetConfig) -> Found:
    """All that ``dataset.root`` or ``dataset.csv`` holds, faults included, without ``dataset.leave_out``.

    Raises:
        UserError: no such folder or CSV, a CSV that cannot be understood, or a list of files to leave out that names
            what is not there.
    """
    if cfg.csv:
        found = read_csv(cfg)
    else:
        root = next((r for r in data_roots(cfg) if r.is_dir()), None)
        if root is None:
            raise missing(cfg, "a folder of class folders")
        found = Found(root)
        splits = _split_folders(root) or {"train": root}
        for split, path in splits.items():
            listing = list_classes(root, path)
            found.rows[split] = [Row(one, name) for name, images in listing.images.items() for one in images]
            found.empty += [_inside(root, str(path / name)) for name, images in listing.images.items() if not images]
            for kind, passed in listing.passed.items():
                found.passed.setdefault(kind, []).extend(passed)
            if not listing.images:
                raise UserError(
                    f"{path} holds no class folders.",
                    "Images are expected as <class>/<image>, or <train|val|test>/<class>/<image>.",
                )
    if cfg.leave_out:
        _leave_out(found, cfg.leave_out)
    found.order = class_order(cfg, found) or found.order
    return found


def class_order(cfg: DatasetConfig, found: Found) -> list[str] | None:
    """The classes in the order that was given: the list ``dataset.classes``, with ``dataset.classes=listed`` that in
    which a CSV first names them, else the lines of ``classes.txt`` in the root; None where none is given.

    Raises:
        UserError: the names are not exactly the classes of the data.
    """
    names = found.classes
    given, place = cfg.classes, "dataset.classes"
    if given is None:
        table = found.root / "classes.txt"
        if not table.is_file():
            return None
        place = str(table)
        given = [line.strip() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif given == "listed":
        if not cfg.csv:
            raise UserError("dataset.classes=listed: only a CSV lists its images.", "Give dataset.csv, or a list.")
        rows = sorted((row for part in found.rows.values() for row in part), key=lambda row: row.line)
        return list(dict.fromkeys(name for row in rows for name in row.names))
    elif isinstance(given, str):
        raise UserError(f"dataset.classes={given} is no order.", "Give a list of all classes, or listed for a CSV's.")
    order = [str(name) for name in given]
    if len(set(order)) < len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise UserError(f"{place}: {twice} is named twice.", "Remove one of them.")
    if absent := [name for name in names if name not in set(order)]:
        raise UserError(f"{place} lacks {len(absent)} class(es) of the data, the first is {absent[0]}.", "Add them.")
    if unknown := [name for name in order if name not in set(names)]:
        raise UserError(
            f"{place} names {len(unknown)} class(es) without images, the first is {unknown[0]}.", "Remove them."
        )
    return order


def _leave_out(found: Found, name: str) -> None:
    """Drop the images and empty class folders that the text file ``name`` lists, a path relative to the root a line."""
    table = Path(name).expanduser()
    if not table.is_file():
        raise UserError(
            f"dataset.leave_out={name} does not exist.", "Give a text file with one path a line, relative to the root."
        )
    lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    names = {line.strip().removeprefix("./") for line in lines if line.strip() and not line.startswith("#")}
    known = {row.path for part in found.rows.values() for row in part} | set(found.empty)
    if unknown := sorted(names - known):
        raise UserError(
            f"{table} names {len(unknown)} file(s) that are not of the data set, the first is {unknown[0]}.",
            f"Paths are relative to {found.root}.",
        )
    found.left_out = sorted(names.difference(found.empty))
    found.empty = [path for path in found.empty if path not in names]
    for split, part in found.rows.items():
        found.rows[split] = [row for row in part if row.path not in names]


def folder(cfg: DatasetConfig) -> dict[str, Source]:
    """The data set in ``dataset.root``: a CSV if ``dataset.csv`` is given, else class folders.

    Class folders may lie in ``train``, ``val`` and ``test`` sub-folders (``val`` and ``test`` each optional). Without
    ``val``, ``dataset.val_fraction`` of each class of ``train`` is held out, chosen by a hash of the paths: the same
    images for every run and every seed, so that no run trains on what another is measured on. Where a CSV has a column
    ``group``, whole groups are held out (:func:`vitlab.data.subsets.held_out_groups`).

    A CSV may give images several labels (:mod:`vitlab.data.label_sets`); they are then stratified by the rarest.

    Raises:
        UserError: as :func:`find`; a class folder or a whole split without images, a class that a split lacks.
    """
    found = find(cfg)
    if found.empty:
        raise _no_image(found.root / found.empty[0])
    if cfg.csv:
        _require_files(found, cfg)
    return _sources(cfg, found)


def _require_files(found: Found, cfg: DatasetConfig) -> None:
    paths = [row.path for part in found.rows.values() for row in part]
    absent = [path for path in paths if not (found.root / path).is_file()]
    if absent:
        raise UserError(
            f"{cfg.csv}: {len(absent)} of {len(paths)} files do not exist under {found.root}, the first is "
            f"{absent[0]}.",
            "Paths are relative to dataset.root, or to the CSV's folder when dataset.root is not given.",
        )


def read_csv(cfg: DatasetConfig) -> Found:
    """Rows ``path,label[,split][,group]``, or several labels an image (:mod:`vitlab.data.label_sets`); paths relative
    to ``dataset.root``, or to the CSV's folder without one.

    Labels are names; where all of them are whole numbers they are sorted as numbers. Whether the files exist is not
    checked here.

    Raises:
        UserError: no such file, or a line that cannot be understood.
    """
    table = Path(cfg.csv or "").expanduser()
    root = Path(cfg.root).expanduser() if cfg.root else table.parent
    if not table.is_file() and (root / table).is_file():
        table = root / table
    if not table.is_file():
        raise UserError(f"dataset.csv={cfg.csv} does not exist.", "Give the path of a CSV with columns path,label.")
    columns, lines = read_table(table, cfg.columns)
    if label_sets.has_several(columns):
        return _read_label_sets(table, root, columns, lines)
    found = Found(root, by_number=True)
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"{table}: the first line must name the columns path,label[,split][,group]; it reads: {','.join(columns)}.",
            "Add that line, or give the names that it has: dataset.columns={path:NAME,label:NAME}.",
        )
    seen: dict[str, int] = {}
    for at, cells in lines:
        line = dict(zip(columns, cells, strict=True))
        path, label, group, given = line["path"], line["label"], line.get("group", ""), line.get("split", "train")
        split = SPLITS.get(given.lower())
        if not path or not label:
            raise UserError(f"{table}, line {at}: path or label is empty.", "Fill both, or remove the line.")
        if split is None:
            raise UserError(f"{table}, line {at}: '{given}' is not a split.", "Write train, val or test.")
        if path in seen:
            raise UserError(f"{table}, line {at}: {path} stands already in line {seen[path]}.", "Remove one.")
        if "group" in columns and not group:
            raise UserError(
                f"{table}, line {at}: the group is empty.",
                "Give every image a group (one of its own, if need be), or remove the column.",
            )
        seen[path] = at
        found.rows.setdefault(split, []).append(Row(path, label, group, at))
    if not found.rows:
        raise UserError(f"{table} holds no rows.", "Add one line path,label for each image.")
    return found


def _read_label_sets(table: Path, root: Path, columns: list[str], cells: list[tuple[int, list[str]]]) -> Found:
    """The rows of a CSV that gives images several labels."""
    found = Found(root, by_number=True, several=True)
    order, lines = label_sets.read(table, columns, cells)
    for line in lines:
        row = Row(line.path, ";".join(line.labels), line.group, line.number, line.labels)
        found.rows.setdefault(line.split, []).append(row)
    found.order = order
    if len(found.classes) < 2:
        raise UserError(f"{table} has {len(found.classes)} label(s).", "Several labels an image need at least two.")
    return found


def split_rows(cfg: DatasetConfig, found: Found) -> dict[str, list[Row]]:
    """The rows by split: those of ``dataset.folds`` or ``dataset.split_file``, else as they lie; where there is no
    ``val``, ``dataset.val_fraction`` of ``train`` is held out as such.

    Raises:
        UserError: ``val_fraction`` is no share, or none where ``train`` stands alone; a split that cannot be.
    """
    if cfg.folds or cfg.split_file:
        rows = [row for part in found.rows.values() for row in part]
        keys, groups = [row.path for row in rows], _groups(rows)
        targets = _label_rows(found, rows) if found.several else _labels(found, rows)
        if cfg.split_file:
            split = splits_of_file(cfg, keys, targets, found.classes)
        else:
            split = splits_of_fold(cfg, keys, targets, found.classes, groups)
        return {
            name: part
            for name in ("train", "val", "test")
            if (part := [row for row, one in zip(rows, split, strict=True) if one == name])
        }
    if not made_here(cfg, found):
        return found.rows
    if not 0 < cfg.val_fraction < 1:
        raise UserError(
            f"dataset.val_fraction={cfg.val_fraction} is not a share, and {found.root} has no val or test split.",
            "Give a number between 0 and 1, or make val/ and test/ folders.",
        )
    part = found.rows["train"]
    labels, groups = _labels(found, part), _groups(part)
    if groups is not None:
        held = held_out_groups(groups, labels, cfg.val_fraction)
    else:
        held = held_out([row.path for row in part], labels, cfg.val_fraction)
    return {
        "train": [row for row, out in zip(part, held, strict=True) if not out],
        "val": [row for row, out in zip(part, held, strict=True) if out],
        **{split: rows for split, rows in found.rows.items() if split != "train"},
    }


def _labels(found: Found, rows: Sequence[Row]) -> Labels:
    """[N] class numbers; of several labels an image, the rarest."""
    number = {name: i for i, name in enumerate(found.classes)}
    if found.several:
        return rarest(_label_rows(found, rows))
    return np.array([number[row.label] for row in rows], dtype=np.int64)


def _label_rows(found: Found, rows: Sequence[Row]) -> npt.NDArray[np.uint8]:
    """[N, K] of 0 and 1."""
    number = {name: i for i, name in enumerate(found.classes)}
    made = np.zeros((len(rows), len(number)), np.uint8)
    for at, row in enumerate(rows):
        made[at, [number[name] for name in row.names]] = 1
    return made


def _groups(rows: Sequence[Row]) -> list[str] | None:
    return [row.group for row in rows] if any(row.group for row in rows) else None


def made_here(cfg: DatasetConfig, found: Found) -> bool:
    """Whether ``val`` is held out of ``train`` here: there is none, and it is requested or nothing else measures."""
    if cfg.folds or cfg.split_file:
        return True
    return "train" in found.rows and "val" not in found.rows and ("test" not in found.rows or cfg.val_fraction != 0)


def _sources(cfg: DatasetConfig, found: Found) -> dict[str, Source]:
    """Sources of the splits, whose classes must be the same."""
    classes = found.classes
    given = {} if cfg.folds or cfg.split_file or found.several else found.rows
    for split, part in given.items():
        absent = sorted(set(classes) - {row.label for row in part})
        if absent and split == "train":  # another split is measured on the classes that it has
            raise UserError(
                f"Data set in {found.root}: split '{split}' has no image of class {', '.join(absent[:5])}"
                f"{' ...' if len(absent) > 5 else ''}, which another split has.",
                "Add images of them to train, or remove them from the other split.",
            )
    sources: dict[str, Source] = {}
    for split, part in split_rows(cfg, found).items():
        if not part and split != "train":
            continue  # nothing could be held out; open_splits raises
        paths = [row.path for row in part]
        if found.several:
            labels = _label_rows(found, part)
            if split == "train" and part and not labels.any(0).all():
                name = classes[int(labels.any(0).argmin())]
                raise UserError(
                    f"Data set in {found.root}: no training image has the label {name}.",
                    "Add some, or leave the label out.",
                )
            source: Files = LabelSetFiles(found.root, paths, labels, classes, split, groups=_groups(part))
        else:
            source = Files(found.root, paths, _labels(found, part), classes, split, groups=_groups(part))
        source.ignored = found.ignored
        source.held_out = split == "val" and made_here(cfg, found)
        sources[split] = source
    return sources
