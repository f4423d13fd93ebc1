"""A user's own images: class folders with or without splits, or a CSV."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.images import EXTENSIONS, Files
from vitlab.data.roots import data_roots, missing
from vitlab.data.sources import Source, held_out
from vitlab.errors import UserError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of split folders (and CSV values), lower case, and the split they mean."""


@dataclass
class Listing:
    """Images of one split by class, and what lay between them."""

    images: dict[str, list[str]] = field(default_factory=dict)  # class -> paths relative to the root, sorted
    ignored: Counter[str] = field(default_factory=Counter)  # suffix or "hidden" -> files passed over


def list_classes(root: Path, folder: Path) -> Listing:
    """Image paths (relative to ``root``) in each class folder of ``folder``, searched to any depth.

    Hidden files, files of other kinds and files beside the class folders are passed over and counted.

    Raises:
        UserError: if a class folder holds no image.
    """
    listing = Listing()
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not entry.is_dir():
            listing.ignored[_kind(entry.name)] += 1
        elif not _hidden(entry.name):
            listing.images[entry.name] = sorted(_walk(root, Path(entry.path), listing.ignored))
    for name, paths in listing.images.items():
        if not paths:
            raise UserError(
                f"Class folder {folder / name} holds no image.",
                f"Put images in it (one of {', '.join(sorted(EXTENSIONS))}), or remove the folder.",
            )
    return listing


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _kind(name: str) -> str:
    return "hidden" if _hidden(name) else (Path(name).suffix.lower() or "no suffix")


def _walk(root: Path, folder: Path, ignored: Counter[str]) -> Iterable[str]:
    base = os.fspath(root)
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        inside = os.path.relpath(path, base)
        for name in names:
            if _hidden(name) or os.path.splitext(name)[1].lower() not in EXTENSIONS:
                ignored[_kind(name)] += 1
            else:
                yield f"{inside}/{name}".replace(os.sep, "/")


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


def folder(cfg: DatasetConfig) -> dict[str, Source]:
    """The data set in ``dataset.root``: a CSV if ``dataset.csv`` is given, else class folders.

    Class folders may lie in ``train``, ``val`` and ``test`` sub-folders (``val`` and ``test`` each optional). Without
    ``val`` and ``test``, ``dataset.val_fraction`` of each class is held out, chosen by a hash of the paths: the same
    images for every run and every seed, so that no run trains on what another is measured on.
    """
    if cfg.csv:
        return read_csv(cfg)
    root = next((r for r in data_roots(cfg) if r.is_dir()), None)
    if root is None:
        raise missing(cfg, "a folder of class folders")
    splits = _split_folders(root)
    listings = {split: list_classes(root, path) for split, path in splits.items()} or {
        "train": list_classes(root, root)
    }
    for split, listing in listings.items():
        if not listing.images:
            raise UserError(
                f"{splits.get(split, root)} holds no class folders.",
                "Images are expected as <class>/<image>, or <train|val|test>/<class>/<image>.",
            )
    rows = {
        split: [(path, name) for name in one.images for path in one.images[name]] for split, one in listings.items()
    }
    classes = sorted({name for one in listings.values() for name in one.images})
    return _sources(cfg, root, rows, classes, sum((one.ignored for one in listings.values()), Counter()))


def read_csv(cfg: DatasetConfig) -> dict[str, Source]:
    """Rows ``path,label[,split]``; paths relative to ``dataset.root``, or to the CSV's folder where no root is given.

    Labels are names; where all of them are whole numbers they are sorted as numbers.
    """
    table = Path(cfg.csv or "").expanduser()
    root = Path(cfg.root).expanduser() if cfg.root else table.parent
    if not table.is_file() and (root / table).is_file():
        table = root / table
    if not table.is_file():
        raise UserError(f"dataset.csv={cfg.csv} does not exist.", "Give the path of a CSV with columns path,label.")
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = list(reader.fieldnames or [])
        if not {"path", "label"} <= set(columns):
            raise UserError(
                f"{table}: the first line must name the columns path,label[,split]; it reads: {','.join(columns)}.",
                "Add that line, with commas between the columns.",
            )
        rows: dict[str, list[tuple[str, str]]] = {}
        seen: dict[str, int] = {}
        for line in reader:
            at = reader.line_num
            path, label = (line["path"] or "").strip(), (line["label"] or "").strip()
            given = (line["split"] or "").strip() if "split" in columns else "train"
            split = SPLITS.get(given.lower())
            if not path or not label:
                raise UserError(f"{table}, line {at}: path or label is empty.", "Fill both, or remove the line.")
            if split is None:
                raise UserError(f"{table}, line {at}: '{given}' is not a split.", "Write train, val or test.")
            if path in seen:
                raise UserError(f"{table}, line {at}: {path} stands already in line {seen[path]}.", "Remove one.")
            seen[path] = at
            rows.setdefault(split, []).append((path, label))
    if not rows:
        raise UserError(f"{table} holds no rows.", "Add one line path,label for each image.")
    absent = [path for path in seen if not (root / path).is_file()]
    if absent:
        raise UserError(
            f"{table}: {len(absent)} of {len(seen)} files do not exist under {root}, the first is {absent[0]}.",
            "Paths are relative to dataset.root, or to the CSV's folder when dataset.root is not given.",
        )
    names = {label for part in rows.values() for _, label in part}
    numeric = all(name.isdecimal() for name in names)
    classes = sorted(names, key=(lambda name: (int(name), name)) if numeric else None)
    return _sources(cfg, root, rows, classes, Counter())


def _sources(
    cfg: DatasetConfig, root: Path, rows: dict[str, list[tuple[str, str]]], classes: list[str], ignored: Counter[str]
) -> dict[str, Source]:
    """Sources of the given splits; holds some out where ``train`` is alone."""
    for split, part in rows.items():
        absent = sorted(set(classes) - {name for _, name in part})
        if absent:
            raise UserError(
                f"Data set in {root}: split '{split}' has no image of class {', '.join(absent[:5])}"
                f"{' ...' if len(absent) > 5 else ''}, which another split has.",
                "Every split needs the same classes.",
            )
    number = {name: i for i, name in enumerate(classes)}

    def make(part: list[tuple[str, str]], split: str) -> Files:
        source = Files(root, [path for path, _ in part], [number[name] for _, name in part], classes, split)
        source.ignored = dict(ignored)
        return source

    if set(rows) != {"train"}:
        return {split: make(part, split) for split, part in rows.items()}
    if not 0 < cfg.val_fraction < 1:
        raise UserError(
            f"dataset.val_fraction={cfg.val_fraction} is not a share, and {root} has no val or test split.",
            "Give a number between 0 and 1, or make val/ and test/ folders.",
        )
    part = rows["train"]
    held = held_out([path for path, _ in part], np.array([number[name] for _, name in part]), cfg.val_fraction)
    return {
        "train": make([row for row, out in zip(part, held, strict=True) if not out], "train"),
        "val": make([row for row, out in zip(part, held, strict=True) if out], "val"),
    }
