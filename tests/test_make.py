"""What make says and does where nothing needs to be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def make(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", "-C", clone, *words], env=environment, capture_output=True, text=True)


def python_that_says_no(folder: Path) -> Path:
    path = folder / "python3.9"
    path.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    path.chmod(0o755)
    return path


def test_help_names_every_target(clone: Path) -> None:
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    shown = make(clone)
    assert shown.returncode == 0
    assert {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("make ")} == {
        *phony.split()[1:],
    } - {"help"}


def test_an_old_python_is_named(clone: Path, tmp_path: Path) -> None:
    done = make(clone, "setup", f"PYTHON={python_that_says_no(tmp_path)}")
    assert done.returncode != 0
    assert "python3.9 is not Python 3.11 or newer" in done.stderr
    assert not (clone / ".venv").exists()


def test_no_python_is_said(clone: Path) -> None:
    done = make(clone, "setup", "PYTHON=")
    assert done.returncode != 0
    assert "vitlab needs Python 3.11 or newer" in done.stderr
    assert "make setup PYTHON=" in done.stderr


def test_a_set_up_clone_is_left_alone_until_its_needs_change(clone: Path) -> None:
    stamp = clone / ".venv/.ready"
    stamp.parent.mkdir()
    stamp.touch()
    later = stamp.stat().st_mtime_ns + 10**9
    os.utime(stamp, ns=(later, later))
    assert "Nothing to be done" in make(clone, "setup").stdout
    os.utime(clone / "pyproject.toml", ns=(later + 10**9, later + 10**9))
    assert "uv" in make(clone, "setup", "--dry-run").stdout


def test_clean_keeps_what_runs_made(clone: Path) -> None:
    for name in (".venv/bin/x", "outputs/run/x", "vitlab/__pycache__/x", "tests/a/__pycache__/x", ".mypy_cache/x"):
        (clone / name).parent.mkdir(parents=True)
        (clone / name).touch()
    assert make(clone, "clean").returncode == 0
    left = {str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file()}
    assert left == {"Makefile", "pyproject.toml", "outputs/run/x"}
