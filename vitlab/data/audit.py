"""Checks of a user's own folder before anything is trained on it: unreadable files, doubtful ones, and the split.

Faults (:attr:`Audit.faults`) would stop a training or make it meaningless; doubts (:attr:`Audit.doubts`) are for the
user to judge. The data are not changed: the audit writes its findings to a folder of its own, and images are left out
with ``dataset.leave_out``.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from vitlab.config import DatasetConfig
from vitlab.config.size import hw, size_text
from vitlab.data.archives import ArchivedPaths
from vitlab.data.audit_duplicates import find_identical, find_similar
from vitlab.data.audit_files import FileInfo, inspect_files, losses, stored_forms
from vitlab.data.folder import split_is_generated, split_rows
from vitlab.data.folder_contents import FolderContents, Row, read_contents
from vitlab.errors import UserError, printable
from vitlab.files import atomic_write, write_json

NAMED = 5  # files of a kind that the text names; the JSON has them all
GIVEN = "given"
SMALL = 32  # pixels: a shorter side counts as very small


@dataclass
class Duplicate:
    """Files that hold the same picture."""

    kind: str  # "same file" or "look alike"
    paths: list[str]
    classes: list[str]  # of those files, without repetition
    splits: list[str]


@dataclass
class Audit:
    """The findings of an audit. All paths are relative to ``root``."""

    root: str
    files: int
    classes: list[str]
    counts: dict[str, dict[str, int]]  # split -> class -> images
    split: str  # "given", or how it was made
    unreadable: dict[str, str] = field(default_factory=dict)  # path -> why
    empty: list[str] = field(default_factory=list)  # class folders without an image
    lacking: dict[str, list[str]] = field(default_factory=dict)  # split -> classes that it lacks and others have
    single: list[str] = field(default_factory=list)  # classes with one image
    passed: dict[str, list[str]] = field(default_factory=dict)  # hidden and foreign files, by kind
    left_out: list[str] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)  # stored form -> images that are converted when read
    formats: dict[str, int] = field(default_factory=dict)
    partial: dict[str, int] = field(default_factory=dict)  # what of an image is not read -> images
    small: list[str] = field(default_factory=list)  # images with a side below SMALL px
    size: int | list[int] = SMALL  # of the network's input, to which images are resized
    width: tuple[int, int, int] = (0, 0, 0)  # smallest, median, largest, upright
    height: tuple[int, int, int] = (0, 0, 0)
    bytes: int = 0
    images: dict[str, int] = field(default_factory=dict)  # of each split

    @property
    def faults(self) -> list[str]:
        """What stops a training, each as one line."""
        lines = []
        if self.unreadable:
            named = _named([f"{path} ({why})" for path, why in self.unreadable.items()])
            lines.append(f"{_count(len(self.unreadable), 'file')} cannot be read as an image: {named}")
        if self.empty:
            lines.append(f"{_count(len(self.empty), 'class folder')} without an image: {_named(self.empty)}")
        if classes := self.lacking.get("train"):
            lines.append(
                f"split 'train' lacks {_count(len(classes), 'class', 'es')} that another has: {_named(classes)}"
            )
        if self.images.get("train") == 0:
            lines.append("no image is left to train on")
        elif self.images.get("train") and not any(self.images[split] for split in self.images if split != "train"):
            lines.append("no image is held out to measure on: there is no val or test split, and no class has two")
        if len(self.classes) < 2:
            lines.append(f"{_count(len(self.classes), 'class', 'es')}; a classifier needs two")
        return lines

    @property
    def doubts(self) -> list[str]:
        """What the user should look at, each as one line."""
        lines = []
        leaks = [one for one in self.duplicates if len(one.splits) > 1]
        torn = [one for one in self.duplicates if len(one.classes) > 1]
        rest = [one for one in self.duplicates if len(one.classes) == len(one.splits) == 1]
        if torn:
            lines.append(f"{_count(len(torn), 'picture')} in more than one class: {_pictures(torn)}")
        if leaks:
            lines.append(f"{_count(len(leaks), 'picture')} on both sides of a split: {_pictures(leaks)}")
        if rest:
            lines.append(f"{_count(len(rest), 'picture')} more than once in a class: {_pictures(rest)}")
        unseen = [
            name
            for name in self.classes
            if len(self.counts) > 1
            and not any(part.get(name) for split, part in self.counts.items() if split != "train")
        ]
        if self.split != GIVEN and (unseen := [name for name in unseen if name not in self.single]):
            lines.append(f"{_count(len(unseen), 'class', 'es')} that no split but train has: {_named(unseen)}")
        for split, classes in self.lacking.items():
            if split != "train":
                lines.append(
                    f"split '{split}' lacks {_count(len(classes), 'class', 'es')} that train has: {_named(classes)}"
                )
        if self.single:
            lines.append(f"{_count(len(self.single), 'class', 'es')} with a single image: {_named(self.single)}")
        if self.small:
            lines.append(self._smallness())
        totals = self.totals
        if totals and min(totals.values()) * 10 < max(totals.values()):
            least, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
            lines.append(f"unequal classes: {most} has {totals[most]:,} images, {least} has {totals[least]:,}")
        return lines

    def _smallness(self) -> str:
        """The small images in a line, and what is done with them; examples only where they are exceptions."""
        few = len(self.small) * 10 < self.files
        count = f"{len(self.small):,} of {_count(self.files, 'image')}"
        if not few and len(self.small) == self.files:
            count = f"all {_count(self.files, 'image')}"
        done = (
            f"resized to {size_text(self.size)} px"
            if max(hw(self.size)) < SMALL
            else (f"enlarged to {size_text(self.size)} px (dataset.size)")
        )
        return f"{count} with a side below {SMALL} px, {done}" + (f": {_named(self.small, 2)}" if few else "")

    @property
    def not_read(self) -> str:
        """What of the images is not read, with counts, in words; empty where all is."""
        return _tally(self.partial)

    @property
    def ignored(self) -> str:
        """How many files of each kind are passed over, in words; empty where there are none."""
        return _tally({kind: len(paths) for kind, paths in self.passed.items()})

    @property
    def totals(self) -> dict[str, int]:
        """Images of each class over all splits."""
        return dict(sum((Counter(part) for part in self.counts.values()), Counter()))

    def text(self) -> str:
        """For the screen."""
        sizes = ", ".join(f"{split} {images:,}" for split, images in self.images.items())
        lines = [
            f"data     {self.root}",
            f"images   {self.files:,} in {_count(len(self.classes), 'class', 'es')}, {self.bytes / 1e6:,.0f} MB",
            f"splits   {sizes} ({self.split})",
        ]
        if self.width[2]:
            lines.append(
                f"pixels   {self.width[0]}-{self.width[2]} wide (median {self.width[1]}), "
                f"{self.height[0]}-{self.height[2]} high (median {self.height[1]})"
            )
        if self.formats:
            lines.append(f"formats  {_tally(self.formats)}")
        if self.converted:
            lines.append(f"read as  RGB, upright; stored otherwise: {_tally(self.converted)}")
        if self.partial:
            lines.append(f"in part  {self.not_read}")
        if self.passed:
            lines.append(f"ignored  {self.ignored}")
        if self.left_out:
            lines.append(f"left out {_count(len(self.left_out), 'image')} (dataset.leave_out)")
        lines += [f"FAULT    {line}" for line in self.faults]
        lines += [f"doubt    {line}" for line in self.doubts]
        if not self.faults and not self.doubts:
            lines.append("clean    no faults, no doubts")
        return "\n".join(map(printable, lines))


def audit_dataset(
    cfg: DatasetConfig,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Audit, dict[str, list[Row]]]:
    """Inspect every file of ``dataset=folder``.

    Args:
        cfg: the data set, as a training would read it.
        cache: results of earlier audits, by path, size and time; see :func:`~vitlab.data.audit_files.inspect_files`.
        workers: threads; None: one for each core.
        progress: called with (files done, files in all).

    Returns:
        The findings, and the rows of every split.

    Raises:
        UserError: there are no images, or a CSV cannot be parsed.
    """
    contents = read_contents(cfg)
    splits = split_rows(cfg, contents)
    rows = [row for part in splits.values() for row in part]
    where = {row.path: (row.label, split) for split, part in splits.items() for row in part}
    total = len(rows)
    archived = None
    if contents.places is not None:
        archived = ArchivedPaths(contents.places, {row.path: row.place for row in rows if row.place >= 0})
    step = (lambda n: progress(n, total)) if progress else None
    looks = inspect_files(contents.root, [row.path for row in rows], cache, workers, step, archived)
    classes = contents.classes
    result = Audit(
        root=str(contents.root),
        files=total,
        classes=classes,
        counts={split: dict(Counter(name for row in part for name in row.names)) for split, part in splits.items()},
        split=_how(cfg, contents),
        unreadable={path: one.error for path, one in looks.items() if one.error},
        empty=contents.empty,
        lacking={
            split: absent
            for split, part in ({} if cfg.folds or cfg.split_file or contents.multilabel else contents.rows).items()
            if (absent := sorted(set(classes) - {row.label for row in part}))
        },
        passed=contents.skipped,
        left_out=contents.left_out,
        duplicates=_duplicates(rows, looks, where),
        images={split: len(part) for split, part in splits.items()},
        size=cfg.size,
    )
    totals = result.totals  # a label that has a column and no image is not among them
    result.single = [name for name in classes if totals.get(name) == 1]
    _describe(result, looks)
    return result, splits


def _how(cfg: DatasetConfig, contents: FolderContents) -> str:
    if cfg.split_file:
        return f"as {cfg.split_file} has it"
    if not split_is_generated(cfg, contents):
        return GIVEN
    grouped = any(row.group for part in contents.rows.values() for row in part)
    if cfg.folds:
        of = "by groups" if grouped else "stratified"
        return f"fold {cfg.fold} of {cfg.folds} is test, {100 * cfg.val_fraction:g} % of the rest val, by a hash, {of}"
    part = "every class" if set(contents.rows) == {"train"} else "every class of train"
    return f"{100 * cfg.val_fraction:g} % of {part} held out by a hash, {'by groups' if grouped else 'stratified'}"


def _duplicates(rows: Sequence[Row], looks: dict[str, FileInfo], where: dict[str, tuple[str, str]]) -> list[Duplicate]:
    """Groups of files with the same picture, first those whose classes or splits contradict each other."""
    ordered = [looks[row.path] for row in rows]
    copies = find_identical(ordered)
    # Only one file of each content was compared; its byte-identical copies are put back into the group.
    copies_of = {group[0]: group for group in copies}
    alike = [[member for one in group for member in copies_of.get(one, [one])] for group in find_similar(ordered)]
    found = []
    for kind, groups in (("same file", copies), ("look alike", alike)):
        for group in groups:
            paths = [rows[position].path for position in group]
            labels, splits = ({where[path][i] for path in paths} for i in (0, 1))
            found.append(Duplicate(kind, paths, sorted(labels), sorted(splits)))
    return sorted(found, key=lambda one: (-len(one.classes), -len(one.splits), one.kind != "same file", one.paths))


def _describe(result: Audit, looks: dict[str, FileInfo]) -> None:
    """Sizes, formats and stored forms of the images that could be read."""
    read = {path: one for path, one in looks.items() if not one.error}
    if not read:
        return
    result.formats = dict(Counter(one.format for one in read.values()).most_common())
    result.converted = dict(Counter(form for one in read.values() for form in stored_forms(one)).most_common())
    result.partial = dict(Counter(loss for one in read.values() for loss in losses(one)).most_common())
    # EXIF orientations 5 to 8 turn the image by 90 degrees.
    upright = [
        (one.width, one.height) if one.orientation not in range(5, 9) else (one.height, one.width)
        for one in read.values()
    ]
    widths, heights = sorted(width for width, _ in upright), sorted(height for _, height in upright)
    result.width = widths[0], int(median(widths)), widths[-1]
    result.height = heights[0], int(median(heights)), heights[-1]
    result.small = [path for path, one in read.items() if min(one.width, one.height) < SMALL]
    result.bytes = sum(one.size for one in looks.values())


# ---------------------------------------------------------------------------------------------------------- on disk


def audit_folder(output: Path, cfg: DatasetConfig) -> Path:
    """Where ``mode=audit`` keeps its record of a data set: ``<output>/audit/<name>-<hash of its place>``."""
    place = Path(cfg.csv or cfg.root or cfg.name).expanduser()
    of = ""
    if cfg.csv and cfg.root:  # a CSV of this name may lie in, or list the images of, several folders
        root = Path(cfg.root).expanduser()
        place = place if place.is_file() else root / place
        of = f" of {root.resolve()}"
    place = place.resolve()
    name = "".join(c if c.isalnum() or c in "_.+-" else "-" for c in place.name) or "root"
    digest = hashlib.sha256(f"{place}{of}".encode("utf-8", "surrogateescape")).hexdigest()
    return output / "audit" / f"{name}-{digest[:8]}"


def inputs_of(cfg: DatasetConfig) -> frozenset[Path]:
    """The files that the keys of a data set name, resolved: a command reads them and must not write them."""
    names = [name for name in (cfg.csv, cfg.leave_out, cfg.split_file, cfg.groups) if name]
    return frozenset(Path(name).expanduser().resolve() for name in names)


def _free(path: Path, inputs: Collection[Path]) -> Path:
    """``path``, or its first numbered sibling (``split-2.csv``) that is not one of ``inputs``."""
    number, free = 1, path
    while free.resolve() in inputs:
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def write_audit(
    folder: Path, result: Audit, splits: dict[str, list[Row]], inputs: Collection[Path] = ()
) -> dict[str, Path]:
    """Write ``audit.json``, ``split.csv`` (a CSV for ``dataset.csv``: the split as it is used), ``unreadable.txt`` (a
    list for ``dataset.leave_out``) and ``duplicates.csv``; the latter two only where there is something to list.

    Lists of an earlier audit are never deleted, since another command may name them. Names that are not UTF-8
    are written as the bytes they are, except in JSON, which escapes them.

    Args:
        inputs: resolved paths of files that are not written (:func:`inputs_of`); a numbered sibling is instead.

    Returns:
        The files written, by kind: audit, split, duplicates, unreadable.
    """
    paths = {"audit": _free(folder / "audit.json", inputs), "split": _free(folder / "split.csv", inputs)}
    write_json(paths["audit"], asdict(result))
    grouped = any(row.group for part in splits.values() for row in part)
    rows = [
        [row.path, row.label, split, *([row.group] if grouped else [])]
        for split, part in splits.items()
        for row in part
    ]
    label = "labels" if any(row.labels is not None for part in splits.values() for row in part) else "label"
    _write_csv(paths["split"], ["path", label, "split", *(["group"] if grouped else [])], rows)
    doubtful = _free(folder / "duplicates.csv", inputs)
    if result.duplicates:
        where = {row.path: (row.label, split) for split, part in splits.items() for row in part}
        lines = [
            [str(number), one.kind, path, *where[path]]
            for number, one in enumerate(result.duplicates, 1)
            for path in one.paths
        ]
        _write_csv(doubtful, ["picture", "kind", "path", "label", "split"], lines)
        paths["duplicates"] = doubtful
    if result.unreadable or result.empty:
        # With what is left out already, so that this one list is enough for the next command.
        names = sorted({*result.unreadable, *result.left_out, *result.empty})
        note = "that cannot be read as an image" + (", or were left out" if result.left_out else "")
        note += "; class folders without an image" if result.empty else ""
        paths["unreadable"] = _free(folder / "unreadable.txt", inputs)
        text = "\n".join([f"# files below {result.root} {note}", *names, ""])
        atomic_write(paths["unreadable"], text.encode("utf-8", "surrogateescape"))
    return paths


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    atomic_write(path, buffer.getvalue().encode("utf-8", "surrogateescape"))


def keep_together(result: Audit, written: Mapping[str, Path]) -> str:
    """How to keep the same picture on one side of the split, where vitlab makes the split; "" if it is."""
    leaks = any(len(one.splits) > 1 for one in result.duplicates)
    if result.split == GIVEN or not leaks or "duplicates" not in written:
        return ""
    return f"on one side of the split: dataset.groups={written['duplicates']}"


def refuse_faults(result: Audit, listed: Path | None) -> None:
    """Stop before a training that could not end well.

    Args:
        listed: the list of unreadable files that :func:`write_audit` wrote.

    Raises:
        UserError: naming the faults and, where files cannot be read, how to train without them.
    """
    if not result.faults:
        return
    cure = "Fix the data, or choose another data set."
    if listed is not None and len(result.faults) == bool(result.unreadable) + bool(result.empty):
        cure = f"Repair or remove them, or train without them: dataset.leave_out={listed}."
    raise UserError(f"The data in {result.root} cannot be trained on: {'; '.join(result.faults)}.", cure)


# --------------------------------------------------------------------------------------------------------- in words


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _named(names: Sequence[str], limit: int = NAMED) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def _pictures(found: Sequence[Duplicate]) -> str:
    """Two examples; ``duplicates.csv`` has all."""
    return _named([" = ".join(one.paths[:2]) + (" = ..." if len(one.paths) > 2 else "") for one in found], 2)


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
