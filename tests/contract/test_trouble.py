"""Trouble from outside, provoked: a message with the cure, and a run that goes on as if nothing had been.

A loss that is not finite: tests/training/test_fit.py; a process killed: test_processes.py; a machine lost:
test_nodes.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.contract.disk import full_at, on_a_small_disk
from tests.contract.story import assert_same, at, tell, the_run
from vitlab.data.batch import Batch
from vitlab.distill.store_writer import SlotWriter
from vitlab.run.recorder import Recorder, read_rows
from vitlab.training.callbacks.record_and_checkpoint import RecordAndCheckpoint
from vitlab.training.learner import Learner

PLAIN = ("method=supervised", "evaluation=quick")


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


@pytest.mark.skipif(sys.platform != "linux", reason="has a disk of its own")
def test_disk_full(sound: Path, tmp_path: Path) -> None:
    """First there is no room for the record, then none for the checkpoint, then there is."""

    def story(disk: Path) -> None:
        words = (*PLAIN, "recipe.checkpoint_every=1st")
        with full_at(disk, Recorder, "write", lambda *_, step, **__: step == 3):
            said = stopped(disk, *words)
        assert re.search(
            r"Writing \S+/metrics\.jsonl failed: No space left on device \(0\.000 MB to write, 0\.000 MB", said
        )
        with full_at(
            disk, RecordAndCheckpoint, "_checkpoint", lambda _, trainer, learner: learner.step == 7, left=9000
        ):
            said = stopped(disk, *words)
        assert re.search(
            r"Writing \S+/checkpoint\.ckpt failed: No space left on device \(\d\.\d+ MB to write, 0\.\d+ MB free", said
        )
        assert not list(disk.rglob("*.tmp")), "half a file fills the disk"
        assert tell(disk, *words) == 0
        assert_same(the_run(disk), sound)

    on_a_small_disk(tmp_path / "disk", 64, story)


def stopped(output: Path, *words: str) -> str:
    """What a command for which there was no room says."""
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        assert tell(output, *words) == 2, heard.getvalue()
    said = " ".join(heard.getvalue().split())
    assert "Traceback" not in said and "Make room" in said and "the same command continues" in said, said
    return said


def test_loader_process_killed(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shoot(learner: Learner) -> bool:
        if learner.step + 1 == 7:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return False

    with at(Learner, "after_step", shoot, signal.SIGTERM):
        assert tell(tmp_path, *PLAIN, "hardware.workers=1") == 2
    said = told(capsys)
    assert "A loader process" in said and "was ended from outside" in said and "hardware.workers" in said
    assert tell(tmp_path, *PLAIN, "hardware.workers=1") == 0
    assert_same(the_run(tmp_path), sound)


STORING = ("method=tinyvit", "evaluation=quick", "method.baseline=false")


@pytest.fixture(scope="module")
def storing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a store, without trouble."""
    output = tmp_path_factory.mktemp("storing")
    assert tell(output, *STORING) == 0
    return the_run(output)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has a disk of its own")
def test_disk_full_of_a_store(storing: Path, tmp_path: Path) -> None:
    def story(disk: Path) -> None:
        with full_at(disk, SlotWriter, "_drain", lambda writer: writer._slot == 1):
            said = stopped(disk, *STORING)
        assert re.search(
            r"Writing \S+/records\.bin failed: No space left on device \(0\.\d+ MB to write, 0\.000 MB", said
        )
        assert tell(disk, *STORING) == 0
        assert_same(the_run(disk), storing)

    on_a_small_disk(tmp_path / "disk", 64, story)


def test_store_cut_short(storing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = STORING
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
    assert_same(the_run(tmp_path / "cut"), storing)


def stored(output: Path) -> list[Path]:
    """Slots of the run that is cut, once its student is trained."""
    return sorted(path for path in output.glob("cut/*/*/store/targets/*/records.bin"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_out_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the 64 x 64 x 4096 numbers of a hidden layer, 67 MB, a step keeps eight: 64 images need more than twice what
    is left to them, eight need a third of it, whatever the process had mapped before."""
    wide = (
        "model=vit_small",
        "model.name=vit_tiny_patch16_224",
        "debug.max_steps=2",
        "debug.max_images=64",
        "recipe.batch_size=64",
    )
    args = ("patch_size=4", "embed_dim=16", "depth=4", "num_heads=1", "mlp_ratio=256")
    words = (*PLAIN, *wide, "recipe.checkpoint_every=1st", *(f"model.args.{one}" for one in args))
    code, said = tell_with_room(200_000_000, tmp_path, *words)
    assert code == 2 and "Traceback" not in said, said
    cure = re.search(
        r"ran out of memory with 64 images at once on each device; (\d+) fit\. Give (recipe.accumulate=(\d))", said
    )
    assert cure is not None, said
    assert int(cure[1]) * int(cure[3]) == 64
    capsys.readouterr()
    assert tell(tmp_path, *words, cure[2]) == 0
    assert "continued where it stopped" in capsys.readouterr().out
    rows = [row for row in read_rows(the_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [2]


def tell_with_room(bytes_: int, output: Path, *words: str) -> tuple[int, str]:
    """A command in a forked process, which after its first step gets ``bytes_`` more and no others: all is loaded then,
    and what another step needs is its batch. The exit code, and what it said."""
    said = output.with_name("said")
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), " ".join(said.read_text().split())
    # What is freed goes back at once, so that what fits is the same every time.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    start = Learner.on_train_batch_start

    def limited(self: Learner, batch: Batch, batch_idx: int) -> None:
        if self.step == 1:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + bytes_, resource.RLIM_INFINITY))
        start(self, batch, batch_idx)

    Learner.on_train_batch_start = limited  # type: ignore[method-assign]  # of this process, which ends here
    code = 1
    try:
        with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = tell(output, *words)
    finally:
        os._exit(code)


@pytest.mark.parametrize("word", ["model.name=resnet5", "recipe.optimizer=adammm"])
def test_a_start_that_fails_leaves_no_run(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(tmp_path, *PLAIN, word) == 2
    assert told(capsys)
    assert not list(tmp_path.rglob("*")), "an empty run folder"
