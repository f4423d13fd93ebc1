"""The wheel: conf/ travels inside, and both ways to start vitlab work from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from vitlab import __version__

ROOT = Path(__file__).parents[1]
WITHOUT = {"PYTHONPATH", "VIRTUAL_ENV", "VITLAB_DATA"}


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What ``command`` prints on standard output, and on standard error if it is to fail."""
    environment = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment in which the wheel is installed, and its dependencies are those of here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def committed(folder: str) -> set[str]:
    return set(run("git", "ls-files", folder, cwd=ROOT).split())


def test_the_wheel_holds_the_package_and_its_configuration(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    missing = {f"vitlab/{name}" for name in committed("conf")} - inside | committed("vitlab") - inside
    assert not missing
    assert {name.split("/")[0] for name in inside} == {"vitlab", f"vitlab-{__version__}.dist-info"}


def test_the_source_distribution_holds_what_is_committed(tmp_path: Path) -> None:
    """What a test reads lies in it too: fixtures, templates, the workflow and the hooks."""
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path, cwd=ROOT)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert not committed(".") - inside - {".ci/run"}


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    """conf/local is one person's; a wheel built in a clone that has it must not carry it away."""
    for name in ("pyproject.toml", ".gitignore", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("vitlab/_version.py", "conf/config.yaml", "conf/local/mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("__version__ = '0'\n")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist", cwd=tmp_path)
    (built,) = (tmp_path / "dist").glob("*.whl")
    names = [name for name in zipfile.ZipFile(built).namelist() if name.startswith("vitlab/")]
    assert sorted(names) == ["vitlab/_version.py", "vitlab/conf/config.yaml"]


def test_an_installed_vitlab_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import vitlab; print(vitlab.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)  # not the clone
    conf = Path(where.strip()).with_name("conf")
    assert f"{conf}/" in run(installed / "vitlab", "--help", cwd=tmp_path)  # the files it reads are its own
    for arguments in (["--help"], ["--version"], ["mode=list"], ["mode=list", "group=model"]):
        from_clone = run(sys.executable, "-m", "vitlab", *arguments, cwd=ROOT)
        for start in ([installed / "vitlab"], [installed / "python", "-m", "vitlab"]):
            assert run(*start, *arguments, cwd=tmp_path).replace(f"{conf}/", "conf/") == from_clone
    for choice in (ROOT / "conf/model").glob("*.yaml"):
        assert choice.stem in from_clone
    # Composing reads every group of the wheel's conf.
    assert "recipe.lr" in run(installed / "vitlab", "recipe.lrr=1", cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_clone_works_from_any_folder(tmp_path: Path) -> None:
    page = run(sys.executable, "-m", "vitlab", "--help", cwd=ROOT)
    script = Path(sys.executable).with_name("vitlab")
    for start in ([script], [sys.executable, "-m", "vitlab"]):
        assert run(*start, "--help", cwd=tmp_path).replace(f"{ROOT}/conf/", "conf/") == page
    assert list(tmp_path.iterdir()) == []
