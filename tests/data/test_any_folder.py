"""Any folder or CSV: the audit and the training see the same, or one paragraph says what is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from tests import hunts
from tests.data.folders import Album, albums, write
from vitlab.config import DatasetConfig
from vitlab.data.audit import audit_dataset, write_audit
from vitlab.data.build import open_splits
from vitlab.data.folder_contents import read_contents
from vitlab.errors import UserError, system_error


def files_of(folder: Path) -> dict[str, object]:
    """What lies below ``folder``: times and sizes, without opening anything."""
    found: dict[str, object] = {}
    for at, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(at, name))
            found[os.path.join(at, name)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def check_album(album: Album, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    root, out = home / "photos", home / "audit"
    if not write(album, root):
        return
    out.mkdir()
    table = str(home / "table.csv") if album.table is not None else None
    config = DatasetConfig("folder", str(root), 8, [0.5] * 3, [0.5] * 3, csv=table, val_fraction=album.val_fraction)
    before = files_of(root)
    try:
        check_folder(config, out)
    except UserError as error:
        text = str(error)
        assert text.strip() and len(text) < 4000
        assert any(name in text for name in (str(home), "dataset.", "table.csv")), text
    except OSError as error:
        assert system_error(error) is not None, error
    assert files_of(root) == before


def check_folder(config: DatasetConfig, out: Path) -> None:
    """Audit and open one folder; what the audit writes can be read by the keys that it is for.

    Raises:
        UserError: a mistake in the data.
    """
    result, splits = audit_dataset(config)
    written = write_audit(out, result, splits)
    result.text()
    plain = all(row.path == row.path.strip() and "\n" not in row.path for rows in splits.values() for row in rows)
    plain &= all("\n" not in path and "\r" not in path for path in result.empty)
    if (result.unreadable or result.empty) and plain:
        config = replace(config, leave_out=str(written["unreadable"]))
        with as_printed():
            result, splits = audit_dataset(config)
            written = write_audit(out, result, splits)
        assert not result.unreadable and not result.empty
    if result.faults:
        return
    opened = open_splits(config, seed=0)
    kept = {name: source for name, source in opened.items() if source.split_name == name}
    assert {name: list(source.keys) for name, source in kept.items()} == {
        name: [row.path for row in rows] for name, rows in splits.items() if rows
    }
    assert list(opened["train"].classes) == result.classes
    for source in kept.values():
        for index in range(len(source)):
            picture, _ = source[index]
            assert picture.mode == "RGB"
    if plain:
        with as_printed():
            other = open_splits(replace(config, split_file=str(written["split"])), seed=0)
        assert all(sorted(other[name].keys) == sorted(source.keys) for name, source in kept.items())


@contextmanager
def as_printed() -> Iterator[None]:
    """A command that the audit proposes works."""
    try:
        yield
    except UserError as error:
        raise AssertionError(f"the audit's own cure: {error}") from error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders") / "home"


@hunts.quick(40)
@given(album=albums())
def test_some_folders(album: Album, home: Path) -> None:
    check_album(album, home)


@hunts.slow
@hunts.complete(2000)
@given(album=albums())
def test_many_folders(album: Album, home: Path) -> None:
    check_album(album, home)


# ------------------------------------------------------------------------------------------- found by the hunt


def test_contents_are_read(tmp_path: Path) -> None:
    """The smallest folder that is sound."""
    assert write(Album({f"{name}/{n}.png": "sound" for name in ("a", "b") for n in range(3)}), tmp_path / "photos")
    config = DatasetConfig("folder", str(tmp_path / "photos"), 8, [0.5] * 3, [0.5] * 3, val_fraction=0.5)
    assert read_contents(config).classes == ["a", "b"]
    (tmp_path / "out").mkdir()
    check_folder(config, tmp_path / "out")


def folder(tmp_path: Path, *paths: str) -> DatasetConfig:
    assert write(Album(dict.fromkeys(paths, "sound")), tmp_path / "photos")
    return DatasetConfig("folder", str(tmp_path / "photos"), 8, [0.5] * 3, [0.5] * 3, val_fraction=0.5)


TWO = tuple(f"{name}/{number}.png" for name in ("#tag", "cat") for number in range(3))


def test_a_name_that_looks_like_a_comment_is_left_out(tmp_path: Path) -> None:
    config = folder(tmp_path, *TWO)
    (tmp_path / "out.txt").write_text("# these are bad\n#tag/0.png\n")
    rows = read_contents(replace(config, leave_out=str(tmp_path / "out.txt"))).rows["train"]
    assert [row.path for row in rows] == sorted(set(TWO) - {"#tag/0.png"})


def test_an_order_of_classes_that_is_not_utf_8(tmp_path: Path) -> None:
    config = folder(tmp_path, *TWO)
    (tmp_path / "photos" / "classes.txt").write_bytes("café\ncat\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes\.txt lacks 1 class\(es\) of the data, the first is #tag"):
        read_contents(config)


def test_a_label_that_no_image_has_is_audited(tmp_path: Path) -> None:
    config = folder(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "table.csv").write_text("path,cat,dog,fox\na.png,1,0,0\nb.png,1,1,0\nc.png,0,1,0\nd.png,1,1,0\n")
    result, _ = audit_dataset(replace(config, csv=str(tmp_path / "table.csv")))
    assert result.totals == {"cat": 3, "dog": 3} and result.single == []


def test_all_images_of_a_table_of_labels_left_out(tmp_path: Path) -> None:
    config = folder(tmp_path, "a.png", "b.png")
    (tmp_path / "table.csv").write_text("path,cat,dog\na.png,1,0\nb.png,1,1\n")
    (tmp_path / "out.txt").write_text("a.png\nb.png\n")
    config = replace(config, csv=str(tmp_path / "table.csv"), leave_out=str(tmp_path / "out.txt"))
    assert audit_dataset(config)[0].files == 0
    with pytest.raises(UserError, match="neither a val nor a test split"):
        open_splits(config, seed=0)


def test_nothing_to_measure_on_is_a_fault(tmp_path: Path) -> None:
    config = folder(tmp_path, "a/0.png", "b/0.png")
    (fault,) = audit_dataset(config)[0].faults
    assert "no image is held out" in fault
    with pytest.raises(UserError, match=r"dataset\.val_fraction"):
        open_splits(config, seed=0)


def test_groups_in_a_table_of_another_separator(tmp_path: Path) -> None:
    config = folder(tmp_path, *TWO)
    (tmp_path / "groups.csv").write_text("\ufeffpath;group\n" + "".join(f"{path};one\n" for path in TWO[:2]))
    rows = read_contents(replace(config, groups=str(tmp_path / "groups.csv"))).rows["train"]
    assert [row.group for row in rows if row.path in TWO[:2]] == [TWO[0]] * 2


def test_a_heading_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x" * 200_000)
    config = replace(folder(tmp_path, *TWO), csv=str(tmp_path / "table.csv"))
    with pytest.raises(UserError, match=r"table\.csv, near line 1: field larger than field limit"):
        read_contents(config)
