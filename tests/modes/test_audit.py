"""mode=audit at the prompt, and the same look before a training."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.data.conftest import picture
from tests.modes.conftest import ask
from vitlab.files import read_json

TINY = (
    *("method=supervised", "model=tiny_vit_digits", "recipe=digits", "recipe.duration=2st", "recipe.warmup=0st"),
    *("recipe.batch_size=8", "dataset.size=32", "evaluation.latency=false", "export=none", "report.figures=false"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Real digits in three class folders, one file that is none, one copy in another class."""
    data = load_digits()
    for number in range(90):
        if (label := int(data.target[number])) < 3:
            path = tmp_path / "photos" / "abc"[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[number] * 15.9).astype(np.uint8)).resize((40, 40)).save(path)
    (tmp_path / "photos/a/broken.png").write_text("no image")
    shutil.copy(tmp_path / "photos/a/000.png", tmp_path / "photos/b/copy.png")
    return tmp_path / "photos"


def test_audit_at_the_prompt(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path / "out", "mode=audit", "dataset=folder", f"dataset.root={photos}") == 2
    output = capsys.readouterr().out
    (folder,) = (tmp_path / "out/audit").iterdir()
    assert "FAULT    1 file cannot be read as an image: a/broken.png (not an image" in output
    assert "doubt    1 picture in more than one class: a/000.png = b/copy.png" in output
    assert sorted(path.name for path in folder.iterdir()) == [
        *("audit.json", "cache.sqlite", "duplicates.csv", "split.csv", "unreadable.txt")
    ]
    leave_out = f"dataset.leave_out={folder}/unreadable.txt"
    assert leave_out in output
    for _ in range(2):  # the list that the command names is still there afterwards
        assert ask(tmp_path / "out", "mode=audit", "dataset=folder", f"dataset.root={photos}", leave_out) == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse names that are not UTF-8")
def test_names_that_no_terminal_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is strict here, as under most locales; no name may colour or move what follows it."""
    for folder in (b"caf\xe9", b"\x1b[31mred"):
        os.makedirs(os.path.join(os.fsencode(tmp_path / "photos"), folder))
        for number in range(3):
            picture(number).save(
                os.fsdecode(os.path.join(os.fsencode(tmp_path / "photos"), folder, b"\xff%d.png" % number))
            )
    (tmp_path / "photos" / "\x1b[2J.txt").write_text("x")
    broken = tmp_path / "photos" / os.fsdecode(b"caf\xe9") / os.fsdecode(b"broken\xff.png")
    broken.write_text("no image")
    words = ("dataset=folder", f"dataset.root={tmp_path}/photos")
    assert ask(tmp_path / "out", "mode=audit", *words) == 2
    out, err = capsys.readouterr()
    assert "caf\\udce9/broken\\udcff.png" in out and "\\x1b[31mred/\\udcff0.png" in out
    assert ask(tmp_path / "out", "mode=audit", *words, f"dataset.groups={broken}") == 2
    out, err = out + capsys.readouterr().out, err + capsys.readouterr().err
    assert "\x1b" not in out + err


def test_a_training_looks_first(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a/about.txt").write_text("x")
    words = ("dataset=folder", f"dataset.root={photos}", *TINY)
    assert ask(tmp_path / "out", *words, "mode=check") == 2  # and a dry run before it
    output = " ".join(capsys.readouterr().err.split())
    assert "cannot be trained on: 1 file cannot be read as an image: a/broken.png" in output
    (looked,) = (tmp_path / "out/audit").iterdir()
    assert f"dataset.leave_out={looked}/unreadable.txt" in output and not (tmp_path / "out/supervised").exists()
    seen = (looked / "cache.sqlite").stat().st_mtime_ns
    assert ask(tmp_path / "out", *words) == 2
    assert (looked / "cache.sqlite").stat().st_mtime_ns == seen  # what mode=check saw is not looked at again
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be trained on: 1 file cannot be read as an image: a/broken.png" in said
    assert not (tmp_path / "out/supervised").exists()  # a run that was refused leaves no folder
    listed = looked / "unreadable.txt"
    assert f"dataset.leave_out={listed}" in said
    assert ask(tmp_path / "out", *words, f"dataset.leave_out={listed}") == 0
    shown = capsys.readouterr()
    said = shown.err
    assert "steps    recipe: " in shown.out and "steps in all, " in said and " parameters" in said
    assert "1 picture in more than one class" in said and "data     ignored: 1 .txt" in said
    trained = next(path.parent for path in (tmp_path / "out/supervised").glob("*/finished.json"))
    assert listed.is_file()
    result = read_json(trained / "audit/audit.json")
    assert result["left_out"] == ["a/broken.png"] and result["unreadable"] == {}
    rows = (trained / "audit/split.csv").read_text().splitlines()
    assert rows[0] == "path,label,split" and len(rows) == result["files"] + 1


def test_changed_images_are_noticed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run shows its table and the change; a run that is not finished is not continued on other images."""
    (photos / "a/broken.png").unlink()
    words = ("dataset=folder", f"dataset.root={photos}", *TINY)
    assert ask(tmp_path / "out", *words) == 0
    (run,) = (tmp_path / "out/supervised").iterdir()
    capsys.readouterr()
    assert ask(tmp_path / "out", *words) == 0
    assert "have changed" not in capsys.readouterr().out
    first = photos / "c/002.png"
    pixels, table = first.read_bytes(), (run / "finished.json").read_bytes()
    Image.new("RGB", (50, 40), "red").save(first)  # another picture of the same name
    assert ask(tmp_path / "out", *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "This run is finished" in said and "images as before, but with other names, labels or sizes" in said
    first.write_bytes(pixels)
    for number in range(5):
        Image.new("RGB", (50, 40), (40 * number, 90, 10)).save(photos / f"c/new{number}.png")
    assert ask(tmp_path / "out", *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The images have changed since it was trained: train: " in said and "fresh=true trains on them" in said
    assert (run / "finished.json").read_bytes() == table
    (run / "finished.json").unlink()  # as if stopped before its end
    for mode in ((), ("mode=check",)):
        assert ask(tmp_path / "out", *words, *mode) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"The images have changed since {run} was started: train: " in said and "fresh=true" in said
    for number in range(5):
        (photos / f"c/new{number}.png").unlink()
    assert ask(tmp_path / "out", *words) == 0 and (run / "finished.json").exists()
    assert ask(tmp_path / "out", *words, "fresh=true") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dataset=digits",), "mode=audit looks at a folder of your own, and dataset=digits is not one"),
        (("dataset=folder", "dataset.root=/nowhere"), "/nowhere"),
        (("dataset=folder", "dataset.root=.", "run=x"), "mode=audit does not read run"),
    ],
)
def test_mistakes(tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "mode=audit", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
