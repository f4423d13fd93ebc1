"""A user's own images, in every layout that is promised, and every mistake that is likely."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.config import DatasetConfig
from vitlab.data.audit import audit_dataset, audit_folder, refuse_faults, write_audit
from vitlab.data.build import build_source, describe_dataset, open_splits
from vitlab.data.folder import folder_sources
from vitlab.data.folder_contents import read_contents
from vitlab.data.sources import labels_of
from vitlab.errors import UserError

MakeImages = Callable[..., Path]


def config(root: Path | str | None, **more: object) -> DatasetConfig:
    keys = {"val_fraction": 0.2, "size": 224} | more  # as conf/dataset/folder.yaml has it
    return DatasetConfig(name="folder", root=None if root is None else str(root), **keys)  # type: ignore[arg-type]


def class_folders(prefix: str = "", count: int = 10) -> list[str]:
    return [f"{prefix}{name}/{i}.png" for name in ("dog", "cat") for i in range(count)]


def test_class_folders_are_split_by_a_hash_of_their_names(make_images: MakeImages) -> None:
    root = make_images(*class_folders())
    splits = folder_sources(config(root))
    assert {name: len(source) for name, source in splits.items()} == {"train": 16, "val": 4}
    assert splits["train"].classes == ["cat", "dog"]
    assert np.bincount(labels_of(splits["val"])).tolist() == [2, 2]
    assert sorted([*splits["train"].keys, *splits["val"].keys]) == sorted(class_folders())
    # An image more, elsewhere in the alphabet, leaves the others where they are.
    shutil.copy(root / "cat/0.png", root / "cat/00.png")
    again = folder_sources(config(root))
    assert len(set(again["val"].keys) ^ set(splits["val"].keys)) <= 2
    assert open_splits(config(root), seed=5)["val"].keys[0] == again["val"].keys[0]


def test_keys_are_paths_and_images_are_read(make_images: MakeImages) -> None:
    root = make_images("cat/a b.png", "cat/deep/er.PNG", "dog/ä.png", "dog/z.png")
    splits = folder_sources(config(root, val_fraction=0.5))
    assert {*splits["train"].keys, *splits["val"].keys} == {"cat/a b.png", "cat/deep/er.PNG", "dog/ä.png", "dog/z.png"}
    for source in splits.values():
        for i in range(len(source)):
            image, label = source[i]
            assert image.size == (20, 16) and source.keys[i].startswith(source.classes[label])


@pytest.mark.parametrize(
    ("folders", "real"),
    [
        (("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}),
        (("train", "validation"), {"train": "train", "val": "val", "test": "val"}),
        (("Train", "test"), {"train": "train", "val": "val", "test": "test"}),
        (("train",), {"train": "train", "val": "val", "test": "val"}),
    ],
)
def test_split_folders(make_images: MakeImages, folders: tuple[str, ...], real: dict[str, str]) -> None:
    root = make_images(*(path for name in folders for path in class_folders(f"{name}/")))
    splits = open_splits(config(root), seed=0)
    assert {name: source.split_name for name, source in splits.items()} == real
    assert describe_dataset(config(root))["split_names"] == real


def test_what_is_missing_of_the_splits_is_made_and_said(make_images: MakeImages) -> None:
    root = make_images(*class_folders("train/"), *class_folders("test/", 4))
    splits = open_splits(config(root), 0)
    assert {name: len(source) for name, source in splits.items()} == {"train": 16, "val": 4, "test": 8}
    assert [getattr(splits[name], "held_out", None) for name in ("train", "val", "test")] == [False, True, False]
    assert all(key.startswith("train/") for key in [*splits["train"].keys, *splits["val"].keys])
    full = open_splits(config(root, val_fraction=0.0), 0)
    assert (len(full["train"]), full["val"].split_name) == (20, "test")
    given = open_splits(config(make_images(*(f"{s}/{p}" for s in ("train", "val") for p in class_folders()))), 0)
    assert not getattr(given["val"], "held_out", None)


def test_a_class_may_be_called_train(make_images: MakeImages) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in ("train", "bus", "test") for i in range(5)))
    assert folder_sources(config(root))["train"].classes == ["bus", "test", "train"]


def test_hidden_and_foreign_files_are_counted(make_images: MakeImages) -> None:
    root = make_images(*class_folders(), "cat/.thumb/x.png")
    for name in ("cat/.DS_Store", "cat/notes.txt", "README.md", ".hidden", "dog/Thumbs.db"):
        (root / name).write_text("x")
    assert describe_dataset(config(root))["ignored"] == {"hidden": 2, ".txt": 1, ".md": 1, ".db": 1}
    assert sum(describe_dataset(config(root))["sizes"][split] for split in ("train", "val")) == 20


def test_labels_per_class_thins_out_only_the_training(make_images: MakeImages) -> None:
    root = make_images(*class_folders())
    cfg = config(root, labels_per_class=3)
    assert describe_dataset(cfg)["sizes"] == {"train": 6, "val": 4, "test": 4}
    assert list(build_source(cfg, "train", 0).keys) == list(build_source(cfg, "train", 0).keys)
    assert set(build_source(cfg, "train", 0).keys) != set(build_source(cfg, "train", 1).keys)


def test_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    with pytest.raises(UserError, match=r"dataset\.root nor VITLAB_DATA"):
        folder_sources(config(None))
    with pytest.raises(UserError, match=r"not found.*nowhere.*dataset\.root"):
        folder_sources(config(tmp_path / "nowhere"))


def test_data_root_comes_from_the_environment(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(*class_folders(), root="folder")
    monkeypatch.setenv("VITLAB_DATA", str(root.parent))
    assert len(folder_sources(config(None))["train"]) == 16


def test_folders_that_make_no_sense(make_images: MakeImages) -> None:
    root = make_images("cat/0.png", "cat/1.png")
    (root / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog holds no image"):
        folder_sources(config(root))
    flat = make_images("0.png", "1.png", root="flat")
    with pytest.raises(UserError, match=r"flat holds no class folders"):
        folder_sources(config(flat))
    uneven = make_images(*class_folders("val/"), "train/cat/0.png", root="uneven")
    with pytest.raises(UserError, match=r"'train' has no image of class dog"):
        folder_sources(config(uneven))
    twice = make_images(*class_folders("train/"), *class_folders("val/"), *class_folders("valid/"), root="twice")
    with pytest.raises(UserError, match=r"two folders for the split 'val'"):
        folder_sources(config(twice))
    only_test = make_images(*class_folders("test/"), root="only_test")
    with pytest.raises(UserError, match=r"no train split, only test"):
        open_splits(config(only_test), 0)
    with pytest.raises(UserError, match=r"val_fraction=1\.5"):
        folder_sources(config(make_images(*class_folders(), root="plain"), val_fraction=1.5))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_file_names_that_are_not_utf8(make_images: MakeImages) -> None:
    root = make_images(*class_folders())
    os.rename(os.fsencode(root / "cat/0.png"), os.fsencode(root / "cat") + b"/caf\xe9.png")
    splits = folder_sources(config(root))
    assert sum(len(source) for source in splits.values()) == 20
    for source in splits.values():
        for i in range(len(source)):
            source[i]


def write_csv(root: Path, text: str) -> str:
    (root / "table.csv").write_text(text, encoding="utf-8-sig")
    return str(root / "table.csv")


def test_csv_with_splits(make_images: MakeImages) -> None:
    root = make_images("a.png", "b.png", "c.png", "d.png")
    table = write_csv(root, "path,label,split\na.png,10,train\nb.png, 2 ,train\nc.png,2,Val\n\nd.png,10,val\n")
    splits = folder_sources(config(None, csv=table))
    assert splits["train"].classes == ["2", "10"]  # numbers are sorted as numbers
    assert labels_of(splits["train"]).tolist() == [1, 0] and list(splits["val"].keys) == ["c.png", "d.png"]


def test_csv_without_splits_is_split_by_hash(make_images: MakeImages) -> None:
    root = make_images(*class_folders())
    lines = [f"{path},{path.split('/')[0]},{i}" for i, path in enumerate(class_folders())]
    table = write_csv(root, "\n".join(["path,label,age", *lines]))
    from_csv, from_folders = folder_sources(config(None, csv=table)), folder_sources(config(root))
    assert set(from_csv["val"].keys) == set(from_folders["val"].keys)
    relative = folder_sources(config(root, csv="table.csv"))
    assert list(relative["train"].keys) == list(from_csv["train"].keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na.png,x\n", r"must name the columns path,label.*it reads: file,class"),
        ("path,label\n", r"holds no rows"),
        ("path,label\na.png,\n", r"line 2: path or label is empty"),
        ("path,label\na.png,x\nb.png,y\na.png,y\n", r"line 4: a\.png is already in line 2"),
        ("path,label\na.png,x\nnone.png,x\n", r"1 of 2 files do not exist.*none\.png"),
        ("path,label,split\na.png,x,train\nb.png,x,dev\n", r"line 3: 'dev' is not a split"),
        ("path,label,split\na.png,x,train\nb.png,y,val\n", r"split '(train|val)' has no image of class"),
    ],
)
def test_csv_mistakes(make_images: MakeImages, text: str, message: str) -> None:
    root = make_images("a.png", "b.png")
    with pytest.raises(UserError, match=message):
        folder_sources(config(None, csv=write_csv(root, text)))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_of_other_programs(make_images: MakeImages, separator: str) -> None:
    """Spreadsheets of many countries write semicolons, and columns have names of their own; commas stay text."""
    root = make_images("a.png", "b.png", "c, d.png", "e.png")
    rows = ["id|filename|species|path", "1|a.png|ox|x", "2|b.png|cat|x", "3|c, d.png|ox|x", "4|e.png|cat|x"]
    table = write_csv(root, "\n".join(rows).replace("|", separator) + "\n")
    names = {"path": "filename", "label": "species"}
    found = read_contents(config(None, csv=table, columns=names))
    assert [(row.path, row.label) for row in found.rows["train"]][2] == ("c, d.png", "ox") and len(
        found.rows["train"]
    ) == 4
    with pytest.raises(UserError, match=r"no column 'file' for path; it has: id, filename, species, path"):
        read_contents(config(None, csv=table, columns={"path": "file"}))
    table = write_csv(root, "file,species\na.png,ox\n")
    with pytest.raises(UserError, match=r"must name the columns.*dataset\.columns=\{path:NAME"):
        folder_sources(config(None, csv=table))


@pytest.mark.parametrize(
    "text", ["path,label\na.png,ox\nb.png,ox, cart\n", "path,labels\na.png,x;y\nb.png,x,y\n", "path,x,y\na.png,1,0,1\n"]
)
def test_a_row_of_more_values_than_columns_is_refused(make_images: MakeImages, text: str) -> None:
    """An unquoted comma in a label or a path: what followed it was cut off."""
    root = make_images("a.png", "b.png")
    with pytest.raises(UserError, match=r"line [23]: [34] values in a table of [23] columns\..*double quotes"):
        folder_sources(config(None, csv=write_csv(root, text)))


def test_two_data_sets_with_csvs_of_one_name_have_two_audits(make_images: MakeImages, tmp_path: Path) -> None:
    roots = [make_images("a.png", root=name) for name in ("one", "two")]
    apart = {audit_folder(tmp_path, config(root, csv="labels.csv")) for root in roots}
    shared = tmp_path / "labels.csv"
    shared.write_text("path,label\na.png,x\n")
    apart |= {audit_folder(tmp_path, config(root, csv=str(shared))) for root in roots}
    assert len(apart) == 4


def test_val_may_lack_a_rare_class(make_images: MakeImages) -> None:
    """It is measured on what it has; a class that train lacks cannot be learnt."""
    root = make_images(*class_folders("train/"), *(f"val/cat/{i}.png" for i in range(3)))
    sources = folder_sources(config(root))
    assert (
        sources["train"].classes == sources["val"].classes == ["cat", "dog"]
        and [sources["val"][at][1] for at in range(3)] == [0] * 3
    )
    found, _ = audit_dataset(config(root))
    assert found.faults == [] and "split 'val' lacks 1 class that train has: dog" in " ".join(found.doubts)
    (root / "val/ape").mkdir()
    Image.new("RGB", (9, 9)).save(root / "val/ape/0.png")
    with pytest.raises(UserError, match=r"'train' has no image of class ape"):
        folder_sources(config(root))
    assert "split 'train' lacks 1 class that another has: ape" in audit_dataset(config(root))[0].faults[0]


def test_an_empty_class_folder_is_left_out_by_name(make_images: MakeImages, tmp_path: Path) -> None:
    """The list that the audit writes names it, so that a training goes on without it when told to."""
    root = make_images(*class_folders())
    (root / "ape").mkdir()
    with pytest.raises(UserError, match=r"ape holds no image.*dataset\.leave_out"):
        folder_sources(config(root))
    result, splits = audit_dataset(config(root))
    listed = write_audit(tmp_path / "audit", result, splits)["unreadable"]
    with pytest.raises(UserError, match=r"1 class folder without an image: ape.*dataset\.leave_out=.*unreadable\.txt"):
        refuse_faults(result, listed)
    left = config(root, leave_out=str(listed))
    assert folder_sources(left)["train"].classes == ["cat", "dog"] and audit_dataset(left)[0].faults == []


def test_missing_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.csv=.*does not exist"):
        folder_sources(config(tmp_path, csv="none.csv"))


def test_what_is_no_regular_file_is_not_opened(make_images: MakeImages) -> None:
    """Reading a FIFO would wait for a writer for ever."""
    from vitlab.data.audit_files import inspect_file
    from vitlab.data.decode import read_rgb

    root = make_images("a/0.png")
    os.mkfifo(root / "a/pipe.png")
    (root / "a/link.png").symlink_to("0.png")
    (root / "a/device.png").symlink_to(os.devnull)
    for name in ("pipe.png", "device.png"):
        assert inspect_file(root / "a" / name).error == "not a regular file"
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image \(not a regular file\)"):
            read_rgb(root / "a" / name)
    assert not inspect_file(root / "a/link.png").error
    (root / "a/folder.png").mkdir()
    assert inspect_file(root / "a/folder.png").error == "not a regular file"


def test_links_that_lead_back_are_passed_over(make_images: MakeImages) -> None:
    """Links to other folders are followed; those to a folder above, or round in a circle, list no picture again."""
    from vitlab.modes.input_images import expand

    root = make_images("cat/0.png", "cat/1.png", "dog/0.png", "dog/deep/1.png")
    elsewhere = make_images("2.png", root="elsewhere")
    (root / "cat/all").symlink_to(root)
    (root / "dog/deep/up").symlink_to("..")
    (root / "cat/more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "cat")
    (root / "again").symlink_to(root)
    contents = read_contents(config(root))
    assert sorted((row.label, row.path) for row in contents.rows["train"]) == [
        *(("cat", "cat/0.png"), ("cat", "cat/1.png"), ("cat", "cat/more/2.png")),
        *(("dog", "dog/0.png"), ("dog", "dog/deep/1.png")),
    ]
    assert sorted(contents.skipped["link to a parent folder"]) == [
        *("again", "cat/all", "cat/more/back", "dog/deep/up"),
    ]
    assert len(list(expand(str(root)))) == 5  # mode=predict walks the same way
    (root / "dog/cats").symlink_to(root / "cat")  # a folder beside it: listed under both labels
    assert len(read_contents(config(root)).rows["train"]) == 8
