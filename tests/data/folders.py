"""Folders of pictures and CSVs as they occur: names, links, separators, encodings, ragged rows."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from tests.data.pictures import image

NAMES = st.one_of(
    st.sampled_from(
        ["cat", "dog", "fox", "train", "10", "9", "=1+1", "a b", " lead", "trail ", "é", "e\u0301", "名前"]
    ),
    st.sampled_from(["-x", "#tag", "a,b", 'q"q', "a;b", "a|b", "..x", "@SUM(A1)", "+1", "x" * 100, "%s", "{a}", "\\n"]),
    st.sampled_from(
        ["a\nb", "a\tb", "<b>", "a'b", "CON", "__MACOSX", ".hidden", "Train", "null", "nan", "1e5", "$x", "~"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=6),
).filter(lambda name: name not in (".", ".."))

ENDS = (".png", ".jpg", ".PNG", ".txt", "", ".jpeg", ".gif", ".tif", ".JFIF")
CONTENTS = ("sound", "sound", "sound", "sound", "cut", "empty", "text", "link", "broken link", "fifo", "folder")


@dataclass
class Table:
    """A CSV beside the pictures."""

    data: bytes
    what: str


@dataclass
class Album:
    """A folder: relative path → what lies there; and a CSV."""

    files: dict[str, str] = field(default_factory=dict)
    table: Table | None = None
    val_fraction: float = 0.0


def sound(seed: int) -> bytes:
    buffer = io.BytesIO()
    image("RGB", 12, 10, seed).save(buffer, "PNG")
    return buffer.getvalue()


@st.composite
def albums(draw: st.DrawFn) -> Album:
    album = Album(val_fraction=draw(st.sampled_from([0.0, 0.2, 0.5])))
    classes = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    splits = draw(st.sampled_from([[""], [""], ["train/", "val/"], ["train/", "validation/", "test/"], ["Train/"]]))
    for split in splits:
        for name in classes:
            if draw(st.sampled_from([True] * 9 + [False])):
                for number in range(draw(st.integers(2, 4))):
                    stem = draw(st.one_of(st.just(f"p{number}"), NAMES)) + draw(st.sampled_from(ENDS[:3] * 4 + ENDS))
                    deep = draw(st.sampled_from(["", "", "", "deep/", "deep/er/"]))
                    album.files[f"{split}{name}/{deep}{stem}"] = draw(st.sampled_from(CONTENTS))
            else:
                album.files[f"{split}{name}"] = "folder"
    if draw(st.booleans()):
        album.table = draw(_tables(sorted(album.files)))
    return album


@st.composite
def _tables(draw: st.DrawFn, paths: list[str]) -> Table:
    """A CSV of ``paths``, as some program or hand may write it."""
    delimiter = draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    form = draw(st.sampled_from(["label", "label", "labels", "columns"]))
    columns = ["path", *({"label": ["label"], "labels": ["labels"], "columns": ["cat", "dog", "fox"]}[form])]
    further = draw(st.lists(st.sampled_from(["split", "group"]), unique=True))
    columns += further
    rows: list[list[str]] = []
    groups = st.sampled_from(["g1", "g2", "g3", "=g", " "])
    for path in paths:
        label = draw(st.sampled_from(["cat", "dog", "dog", "fox", "1", "02", "=1+1", "é", "a b"]))
        values = {
            "label": [label],
            "labels": [f"{label};dog"],
            "columns": list(draw(st.sampled_from(["100", "011", "111"]))),
        }
        row = [path, *values[form]]
        row += [
            draw(st.sampled_from(["train", "train", "val", "Test"])) if one == "split" else draw(groups)
            for one in further
        ]
        rows.append(row)
    mess = draw(
        st.sampled_from(["", "", "", "twice", "ragged", "long", "no head", "odd head", "blank", "unknown", "large"])
    )
    if mess == "twice" and rows:
        rows.append(rows[0])
    elif mess == "ragged" and rows:
        rows[-1] = rows[-1][:1]
    elif mess == "long" and rows:
        rows[0] = [*rows[0], "more", "and more"]
    elif mess == "no head":
        columns = rows[0] if rows else []
    elif mess == "odd head":
        columns = [draw(st.sampled_from(["Path", "file", "path ", "", "path", "é"])), *columns[1:]]
    elif mess == "blank":
        rows = [one for row in rows for one in (row, [])]
    elif mess == "unknown":
        rows.append(
            [draw(st.sampled_from(["nosuch.png", "/etc/hostname", "../x.png", "\x00", "x" * 300, "."])), *columns[1:]]
        )
    elif mess == "large":
        rows.append(["x" * 140_000, *columns[1:]])
    text, end = io.StringIO(), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    if draw(st.booleans()):
        writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([columns, *rows])
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "cp1252"]))
    data = text.getvalue().encode(encoding, "replace")
    damage = draw(st.sampled_from([""] * 6 + ["cut", "nul", "empty", "quote", "binary"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "nul":
        data = data + b"\0\0,\0"
    elif damage == "empty":
        data = draw(st.sampled_from([b"", b"\n", b"path,label\n", b"\xef\xbb\xbf", b","]))
    elif damage == "quote":
        data = data.replace(b"path", b'"path', 1)
    elif damage == "binary":
        data = draw(st.binary(max_size=80))
    return Table(data, f"{form} {delimiter!r} {mess} {encoding} {damage}")


def write(album: Album, root: Path) -> bool:
    """Make the folder; False where this file system has no such names."""
    root.mkdir()
    try:
        for number, (path, content) in enumerate(album.files.items()):
            at = root / path
            at.parent.mkdir(parents=True, exist_ok=True)
            data = sound(number)
            match content:
                case "link":
                    (root.parent / f"linked{number}.png").write_bytes(data)
                    at.symlink_to(root.parent / f"linked{number}.png")
                case "broken link":
                    at.symlink_to("nowhere.png")
                case "fifo":
                    os.mkfifo(at)
                case "folder":
                    at.mkdir(exist_ok=True)
                case _:
                    at.write_bytes({"sound": data, "cut": data[:50], "empty": b"", "text": b"text"}[content])
    except (OSError, ValueError):  # two names that this file system takes for one, a name that is too long
        return False
    if album.table is not None:
        (root.parent / "table.csv").write_bytes(album.table.data)
    return True
