"""A folder with one of every fault, and the audit's answer to each."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.data.conftest import picture
from vitlab.config import DatasetConfig
from vitlab.data.audit import Audit, audit_dataset, inputs_of, keep_together, refuse_faults, write_audit
from vitlab.data.audit_duplicates import find_identical, find_similar
from vitlab.data.audit_files import inspect_file, inspect_files
from vitlab.data.decode import read_rgb
from vitlab.data.folder import folder_sources
from vitlab.data.folder_contents import read_csv
from vitlab.data.sources import labels_of
from vitlab.data.subsets import held_out_groups
from vitlab.errors import UserError

MakeImages = Callable[..., Path]


def config(root: Path | None, **more: object) -> DatasetConfig:
    keys = {"val_fraction": 0.2, "size": 224} | more  # as conf/dataset/folder.yaml has it
    return DatasetConfig(name="folder", root=None if root is None else str(root), **keys)  # type: ignore[arg-type]


def scene(seed: int, side: int = 120) -> Image.Image:
    """Something with large forms, as a photograph has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


@pytest.fixture
def broken(make_images: MakeImages) -> Path:
    root = make_images(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)), "bird/only.png")
    (root / "ape").mkdir()
    (root / "cat/void.jpg").write_bytes(b"")
    (root / "dog/text.jpeg").write_text("no picture")
    buffer = io.BytesIO()
    scene(0).save(buffer, "JPEG", quality=90)
    (root / "dog/cut.jpg").write_bytes(buffer.getvalue()[:-800])
    Image.new("F", (9, 9), 0.5).save(root / "dog/float.tiff")
    for name in ("cat/.DS_Store", "notes.md", "dog/list.txt"):
        (root / name).write_text("x")
    return root


def test_every_fault_is_named(broken: Path) -> None:
    result, _ = audit_dataset(config(broken))
    assert result.unreadable == {
        "cat/void.jpg": "the file is empty",
        "dog/cut.jpg": result.unreadable["dog/cut.jpg"],
        "dog/float.tiff": result.unreadable["dog/float.tiff"],
        "dog/text.jpeg": "not an image, in spite of its name",
    }
    assert "truncated" in result.unreadable["dog/cut.jpg"] and "unstated range" in result.unreadable["dog/float.tiff"]
    assert result.empty == ["ape"] and result.single == ["bird"]
    assert result.passed == {"hidden": ["cat/.DS_Store"], ".md": ["notes.md"], ".txt": ["dog/list.txt"]}
    text = result.text()
    assert (
        "FAULT    4 files cannot be read as an image: " in text
        and "FAULT    1 class folder without an image: ape" in text
    )
    assert "doubt    1 class with a single image: bird" in text
    assert "ignored  1 .md, 1 .txt, 1 hidden" in text


def test_the_audit_agrees_with_the_reader(broken: Path) -> None:
    """What the audit cannot read is what a training could not read, and nothing else."""
    shutil.rmtree(broken / "ape")
    result, _ = audit_dataset(config(broken))
    refused = set()
    for source in folder_sources(config(broken)).values():
        for i in range(len(source)):
            try:
                source[i]
            except UserError:
                refused.add(source.keys[i])
    assert refused == set(result.unreadable)


def test_faults_stop_a_training_and_leave_out_goes_on(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 class folder without an image: ape.*Fix the data"):
        refuse_faults(audit_dataset(config(broken))[0], None)
    shutil.rmtree(broken / "ape")
    result, splits = audit_dataset(config(broken))
    listed = write_audit(tmp_path / "audit", result, splits)["unreadable"]
    with pytest.raises(UserError, match=r"4 files cannot be read.*dataset\.leave_out=") as raised:
        refuse_faults(result, listed)
    assert str(listed) in str(raised.value)
    cfg = config(broken, leave_out=str(listed))
    clean, splits = audit_dataset(cfg)
    refuse_faults(clean, None)
    assert sorted(clean.left_out) == sorted(result.unreadable) and clean.files == result.files - 4
    assert sum(len(source) for source in folder_sources(cfg).values()) == clean.files
    write_audit(tmp_path / "audit", clean, splits)
    assert listed.exists()  # another command may name it


def test_files_that_the_command_names_are_not_written(broken: Path, tmp_path: Path) -> None:
    """A list and a split that the audit wrote come back as dataset.leave_out and dataset.split_file."""
    shutil.rmtree(broken / "ape")
    out = tmp_path / "audit"
    result, splits = audit_dataset(config(broken))
    first = write_audit(out, result, splits)
    (out / "split.csv").write_text((out / "split.csv").read_text() + "\n")
    (broken / "dog/another.png").write_text("no image")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    cfg = config(broken, leave_out=str(first["unreadable"]), split_file=str(first["split"]))
    result, splits = audit_dataset(config(broken, leave_out=str(first["unreadable"])))
    again = write_audit(out, result, splits, inputs_of(cfg))
    assert again["split"].name == "split-2.csv" and again["unreadable"].name == "unreadable-2.txt"
    assert {name: (out / name).read_bytes() for name in ("split.csv", "unreadable.txt")} == {
        name: before[name] for name in ("split.csv", "unreadable.txt")
    }
    clean, _ = audit_dataset(config(broken, leave_out=str(again["unreadable"])))  # the new list is enough by itself
    assert not clean.unreadable and len(clean.left_out) == 5


def test_leave_out_names_only_what_is_there(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in ("a", "b") for i in range(3)))
    (tmp_path / "out.txt").write_text("# two\n./a/0.png\n\nb/9.png\n")
    with pytest.raises(UserError, match=r"names 1 file\(s\) that are not of the data set, the first is b/9\.png"):
        folder_sources(config(root, leave_out=str(tmp_path / "out.txt")))
    with pytest.raises(UserError, match=r"leave_out=none\.txt does not exist"):
        folder_sources(config(root, leave_out="none.txt"))


def test_a_clean_folder(make_images: MakeImages) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in ("a", "b") for i in range(10)))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        scene(number).save(path)
    result, splits = audit_dataset(config(root))
    assert not result.faults and not result.doubts and "clean    no faults, no doubts" in result.text()
    assert {name: len(part) for name, part in splits.items()} == {"train": 16, "val": 4}
    assert result.width == (160, 160, 160) and result.formats == {"PNG": 20} and not result.converted


def test_stored_forms_are_told(make_images: MakeImages) -> None:
    root = make_images("a/rgb.png", "b/rgb.png")
    Image.new("L", (40, 40)).save(root / "a/grey.png")
    Image.new("CMYK", (40, 40)).save(root / "a/cmyk.jpg")
    Image.new("RGBA", (40, 40)).save(root / "a/clear.png")
    Image.new("I;16", (40, 40)).save(root / "b/deep.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (70, 40)).save(root / "b/turned.jpg", exif=exif)
    scene(1).save(root / "b/moving.gif", save_all=True, append_images=[scene(2)])
    result, _ = audit_dataset(config(root))
    assert result.converted == {
        "grey": 1,
        "CMYK": 1,
        "transparent": 1,
        "16-bit grey": 1,
        "turned by EXIF": 1,
        "palette": 1,
        "several frames": 1,
    }
    assert result.partial == {
        "of 16 bits per channel, the upper 8 are read": 1,
        "with an alpha channel, transparent parts are read as white": 1,
        "of CMYK, converted to RGB without its colour profile": 1,
        "of several frames, the first is read": 1,
    }
    assert result.height[2] == 120 and result.small == ["a/rgb.png", "b/rgb.png"]
    turned = inspect_file(root / "b/turned.jpg")
    assert (turned.width, turned.height, turned.orientation) == (70, 40, 8)


def tiff(pixels: np.ndarray, extra: tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of the channels [H, W, C], the last of them without a meaning."""
    height, width, channels = pixels.shape
    bits, data = pixels.dtype.itemsize * 8, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    shorts = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 278: height, 284: 1}
    lists = {258: (bits,) * channels, **({338: extra} if extra else {})}
    for tag, value in (shorts | lists).items():
        tags.tagtype[tag] = 3
        tags[tag] = value
    tags[273], tags[279] = 0, len(data)  # Pillow adds where the directory ends
    return b"II*\0" + (8).to_bytes(4, "little") + tags.tobytes(8) + data


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colour [H, W, 3]; Pillow writes none."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([16, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_depth_and_channels_that_are_not_read_are_counted(make_images: MakeImages) -> None:
    """Pillow calls them all RGB."""
    root = make_images("a/0.png", "b/0.png")
    deep = np.random.default_rng(0).integers(0, 1 << 16, (40, 40, 7), dtype=np.uint16)
    flat = (deep >> 8).astype(np.uint8)
    (root / "a/deep.png").write_bytes(png16(deep[..., :3]))
    (root / "a/deep.tif").write_bytes(tiff(deep[..., :3], ()))
    (root / "a/deep.ppm").write_bytes(b"P6 40 40 4095\n" + (deep[..., :3] >> 4).astype(">u2").tobytes())
    (root / "b/infrared.tif").write_bytes(tiff(flat[..., :4], (0,)))
    (root / "b/both.tif").write_bytes(tiff(deep[..., :4], (0,)))
    (root / "b/five.tif").write_bytes(tiff(flat[..., :5], (0, 0)))
    (root / "b/seven.tif").write_bytes(tiff(flat, (0, 0, 0, 0)))
    Image.fromarray(flat[..., 0]).save(root / "b/grey.png")
    result, _ = audit_dataset(config(root))
    assert result.partial == {
        "of 16 bits per channel, the upper 8 are read": 3,
        "of 12 bits per channel, the upper 8 are read": 1,
        "of 4 channels, the first three are read": 2,
        "of 5 channels, the first three are read": 1,
    }
    assert "in part  3 of 16 bits per channel, the upper 8 are read, 2 of 4 channels" in result.text()
    assert list(result.unreadable) == ["b/seven.tif"] and "a TIFF of 7 channels" in result.unreadable["b/seven.tif"]
    with pytest.raises(UserError, match="a TIFF of 7 channels"):
        read_rgb(root / "b/seven.tif")
    np.testing.assert_array_equal(np.asarray(read_rgb(root / "a/deep.png")), flat[..., :3])
    np.testing.assert_array_equal(np.asarray(read_rgb(root / "b/five.tif")), flat[..., :3])


def test_a_data_set_of_small_pictures_is_one_line(make_images: MakeImages) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(11)))

    def line(**more: object) -> str:
        return next(one for one in audit_dataset(config(root, **more))[0].doubts if "below 32 px" in one)

    assert line() == "all 22 images with a side below 32 px, enlarged to 224 px (dataset.size)"
    assert line(size=[16, 24]).endswith("below 32 px, resized to 16 × 24 px")
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        if number:
            scene(number).save(path)
    assert line() == "1 of 22 images with a side below 32 px, enlarged to 224 px (dataset.size): a/0.png"


def test_many_duplicates_are_a_count_and_two_examples(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")
    for number in range(6):
        for path in ("train/a/first", "val/a/second", "val/a/third"):
            scene(number).save(root / f"{path}{number}.png")
    (line,) = (one for one in audit_dataset(config(root))[0].doubts if "both sides" in one)
    one, other = (f"train/a/first{i}.png = val/a/second{i}.png = ..." for i in range(2))
    assert line == f"6 pictures on both sides of a split: {one}, {other} and 4 more"


def test_sizes_are_those_that_are_seen(tmp_path: Path) -> None:
    """Least, median and most; an EXIF orientation from 5 on swaps the sides."""
    for name, size, orientation in (("a/1", (70, 40), 8), ("a/2", (60, 50), 5), ("b/3", (90, 30), 4)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(orientation).resize(size).save(path, exif=exif)
    result, _ = audit_dataset(config(tmp_path / "photos"))
    assert (result.width, result.height) == ((40, 50, 90), (30, 60, 70))


def test_copies_across_classes_and_splits_come_first(make_images: MakeImages) -> None:
    root = make_images(*(f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(3)))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        scene(number).save(path)
    shutil.copy(root / "train/a/0.png", root / "train/a/twin.png")
    shutil.copy(root / "train/a/1.png", root / "val/a/leak.png")
    shutil.copy(root / "train/b/0.png", root / "train/a/torn.png")
    scene(5).resize((90, 70)).save(root / "val/b/again.jpg", quality=60)  # train/b/2.png, smaller and coded anew
    result, _ = audit_dataset(config(root))
    assert [(one.kind, one.classes, one.splits) for one in result.duplicates] == [
        ("same file", ["a", "b"], ["train"]),
        ("same file", ["a"], ["train", "val"]),
        ("look alike", ["b"], ["train", "val"]),
        ("same file", ["a"], ["train"]),
    ]
    assert result.duplicates[2].paths == ["train/b/2.png", "val/b/again.jpg"]
    assert not result.faults
    assert [line.partition(":")[0] for line in result.doubts] == [
        "1 picture in more than one class",
        "2 pictures on both sides of a split",
        "1 picture more than once in a class",
    ]


def test_pictures_that_differ_are_not_alike(make_images: MakeImages) -> None:
    """400 different scenes and 40 plain ones: no pair. Every scene saved smaller and worse: every pair."""
    root = make_images("x.png", root="many")
    for seed in range(400):
        scene(seed).save(root / f"{seed}.png")
    for level in range(40):
        Image.new("RGB", (50, 50), (level, 100, 6 * level)).save(root / f"plain{level}.png")
    names = [f"{seed}.png" for seed in range(400)]
    plain = [inspect_file(root / f"plain{level}.png") for level in range(40)]
    originals = [inspect_file(root / name) for name in names]
    assert find_similar([*originals, *plain]) == [] and find_identical(originals) == []
    for seed in range(400):
        scene(seed).resize((100, 75)).save(root / f"{seed}.jpg", quality=60)
    copies = [inspect_file(root / f"{seed}.jpg") for seed in range(400)]
    assert find_similar([*originals, *copies]) == [[seed, seed + 400] for seed in range(400)]


def test_a_split_that_lacks_a_class_is_named(make_images: MakeImages) -> None:
    root = make_images("train/a/0.png", "train/b/0.png", "train/b/1.png", "val/b/0.png")
    result, _ = audit_dataset(config(root))
    assert result.lacking == {"val": ["a"]} and "split 'val' lacks 1 class that train has: a" in result.doubts


def test_the_split_is_written_and_reads_back(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in ("a", "b, c") for i in range(10)))
    cfg = config(root, val_fraction=0.3)
    result, splits = audit_dataset(cfg)
    assert "30 % of every class held out" in result.split
    paths = write_audit(tmp_path / "out", result, splits)
    assert [path.name for path in paths.values()][:2] == ["audit.json", "split.csv"]
    frozen, made = folder_sources(config(root, csv=str(tmp_path / "out/split.csv"))), folder_sources(cfg)
    for split in ("train", "val"):
        assert list(frozen[split].keys) == list(made[split].keys)
        assert labels_of(frozen[split]).tolist() == labels_of(made[split]).tolist()
    stored = json.loads((tmp_path / "out/audit.json").read_text())
    again = Audit(**{**stored, "duplicates": []})
    assert again.counts == result.counts and again.files == 20 and again.split == result.split


def test_groups_stay_together(make_images: MakeImages, tmp_path: Path) -> None:
    paths = [f"{i}.png" for i in range(60)]
    root = make_images(*paths)
    table = root / "table.csv"
    lines = [f"{path},{'xyz'[i % 3]},burst{i // 4}" for i, path in enumerate(paths)]
    table.write_text("\n".join(["path,label,group", *lines]))
    cfg = config(None, csv=str(table), val_fraction=0.25)
    result, splits = audit_dataset(cfg)
    groups = {split: {row.group for row in part} for split, part in splits.items()}
    assert not groups["train"] & groups["val"] and len(groups["train"] | groups["val"]) == 15
    assert 12 <= len(splits["val"]) <= 18 and set(result.counts["val"]) == {"x", "y", "z"}
    assert "by groups" in result.split
    assert [len(source) for source in folder_sources(cfg).values()] == [len(part) for part in splits.values()]
    write_audit(tmp_path / "out", result, splits)
    with open(tmp_path / "out/split.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["path"], row["group"]) for row in rows} == {(p, f"burst{i // 4}") for i, p in enumerate(paths)}
    table.write_text(table.read_text().replace(",burst3", ","))
    with pytest.raises(UserError, match=r"line 14: the group is empty"):
        read_csv(cfg)


def test_grouped_split_does_not_hang_on_the_order() -> None:
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 80, 600).astype(str).tolist(), rng.integers(0, 5, 600)
    held = held_out_groups(groups, labels, 0.2)
    order = rng.permutation(600)
    again = held_out_groups([groups[i] for i in order], labels[order], 0.2)
    assert (again == held[order]).all()
    shares = np.bincount(labels[held], minlength=5) / np.bincount(labels)
    assert (np.abs(shares - 0.2) < 0.06).all()
    # One group with all images of a class: it stays in training. One group in all: nothing is held out.
    assert not held_out_groups(["g"] * 5 + ["h", "i", "j"], np.array([0] * 5 + [1] * 3), 0.5)[:5].any()
    assert not held_out_groups(["g"] * 5, np.zeros(5, np.int64), 0.5).any()


def test_seen_files_are_not_opened_again(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images(*(f"a/{i}.png" for i in range(8)))
    names, cache = [f"a/{i}.png" for i in range(8)], tmp_path / "cache.sqlite"
    counted: list[int] = []
    first = inspect_files(root, names, cache, 2, counted.append)
    assert counted == list(range(1, 9)) and list(first) == names
    stamp = os.stat(root / "a/3.png")
    (root / "a/3.png").write_bytes(b"\0" * stamp.st_size)  # other content of the same size and time: not looked at
    os.utime(root / "a/3.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert inspect_files(root, names, cache, 1, counted.append) == first and counted == list(range(1, 9))
    os.utime(root / "a/3.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    picture(99).save(root / "a/8.png")
    counted.clear()
    last = inspect_files(root, [*names, "a/8.png"], cache, 1, counted.append)
    assert counted == [8, 9] and last["a/3.png"].error and not last["a/8.png"].error
    (root / "a/0.png").unlink()
    assert inspect_files(root, names, cache)["a/0.png"].error == "there is no such file"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_names_that_are_not_utf8(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    os.rename(os.fsencode(root / "a/0.png"), os.fsencode(root / "a") + b"/caf\xe9.png")
    (root / "b/1.png").write_text("broken")
    os.rename(os.fsencode(root / "b/1.png"), os.fsencode(root / "b") + b"/\xff.png")
    result, splits = audit_dataset(config(root), tmp_path / "cache.sqlite")
    write_audit(tmp_path / "out", result, splits)
    assert audit_dataset(config(root), tmp_path / "cache.sqlite")[0] == result
    assert len(result.unreadable) == 1
    clean, _ = audit_dataset(config(root, leave_out=str(tmp_path / "out/unreadable.txt")))
    assert clean.files == 3 and not clean.unreadable
    assert len(folder_sources(config(root, csv=str(tmp_path / "out/split.csv")))["train"].keys) == len(splits["train"])


def test_an_orientation_that_exif_does_not_have_turns_nothing(make_images: MakeImages) -> None:
    root = make_images("a/0.png", "b/0.png")
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.new("RGB", (70, 40)).save(root / "a/odd.jpg", exif=exif)
    result, _ = audit_dataset(config(root))
    assert "turned by EXIF" not in result.converted and result.width[2] == 70


def test_groups_are_read_as_other_tables(make_images: MakeImages, tmp_path: Path) -> None:
    """With the separator of the first line, and no value dropped."""
    root = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(10)))
    table = tmp_path / "groups.csv"
    table.write_text("path;group\n" + "".join(f"{name}/{i}.png;{i}\n" for name in "ab" for i in range(10)))
    cfg = config(root, groups=str(table), val_fraction=0.3)
    held = {path.partition("/")[2] for path in folder_sources(cfg)["val"].keys}
    assert len(folder_sources(cfg)["val"]) == 2 * len(held) > 0
    table.write_text("path,group\na/0.png,1,b/0.png\n")
    with pytest.raises(UserError, match=r"groups\.csv, line 2: 3 values in a table of 2 columns"):
        folder_sources(cfg)


def test_duplicates_stay_on_one_side(make_images: MakeImages, tmp_path: Path) -> None:
    """What the audit found is a group for dataset.groups: nothing of it is on both sides of the split any more."""
    root = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(30)))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        scene(number).save(path)
    for i in range(8):
        shutil.copy(root / f"a/{i}.png", root / f"a/copy{i}.png")
        scene(30 + i).resize((100, 75)).save(root / f"b/small{i}.jpg", quality=60)
    result, splits = audit_dataset(config(root, val_fraction=0.3))
    written = write_audit(tmp_path / "audit", result, splits)
    assert any(len(one.splits) > 1 for one in result.duplicates)
    assert f"dataset.groups={written['duplicates']}" in keep_together(result, written)
    cfg = config(root, val_fraction=0.3, groups=str(written["duplicates"]))
    again, splits = audit_dataset(cfg)
    assert len(again.duplicates) >= 8 and not any(len(one.splits) > 1 for one in again.duplicates)
    assert {name: len(part) for name, part in splits.items()} == {
        name: len(source) for name, source in folder_sources(cfg).items()
    }
    assert 12 <= len(splits["val"]) <= 32 and keep_together(again, written) == ""
    table = written["duplicates"]
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(lines)]) + "\n")  # neither the order nor the numbers matter
    assert list(folder_sources(cfg)["val"].keys) == [row.path for row in splits["val"]]
    table.write_text(head + "\n1,same file,a/none.png,a,train\n")
    with pytest.raises(UserError, match=r"line 2: a/none\.png is no image of the data set"):
        folder_sources(cfg)
