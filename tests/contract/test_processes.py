"""Two processes are one: the same order, draws, stored labels and weights; stopped or killed together, continued alike.

The network has no batch statistics and SGD divides by no running mean of squares: what is left of a difference is the
order in which gradients are added.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.story import SMALL, the_run
from vitlab.cli import main
from vitlab.recorder import Row, read_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

STEPS = 150
NETWORK = "{name:vit_tiny_patch16_224,args:{patch_size:8,embed_dim:32,depth:2,num_heads:2}%s}"
WORDS = (
    *(word for word in SMALL if not word.startswith(("hardware=", "debug.max_steps="))),
    f"debug.max_steps={STEPS}",
    "export=none",
    "model=vit_small",
    "model.name=vit_tiny_patch16_224",
    *(f"model.args.{name}" for name in ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")),
    *(f"recipe.{name}" for name in ("optimizer=sgd", "lr=0.02", "warmup_lr=0", "min_lr=0", "validate_every=60st")),
)


def alone(output: Path, *words: str) -> Path:
    """The run of one process."""
    torch.set_num_threads(1)
    assert main([*WORDS, *words, "hardware=cpu", f"output={output}"]) == 0
    return the_run(output)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run of one process, whose model is also the teacher of the other method."""
    return alone(tmp_path_factory.mktemp("one"), "method=supervised")


def begin(output: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "vitlab", *WORDS, *words, "hardware=ddp_cpu", f"output={output}"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until_trained(process: subprocess.Popen[str], output: Path, steps: int) -> None:
    """Wait for the record of step ``steps`` of the last stage."""
    while process.poll() is None:
        rows = [row for path in output.glob("*/*/metrics.jsonl") for row in read_rows(path)]
        if any(row["stage"] in ("train", "student", "pretrain") and int(str(row["step"])) >= steps for row in rows):
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


def worker(rank: int, run: Path) -> int:
    """The process of that rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vitlab.worker" in words and str(run).encode() in words and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def stop(process: subprocess.Popen[str], run: Path) -> None:
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "everything is saved" in said and "Traceback" not in said


def kill_one(process: subprocess.Popen[str], run: Path) -> None:
    other = worker(0, run)
    os.kill(worker(1, run), signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert "Process 2 of 2 was ended by SIGKILL" in said and "Traceback" not in said
    assert not Path(f"/proc/{other}").exists(), "the other process was left behind"


def learned(run: Path) -> list[Row]:
    return [
        {name: value for name, value in row.items() if name not in ("time", "images_per_second", "data_ms")}
        for row in read_rows(run / "metrics.jsonl")
    ]


def check(
    output: Path, one: Path, words: tuple[str, ...], trouble: Callable[[subprocess.Popen[str], Path], None]
) -> None:
    """Two processes that meet ``trouble`` in mid-training and are continued learn what ``one`` process learned."""
    process = begin(output, *words)
    until_trained(process, output, 30)
    two = the_run(output)
    trouble(process, two)
    assert not (two / "finished.json").exists()
    process = begin(output, *words)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    stages = sorted(path.parent.name for path in one.glob("*/model.safetensors"))
    assert stages
    for stage in stages:
        first, second = (load_file(run / stage / "model.safetensors") for run in (one, two))
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6, msg=f"{stage} {name}")
    for path in one.rglob("records.bin"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    for a, b in zip(learned(one), learned(two), strict=True):
        assert (a.pop("stage"), list(a)) == (b.pop("stage"), list(b))
        assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-4, abs=1e-5)


def test_supervised_stopped_by_sigterm(supervised: Path, tmp_path: Path) -> None:
    check(tmp_path, supervised, ("method=supervised",), stop)


@pytest.mark.slow
def test_tinyvit_with_one_process_killed(supervised: Path, tmp_path: Path) -> None:
    teacher = NETWORK % f",checkpoint:{supervised / 'train'}"
    words = ("method=tinyvit", "teacher.train=false", f"teacher.members=[{teacher}]", "recipe.augmentation.mixup=0.8")
    one = alone(tmp_path / "one", *words)
    assert list(one.rglob("records.bin"))
    check(tmp_path / "two", one, words, kill_one)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if not word.startswith("recipe.batch_size")]
    assert main([*words, "recipe.batch_size=15", "method=supervised", "hardware=ddp_cpu", f"output={tmp_path}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "recipe.batch_size=15 does not divide into 2 device(s)" in said and "multiple of 2" in said
