"""What a user's own folder of images holds, or its CSV: rows by split, class names, and the files passed over.

Nothing is judged here, so that an audit can name every fault at once; :mod:`vitlab.data.folder` makes sources of the
rows and refuses those that cannot be trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitlab.config import DatasetConfig
from vitlab.data.archives import SUFFIX, ArchiveIndex, Places, find_archives
from vitlab.data.decode import EXTENSIONS, walk_files
from vitlab.data.label_sets import has_label_sets, read_label_sets
from vitlab.data.paths import data_roots, not_found_error
from vitlab.data.split_file import SPLITS
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
    place: int = -1  # number among the pictures of the class archives; -1: a file of its own

    @property
    def names(self) -> tuple[str, ...]:
        """All labels."""
        return (self.label,) if self.labels is None else self.labels


@dataclass
class FolderContents:
    """All images of a folder or a CSV, and the files that were passed over."""

    root: Path
    rows: dict[str, list[Row]] = field(default_factory=dict)  # by split; only "train" where there are no splits
    empty: list[str] = field(default_factory=list)  # class folders without an image, relative to the root
    skipped: dict[str, list[str]] = field(default_factory=dict)  # suffix or "hidden" -> files passed over
    left_out: list[str] = field(default_factory=list)  # images that dataset.leave_out names
    numeric: bool = False  # class names that are all integers are sorted as numbers
    order: list[str] | None = None  # of the classes, where one is given
    multilabel: bool = False  # images have any number of labels each
    places: Places | None = None  # of the pictures in class archives, where there are some

    @property
    def ignored(self) -> dict[str, int]:
        """How many files of each kind were passed over."""
        return {kind: len(paths) for kind, paths in self.skipped.items()}

    @property
    def classes(self) -> list[str]:
        """Names of all classes in the given order, else sorted; those of a CSV as numbers where all are integers."""
        if self.order is not None:
            return self.order
        names = {name for part in self.rows.values() for row in part for name in row.names}
        numeric = self.numeric and all(name.isdecimal() for name in names)
        return sorted(names, key=(lambda name: (int(name), name)) if numeric else None)


@dataclass
class ClassListing:
    """Images of one split by class, and the other files between them; all paths relative to the root."""

    images: dict[str, list[str]] = field(default_factory=dict)  # class -> paths, sorted
    skipped: dict[str, list[str]] = field(default_factory=dict)  # suffix or "hidden" -> files passed over
    index: ArchiveIndex | None = None  # of the class archives, if some were read
    archived: set[str] = field(default_factory=set)  # their classes


def list_classes(root: Path, folder: Path, archives: bool = False) -> ClassListing:
    """Image paths (relative to ``root``) in each class folder of ``folder``, searched to any depth.

    ``archives``: pictures in class archives (:mod:`vitlab.data.archives`) are listed, too, with the paths that they
    would have unpacked.

    Hidden files, files of other kinds and files beside the class folders are passed over and noted. A class folder
    without an image is listed as empty.
    """
    listing = ClassListing()
    real = Path(os.path.realpath(folder))
    above = {str(real), *map(str, real.parents)}
    # Sorted by code point, not by locale: indices of images must not depend on the machine.
    entries = sorted(os.scandir(folder), key=lambda e: e.name)
    tars: list[str] = []
    if archives:
        folders = [entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name)]
        tars = find_archives(folders, [entry.name for entry in entries if not entry.is_dir()])
    for entry in entries:
        if entry.name in tars:
            continue
        if not entry.is_dir():
            listing.skipped.setdefault(_kind(entry.name), []).append(_inside(root, entry.path))
        elif entry.is_symlink() and os.path.realpath(entry.path) in above:
            listing.skipped.setdefault(LOOP, []).append(_inside(root, entry.path))
        elif not _hidden(entry.name):
            listing.images[entry.name] = sorted(_walk(root, Path(entry.path), listing.skipped))
    if tars:
        _add_archives(listing, ArchiveIndex(root, folder, tars), tars)
    return listing


def _add_archives(listing: ClassListing, index: ArchiveIndex, tars: Sequence[str]) -> None:
    listing.index = index
    for tar, prefix in zip(tars, index.prefixes, strict=True):
        name, archive = tar.removesuffix(SUFFIX), index.found[tar]
        listing.images[name] = [f"{prefix}/{one}" for one in archive.names]
        listing.archived.add(name)
        for kind, names in archive.skipped.items():
            listing.skipped.setdefault(kind, []).extend(f"{prefix}/{one}" for one in names)
    listing.images = {name: listing.images[name] for name in sorted(listing.images)}


def list_nonempty_classes(root: Path, folder: Path) -> dict[str, list[str]]:
    """The images of :func:`list_classes`, at least one in every class.

    Raises:
        UserError: a class folder holds no image.
    """
    images = list_classes(root, folder).images
    for name, paths in images.items():
        if not paths:
            raise no_image_error(folder / name)
    return images


def no_image_error(folder: Path) -> UserError:
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
    loops: list[str] = []
    for path, folders, names in walk_files(folder, loops):
        # In place: os.walk descends into what is left, in this order.
        folders[:] = sorted(name for name in folders if not _hidden(name))
        inside = os.path.relpath(path, base)
        for name in names:
            at = f"{inside}/{name}".replace(os.sep, "/")
            if _hidden(name) or os.path.splitext(name)[1].lower() not in EXTENSIONS:
                passed.setdefault(_kind(name), []).append(at)
            else:
                yield at
    for link in loops:
        passed.setdefault(LOOP, []).append(_inside(root, link))


LOOP = "link to a parent folder"
"""Kind of a symbolic link that is passed over, see :func:`vitlab.data.decode.walk_files`."""


def _split_folders(root: Path) -> dict[str, Path]:
    """The split sub-folders of ``root``; empty when its sub-folders are classes.

    A folder is a split only if it has a split's name and sub-folders but no images of its own, so a class may be
    called ``train``.
    """
    folders: dict[str, Path] = {}
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        split = SPLITS.get(entry.name.lower())
        if split is None or not entry.is_dir():
            continue
        inside = list(os.scandir(entry.path))
        images = any(e.is_file() and Path(e.name).suffix.lower() in EXTENSIONS for e in inside)
        if not images and any(e.name.endswith(SUFFIX) or e.is_dir() for e in inside if not _hidden(e.name)):
            if split in folders:
                raise UserError(
                    f"{root} holds two folders for the split '{split}': {folders[split].name} and {entry.name}.",
                    "Keep one of them.",
                )
            folders[split] = Path(entry.path)
    return folders


def read_contents(cfg: DatasetConfig) -> FolderContents:
    """All images of ``dataset.root`` or ``dataset.csv``, faults included, without those of ``dataset.leave_out``.

    Raises:
        UserError: no such folder or CSV, a CSV that cannot be parsed, or a list of files to leave out that names a file
            that is not in the data set.
    """
    if cfg.csv:
        contents = read_csv(cfg)
    else:
        root = next((r for r in data_roots(cfg) if r.is_dir()), None)
        if root is None:
            raise not_found_error(cfg, "a folder of class folders")
        contents = FolderContents(root)
        splits = _split_folders(root) or {"train": root}
        indices: list[ArchiveIndex] = []
        count = 0  # of the pictures in archives so far
        for split, path in splits.items():
            listing = list_classes(root, path, archives=True)
            rows = contents.rows[split] = []
            # Classes in the order of the index, which is that of the dictionary.
            for name, images in listing.images.items():
                if name not in listing.archived:
                    rows += [Row(one, name) for one in images]
                    continue
                rows += [Row(one, name, place=place) for place, one in enumerate(images, count)]
                count += len(images)
            if listing.index is not None:
                indices.append(listing.index)
            contents.empty += [_inside(root, str(path / name)) for name, images in listing.images.items() if not images]
            for kind, passed in listing.skipped.items():
                contents.skipped.setdefault(kind, []).extend(passed)
            if not listing.images:
                raise UserError(
                    f"{path} holds no class folders.",
                    "Images are expected as <class>/<image>, or <train|val|test>/<class>/<image>; a class may also be "
                    "an uncompressed archive, <class>.tar.",
                )
        if count:
            contents.places = Places.of(indices)
    if cfg.leave_out:
        _leave_out(contents, cfg.leave_out)
    if cfg.groups:
        _join_groups(contents, cfg.groups)
    contents.order = class_order(cfg, contents) or contents.order
    return contents


def class_order(cfg: DatasetConfig, contents: FolderContents) -> list[str] | None:
    """The classes in the order that was given: the list ``dataset.classes``, with ``dataset.classes=listed`` that in
    which a CSV first names them, else the lines of ``classes.txt`` in the root; None where none is given.

    Raises:
        UserError: the names are not exactly the classes of the data.
    """
    names = contents.classes
    given, place = cfg.classes, "dataset.classes"
    if given is None:
        table = contents.root / "classes.txt"
        if not table.is_file():
            return None
        place = str(table)
        given = _names_in(table, set(names))
    elif given == "listed":
        if not cfg.csv:
            raise UserError("dataset.classes=listed: only a CSV lists its images.", "Give dataset.csv, or a list.")
        rows = sorted((row for part in contents.rows.values() for row in part), key=lambda row: row.line)
        return list(dict.fromkeys(name for row in rows for name in row.names))
    elif isinstance(given, str):
        raise UserError(
            f"dataset.classes={given} is not a list of classes.", "Give a list of all classes, or listed for a CSV's."
        )
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


def _names_in(table: Path, known: Collection[str]) -> list[str]:
    """The lines of a text file, without blanks around them but where these belong to one of the names ``known``.

    Names are bytes, kept where they are no UTF-8; a line ends where the file has a line break, not at one of the
    further characters that ``str.splitlines`` takes for one.
    """
    lines = re.split(r"\r?\n", table.read_bytes().decode("utf-8-sig", "surrogateescape"))
    return [line if line in known else line.strip() for line in lines if line.strip()]


def _join_groups(contents: FolderContents, name: str) -> None:
    """Give the images that the CSV ``name`` lists together one group, and every other image one of its own.

    The column of the group is called ``group``, or ``picture`` as in the ``duplicates.csv`` of an audit. Groups that
    share an image are one, those of the rows included; images that are left out may be listed.
    """
    table = Path(name).expanduser()
    if not table.is_file():
        raise UserError(f"dataset.groups={name} does not exist.", "Give a CSV with the columns path,group.")
    rows = [row for part in contents.rows.values() for row in part]
    parent = {f"/{row.path}": f"={row.group}" if row.group else f"/{row.path}" for row in rows}  # a path, or a group

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    columns, lines = read_table(table)
    column = next((one for one in ("group", "picture") if one in columns), None)
    if "path" not in columns or column is None:
        raise UserError(
            f"{table}: the first line must name the columns path,group; it reads: {','.join(columns)}.",
            "Add that line.",
        )
    for at, cells in lines:
        path, group = cells[columns.index("path")], cells[columns.index(column)]
        if f"/{path}" not in parent and path not in contents.left_out:
            raise UserError(
                f"{table}, line {at}: {path or 'an empty path'} is no image of the data set.",
                f"Paths are relative to {contents.root}. Remove the line.",
            )
        if f"/{path}" in parent:
            # The smaller name wins, so that the order of the lines does not matter.
            first, second = sorted((root(f"/{path}"), root(f"+{group}")))
            parent[second] = first
    members: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.path):
        # Named by its first image: the hash that splits groups must not depend on numbers in the file.
        row.group = members.setdefault(root(f"/{row.path}"), row.path)


def _leave_out(contents: FolderContents, name: str) -> None:
    """Drop the images and empty class folders that the text file ``name`` lists, a path relative to the root a line."""
    table = Path(name).expanduser()
    if not table.is_file():
        raise UserError(
            f"dataset.leave_out={name} does not exist.", "Give a text file with one path a line, relative to the root."
        )
    known = {row.path for part in contents.rows.values() for row in part} | set(contents.empty)
    names = {name.removeprefix("./") for name in _names_in(table, known) if name in known or not name.startswith("#")}
    if unknown := sorted(names - known):
        raise UserError(
            f"{table} names {len(unknown)} file(s) that are not of the data set, the first is {unknown[0]}.",
            f"Paths are relative to {contents.root}.",
        )
    contents.left_out = sorted(names)
    contents.empty = [path for path in contents.empty if path not in names]
    for split, part in contents.rows.items():
        contents.rows[split] = [row for row in part if row.path not in names]


def read_csv(cfg: DatasetConfig) -> FolderContents:
    """Rows ``path,label[,split][,group]``, or several labels an image (:mod:`vitlab.data.label_sets`); paths relative
    to ``dataset.root``, or to the CSV's folder without one.

    Labels are names; where all of them are integers they are sorted as numbers. Whether the files exist is not checked
    here.

    Raises:
        UserError: no such file, or a line that cannot be parsed.
    """
    table = Path(cfg.csv or "").expanduser()
    root = Path(cfg.root).expanduser() if cfg.root else table.parent
    if not table.is_file() and (root / table).is_file():
        table = root / table
    if not table.is_file():
        raise UserError(f"dataset.csv={cfg.csv} does not exist.", "Give the path of a CSV with columns path,label.")
    columns, lines = read_table(table, cfg.columns)
    if has_label_sets(columns):
        return _label_set_contents(table, root, columns, lines)
    contents = FolderContents(root, numeric=True)
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
            raise UserError(f"{table}, line {at}: {path} is already in line {seen[path]}.", "Remove one.")
        if "group" in columns and not group:
            raise UserError(
                f"{table}, line {at}: the group is empty.",
                "Give every image a group (one of its own, if need be), or remove the column.",
            )
        seen[path] = at
        contents.rows.setdefault(split, []).append(Row(path, label, group, at))
    if not contents.rows:
        raise UserError(f"{table} holds no rows.", "Add one line path,label for each image.")
    return contents


def _label_set_contents(
    table: Path, root: Path, columns: list[str], rows: list[tuple[int, list[str]]]
) -> FolderContents:
    """The rows of a CSV that gives images several labels."""
    contents = FolderContents(root, numeric=True, multilabel=True)
    order, lines = read_label_sets(table, columns, rows)
    for line in lines:
        row = Row(line.path, ";".join(line.labels), line.group, line.number, line.labels)
        contents.rows.setdefault(line.split, []).append(row)
    contents.order = order
    if len(contents.classes) < 2:
        raise UserError(f"{table} has {len(contents.classes)} label(s).", "Several labels an image need at least two.")
    return contents
