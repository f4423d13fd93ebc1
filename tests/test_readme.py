"""The README keeps its word: its commands run, its method works when it is typed in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.modes.conftest import signals_put_back
from vitlab.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SMALL = (
    "hardware=cpu",
    "hardware.threads=1",
    "debug=smoke",
    "export=none",
    "report.figures=false",
    "evaluation=quick",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every ``python -m vitlab …`` of the README, as words."""
    lines = [line.partition("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    return [words[3:] for words in lines if words[:3] == ["python", "-m", "vitlab"]]


def run(words: list[str], folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "vitlab", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise of different colour, 40 pictures each."""
    folder = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for name, tint in (("cats", 40), ("dogs", 200)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(random.normal(tint, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.jpg")
    return folder


def test_there_are_commands_and_the_first_two_are_make() -> None:
    first = [line.split("#")[0].strip() for line in blocks("bash")[0].splitlines()]
    assert first == ["make demo", "make test"]
    assert len(commands()) >= 7


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_runs(words: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands but for length; where the README fetches pretrained weights, small networks from nothing. The bare
    command and the sweep, which starts processes itself, are typed; the other ones are given to the same function."""
    shorter = [] if "--help" in words or "mode=audit" in words else list(SMALL)
    if "dataset=folder" in words and "mode=audit" not in words:
        shorter += ["dataset.size=32", "model=tiny_vit_digits", "recipe.batch_size=32"]
        shorter += [] if "method=supervised" in words else ["teacher=digits"]
    if not words or "-m" in words:
        done = run([*words, *shorter], photos)
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.chdir(photos)
        with signals_put_back():
            assert main([*words, *shorter]) == 0


def test_method_of_the_readme_works_when_typed_in(tmp_path: Path) -> None:
    for part in ("vitlab", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    code, yaml = blocks("python")[1], blocks("yaml")[1]
    folder = tmp_path / "vitlab" / "methods" / "bornagain"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "method.py").write_text(code)
    (tmp_path / "conf" / "method" / "bornagain.yaml").write_text(yaml)
    done = run(["method=bornagain", *SMALL], tmp_path, root=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("outputs/bornagain/*/report.md")
    assert "second generation" in report.read_text()


def test_data_set_of_the_readme_works_when_typed_in(tmp_path: Path) -> None:
    for part in ("vitlab", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vitlab" / "data" / "sets" / "shells.py").write_text(blocks("python")[0])
    (tmp_path / "conf" / "dataset" / "shells.yaml").write_text(blocks("yaml")[0])
    species = np.arange(120) % 2
    beach = np.array([f"beach {i // 6}" for i in range(120)])
    shade = (species * 120).astype(np.uint8)[:, None, None, None]
    images = np.random.default_rng(0).integers(0, 100, (120, 32, 32, 3), dtype=np.uint8) + shade
    np.savez(tmp_path / "shells.npz", images=images, species=species, beach=beach, test=np.arange(120) >= 90)
    words = ["method=supervised", "dataset=shells", "dataset.root=.", "model=tiny_vit_digits", "dataset.size=32"]
    done = run([*words, "recipe.batch_size=32", *SMALL], tmp_path, root=tmp_path)
    assert done.returncode == 0, done.stderr
    (split,) = tmp_path.glob("outputs/supervised/*/splits.csv")
    rows = [line.split(",") for line in split.read_text().splitlines()[1:]]
    sides = {name: {row[2] for row in rows if row[1] == name} for name in ("train", "val", "test")}
    assert len(rows) == 120 and all(sides.values())
    assert len(set.union(*sides.values())) == sum(map(len, sides.values())) == 20
    kept = np.load(split.parent / "evaluation" / "train.npz")
    assert [beach[int(key.split()[1])] for key in kept["key"]] == kept["group"].tolist()


def test_task_of_the_readme_works_when_typed_in(tmp_path: Path) -> None:
    for part in ("vitlab", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vitlab" / "tasks" / "ordinal.py").write_text(blocks("python")[2])
    (tmp_path / "conf" / "task" / "ordinal.yaml").write_text(blocks("yaml")[2])
    done = run(["method=supervised", "task=ordinal", *SMALL], tmp_path, root=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("outputs/supervised/*/metrics.jsonl")
    assert "val_kappa" in record.read_text()
    assert (record.parent / "report.html").exists()
