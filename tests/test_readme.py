"""The README keeps its word: its commands run, its method works when it is typed in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


def run(
    words: list[str], folder: Path, root: Path = ROOT, module: tuple[str, ...] = ("-m", "vitlab")
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *module, *words]
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
    command and the sweep over seeds, which starts processes itself, are typed; the other ones are given to the same
    function."""
    shorter = [] if "--help" in words or "mode=audit" in words else list(SMALL)
    if "dataset=folder" in words and "mode=audit" not in words:
        shorter += ["dataset.size=32", "model=tiny_vit_digits", "recipe.batch_size=32"]
        shorter += [] if "method=supervised" in words else ["teacher=digits"]
    if not words or words[:2] == ["-m", "seed=0,1,2"]:
        done = run([*words, *shorter], photos)
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.chdir(photos)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with signals_put_back():
            assert main([*words, *shorter]) == 0


RUN_ALL = """
import json, sys
from vitlab.cli.main import main
codes = {name: main(words) for name, words in json.loads(sys.argv[1]).items()}
print()
print(json.dumps(codes))
"""


class TypedIn(NamedTuple):
    """A copy of vitlab with the README's method, data set and task, in whose folder each of them was run."""

    folder: Path
    codes: dict[str, int]
    errors: str
    beach: list[str]


@pytest.fixture(scope="module")
def typed_in(tmp_path_factory: pytest.TempPathFactory) -> TypedIn:
    """All three in one process: a second import of torch would take longer than a run."""
    folder = tmp_path_factory.mktemp("typed_in")
    for part in ("vitlab", "conf"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.pyc.*"))
    code, yaml = blocks("python"), blocks("yaml")
    (folder / "vitlab" / "methods" / "bornagain").mkdir()
    (folder / "vitlab" / "methods" / "bornagain" / "__init__.py").touch()
    for path, text in {
        "vitlab/data/sets/shells.py": code[0],
        "vitlab/methods/bornagain/method.py": code[1],
        "vitlab/tasks/ordinal.py": code[2],
        "conf/dataset/shells.yaml": yaml[0],
        "conf/method/bornagain.yaml": yaml[1],
        "conf/task/ordinal.yaml": yaml[2],
    }.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    species = np.arange(120) % 2
    beach = [f"beach {i // 6}" for i in range(120)]
    shade = (species * 120).astype(np.uint8)[:, None, None, None]
    images = np.random.default_rng(0).integers(0, 100, (120, 32, 32, 3), dtype=np.uint8) + shade
    np.savez(folder / "shells.npz", images=images, species=species, beach=np.array(beach), test=np.arange(120) >= 90)
    shells = ["method=supervised", "dataset=shells", "dataset.root=.", "model=tiny_vit_digits", "dataset.size=32"]
    commands = {
        "method": ["method=bornagain", *SMALL],
        "dataset": [*shells, "recipe.batch_size=32", "output=shells", *SMALL],
        "task": ["method=supervised", "task=ordinal", "output=ordinal", *SMALL],
    }
    done = run(["-c", RUN_ALL, json.dumps(commands)], folder, root=folder, module=())
    assert done.returncode == 0, done.stderr
    return TypedIn(folder, json.loads(done.stdout.splitlines()[-1]), done.stderr, beach)


def test_method_of_the_readme_works_when_typed_in(typed_in: TypedIn) -> None:
    assert typed_in.codes["method"] == 0, typed_in.errors
    (report,) = typed_in.folder.glob("outputs/bornagain/*/report.md")
    assert "second generation" in report.read_text()


def test_data_set_of_the_readme_works_when_typed_in(typed_in: TypedIn) -> None:
    assert typed_in.codes["dataset"] == 0, typed_in.errors
    (split,) = typed_in.folder.glob("shells/supervised/*/splits.csv")
    rows = [line.split(",") for line in split.read_text().splitlines()[1:]]
    sides = {name: {row[2] for row in rows if row[1] == name} for name in ("train", "val", "test")}
    assert len(rows) == 120 and all(sides.values())
    assert len(set.union(*sides.values())) == sum(map(len, sides.values())) == 20
    kept = np.load(split.parent / "evaluation" / "train.npz")
    assert [typed_in.beach[int(key.split()[1])] for key in kept["key"]] == kept["group"].tolist()


def test_task_of_the_readme_works_when_typed_in(typed_in: TypedIn) -> None:
    assert typed_in.codes["task"] == 0, typed_in.errors
    (record,) = typed_in.folder.glob("ordinal/supervised/*/metrics.jsonl")
    assert "val_kappa" in record.read_text()
    assert (record.parent / "report.html").exists()
