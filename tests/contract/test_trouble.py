"""Trouble from outside, provoked: a message with the cure, and a run that goes on as if nothing had been.

A loss that is not finite: tests/training/test_fit.py; a process killed: test_processes.py; a machine lost:
test_nodes.py.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.story import assert_same, at, tell, the_run
from vitlab.recorder import read_rows
from vitlab.training.learner import Learner

ROOT = Path(__file__).parents[2]
LIMITED = """
import resource, sys
from pathlib import Path
from tests.contract.story import tell
from vitlab.training.learner import Learner
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 330_000_000, resource.RLIM_INFINITY))
sys.exit(tell(Path(sys.argv[1]), *sys.argv[2:]))
"""
PLAIN = ("method=supervised", "export=none", "evaluation=quick")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without trouble."""
    output = tmp_path_factory.mktemp("sound")
    assert tell(output, *PLAIN) == 0
    return the_run(output)


@contextmanager
def files_up_to(bytes_: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_checkpoint(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_up_to(200_000):
        assert tell(tmp_path, *PLAIN) == 2
    said = told(capsys)
    assert "Writing failed" in said and "Make room" in said and "the same command continues" in said
    assert not list(tmp_path.rglob("*.tmp")), "half a file fills the disk"
    assert tell(tmp_path, *PLAIN) == 0
    assert_same(the_run(tmp_path), sound)


def test_loader_process_killed(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shoot(learner: Learner) -> bool:
        if learner.step + 1 == 7:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return False

    with at(Learner, "after_step", shoot, signal.SIGTERM):
        assert tell(tmp_path, *PLAIN, "hardware.workers=1") == 2
    said = told(capsys)
    assert "A loader process" in said and "hardware.workers" in said
    assert "Killed" in said or "ended without a word" in said  # as soon as torch notices
    assert tell(tmp_path, *PLAIN, "hardware.workers=1") == 0
    assert_same(the_run(tmp_path), sound)


def test_store_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("method=tinyvit", "export=none", "evaluation=quick", "method.baseline=false")
    assert tell(tmp_path / "sound", *words) == 0
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7 and bool(stored(tmp_path)), signal.SIGTERM):
        assert tell(tmp_path / "cut", *words) == 130
    (records, *_) = stored(tmp_path)
    os.truncate(records, records.stat().st_size - 100)
    capsys.readouterr()
    assert tell(tmp_path / "cut", *words) == 2
    said = told(capsys)
    assert f"{records.parent} are damaged" in said and "Delete that folder" in said
    for path in re.findall(r"Delete that folder, and (\S+) where", said):
        Path(path).unlink()
    shutil.rmtree(records.parent)
    assert tell(tmp_path / "cut", *words) == 0
    assert_same(the_run(tmp_path / "cut"), the_run(tmp_path / "sound"))


def stored(output: Path) -> list[Path]:
    """Slots of the run that is cut, once its student is trained."""
    return sorted(path for path in output.glob("cut/*/*/store/targets/*/records.bin"))


@pytest.mark.slow  # how much fits below the limit is not the same on every machine and at every time
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_out_of_memory(tmp_path: Path) -> None:
    """Hidden layers of 16 x 256 x 4096 numbers are 67 MB each; there is room for some, not for all that are kept."""
    wide = ("model=vit_small", "model.name=vit_tiny_patch16_224", "debug.max_steps=2", "recipe=digits")
    args = ("patch_size=2", "embed_dim=64", "depth=2", "num_heads=2", "mlp_ratio=64")
    words = (*PLAIN, *wide, *(f"model.args.{one}" for one in args))
    # A process of its own: one that has freed memory before has room that no limit takes away.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path, *words],
        cwd=ROOT,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # an arena takes 64 MB of addresses, whatever it holds
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, said
    cure = re.search(
        r"ran out of memory with 16 images at once on each device; (\d) fit\. Give (recipe.accumulate=\d)", said
    )
    assert cure is not None, said
    assert int(cure[1]) * int(cure[2].partition("=")[2]) == 16
    assert tell(tmp_path, *words, cure[2]) == 0
    assert [row["step"] for row in read_rows(the_run(tmp_path) / "metrics.jsonl") if "loss" in row] == [2]


@pytest.mark.parametrize("word", ["model.name=resnet5", "recipe.optimizer=adammm"])
def test_a_start_that_fails_leaves_no_run(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(tmp_path, *PLAIN, word) == 2
    assert told(capsys)
    assert not list(tmp_path.rglob("*")), "an empty run folder"
