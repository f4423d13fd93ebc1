"""Failures from outside: a message with the cure, and a run that continues with the same result.

A loss that is not finite: tests/training/test_fit.py; a process killed: test_processes.py; a node lost:
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
from tests.contract.story import TEACHER, assert_same, at, run_command, the_run
from vitlab.data.batch import Batch
from vitlab.distill.store_writer import SlotWriter
from vitlab.run.recorder import Recorder, read_rows
from vitlab.training.callbacks.record_and_checkpoint import RecordAndCheckpoint
from vitlab.training.learner import Learner

PLAIN = ("method=supervised", "evaluation=quick")


def message(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return " ".join(text.split())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a failure."""
    output = tmp_path_factory.mktemp("sound")
    assert run_command(output, *PLAIN) == 0
    return the_run(output)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount namespace")
def test_disk_full(sound: Path, tmp_path: Path) -> None:
    """First there is no room for the record, then none for the checkpoint, then there is."""

    def check(disk: Path) -> None:
        words = (*PLAIN, "recipe.checkpoint_every=1st")
        with full_at(disk, Recorder, "write", lambda *_, step, **__: step == 3):
            text = stopped(disk, *words)
        assert re.search(
            r"Writing \S+/metrics\.jsonl failed: No space left on device \(0\.000 MB to write, 0\.000 MB", text
        )
        with full_at(
            disk, RecordAndCheckpoint, "_checkpoint", lambda _, trainer, learner: learner.step == 7, left=9000
        ):
            text = stopped(disk, *words)
        assert re.search(
            r"Writing \S+/checkpoint\.ckpt failed: No space left on device \(\d\.\d+ MB to write, 0\.\d+ MB free", text
        )
        assert not list(disk.rglob("*.tmp")), "a partial file is left"
        assert run_command(disk, *words) == 0
        assert_same(the_run(disk), sound)

    on_a_small_disk(tmp_path / "disk", 64, check)


def stopped(output: Path, *words: str) -> str:
    """The message of a command that ran out of disk space."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        assert run_command(output, *words) == 2, stderr.getvalue()
    text = " ".join(stderr.getvalue().split())
    assert "Traceback" not in text and "Free some space" in text and "the same command continues" in text, text
    return text


def test_loader_process_killed(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kill_loaders(learner: Learner) -> bool:
        if learner.step + 1 == 7:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return False

    with at(Learner, "after_step", kill_loaders, signal.SIGTERM):
        assert run_command(tmp_path, *PLAIN, "hardware.workers=1") == 2
    text = message(capsys)
    assert "A loader process" in text and "was killed" in text and "hardware.workers" in text
    assert run_command(tmp_path, *PLAIN, "hardware.workers=1") == 0
    assert_same(the_run(tmp_path), sound)


STORING = ("method=tinyvit", "evaluation=quick", "method.baseline=false", *TEACHER)


@pytest.fixture(scope="module")
def storing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a store, without a failure."""
    output = tmp_path_factory.mktemp("storing")
    assert run_command(output, *STORING) == 0
    return the_run(output)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount namespace")
def test_disk_full_of_a_store(storing: Path, tmp_path: Path) -> None:
    def check(disk: Path) -> None:
        with full_at(disk, SlotWriter, "_drain", lambda writer: writer._slot == 1):
            text = stopped(disk, *STORING)
        assert re.search(
            r"Writing \S+/records\.bin failed: No space left on device \(0\.\d+ MB to write, 0\.000 MB", text
        )
        assert run_command(disk, *STORING) == 0
        assert_same(the_run(disk), storing)

    on_a_small_disk(tmp_path / "disk", 64, check)


def test_store_cut_short(storing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = STORING
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7 and bool(stored(tmp_path)), signal.SIGTERM):
        assert run_command(tmp_path / "cut", *words) == 130
    (records, *_) = stored(tmp_path)
    os.truncate(records, records.stat().st_size - 100)
    capsys.readouterr()
    assert run_command(tmp_path / "cut", *words) == 2
    text = message(capsys)
    assert f"{records.parent} are damaged" in text and "Delete that folder" in text
    for path in re.findall(r"Delete that folder, and (\S+) where", text):
        Path(path).unlink()
    shutil.rmtree(records.parent)
    assert run_command(tmp_path / "cut", *words) == 0
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
    code, text = run_with_memory(200_000_000, tmp_path, *words)
    assert code == 2 and "Traceback" not in text, text
    cure = re.search(
        r"ran out of memory with 64 images at once on each device; (\d+) fit\. Give (recipe.accumulate=(\d))", text
    )
    assert cure is not None, text
    assert int(cure[1]) * int(cure[3]) == 64
    capsys.readouterr()
    assert run_command(tmp_path, *words, cure[2]) == 0
    assert "continued where it stopped" in capsys.readouterr().out
    rows = [row for row in read_rows(the_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]


def run_with_memory(bytes_: int, output: Path, *words: str) -> tuple[int, str]:
    """A command in a forked process, with a limit of ``bytes_`` of further memory from its first step on: everything is
    loaded then, and a step only needs memory for its batch. The exit code and the output."""
    log = output.with_name("log")
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), " ".join(log.read_text().split())
    # Freed memory is returned at once, so that the same batch fits every time.
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
        with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = run_command(output, *words)
    finally:
        os._exit(code)


@pytest.mark.parametrize("word", ["model.name=resnet5", "recipe.optimizer=adammm"])
def test_a_start_that_fails_leaves_no_run(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tmp_path, *PLAIN, word) == 2
    assert message(capsys)
    assert not list(tmp_path.rglob("*")), "an empty run folder"
