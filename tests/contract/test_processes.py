"""Two processes give the result of one: the same order, draws, stored labels and weights, also after a stop or a kill.

The network has no batch statistics and SGD has no running mean of squares: the only difference is the order in which
gradients are added.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.contract.story import SMALL, the_run
from tests.contract.together import run_ranks
from vitlab.cli.main import main
from vitlab.run.recorder import Row, read_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

STEPS = 100
NETWORK = "{name:vit_tiny_patch16_224,args:{patch_size:8,embed_dim:32,depth:2,num_heads:2}%s}"
WORDS = (
    *(word for word in SMALL if not word.startswith(("hardware=", "debug.max_steps="))),
    f"debug.max_steps={STEPS}",
    "model=vit_small",
    "model.name=vit_tiny_patch16_224",
    *(f"model.args.{name}" for name in ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")),
    *(f"recipe.{name}" for name in ("optimizer=sgd", "lr=0.02", "warmup_lr=0", "min_lr=0", "validate_every=60st")),
)


def run_alone(output: Path, *words: str) -> Path:
    """A run in one process."""
    torch.set_num_threads(1)
    assert main([*WORDS, *words, "hardware=cpu", f"output={output}"]) == 0
    return the_run(output)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run in one process, whose model is also the teacher of the other method."""
    return run_alone(tmp_path_factory.mktemp("one"), "method=supervised")


def start_command(output: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    given = {word.partition("=")[0] for word in words}
    words = (*(word for word in WORDS if word.partition("=")[0] not in given), *words)
    line = [sys.executable, "-m", "vitlab", *words, "hardware=ddp_cpu", f"output={output}"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def wait_until_trained(process: subprocess.Popen[str], output: Path, steps: int) -> None:
    """Wait until the record has step ``steps`` of the last stage."""
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
        if b"vitlab.launch.worker" in words and str(run).encode() in words and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def stop(process: subprocess.Popen[str], run: Path) -> None:
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 130, text
    assert "everything is saved" in text and "Traceback" not in text


def kill_one(process: subprocess.Popen[str], run: Path) -> None:
    other = worker(0, run)
    os.kill(worker(1, run), signal.SIGKILL)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 1, text
    assert "Process 2 of 2 was killed by SIGKILL" in text and "Traceback" not in text
    assert not Path(f"/proc/{other}").exists(), "the other process was left behind"


def learned(run: Path) -> list[Row]:
    return [
        {name: value for name, value in row.items() if name not in ("time", "images_per_second", "data_ms")}
        for row in read_rows(run / "metrics.jsonl")
    ]


def finish(output: Path, *words: str) -> None:
    """The command once more, to its end."""
    process = start_command(output, *words)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text


def finish_forked(output: Path, *words: str) -> None:
    """The same in two processes that need not import torch anew."""
    assert run_ranks(output, *WORDS, *words) == [0, 0]


def check(
    output: Path,
    one: Path,
    words: tuple[str, ...],
    interrupt: Callable[[subprocess.Popen[str], Path], None],
    finish: Callable[..., None],
) -> None:
    """Two processes, interrupted by ``interrupt`` during training and continued, give the result of ``one`` process."""
    process = start_command(output, *words)
    wait_until_trained(process, output, 30)
    two = the_run(output)
    interrupt(process, two)
    assert not (two / "finished.json").exists()
    finish(output, *words)
    assert the_run(output) == two
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
    check(tmp_path, supervised, ("method=supervised",), stop, finish_forked)


@pytest.mark.slow
def test_tinyvit_with_one_process_killed(supervised: Path, tmp_path: Path) -> None:
    teacher = NETWORK % f",checkpoint:{supervised / 'train'}"
    words = ("method=tinyvit", "teacher.train=false", f"teacher.members=[{teacher}]", "recipe.augmentation.mixup=0.8")
    one = run_alone(tmp_path / "one", *words)
    assert list(one.rglob("records.bin"))
    check(tmp_path / "two", one, words, kill_one, finish)


FAILING = """
import os
if os.environ.get("RANK") == "1":
    from vitlab.training.learner import Learner
    after_step = Learner.after_step
    def failing(self):
        after_step(self)
        if self.step == 4:
            raise ZeroDivisionError("provoked")
    Learner.after_step = failing
"""
"""A ``sitecustomize`` module, which Python imports at its start."""


@pytest.mark.slow
def test_an_error_in_one_process_is_reported_once_and_the_run_continues(tmp_path: Path) -> None:
    """First an internal error in the second process, then an image that one of the two cannot read, then none."""
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAILING)
    dice = random.Random(0)
    for number in range(40):
        path = tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (16, 16), dice.randbytes(16 * 16 * 3)).save(path)
    broken, content = path, path.read_bytes()
    words = [f"dataset.root={tmp_path / 'photos'}", "dataset=folder", "dataset.size=32", "dataset.val_fraction=0.2"]
    words += ["audit.before_training=false", "method=supervised", "debug.max_steps=11", "recipe=digits"]
    words += ["recipe.batch_size=8", "recipe.checkpoint_every=2st"]

    def end(env: dict[str, str] | None = None) -> tuple[int, str]:
        process = start_command(tmp_path / "runs", *words, env=env)
        text = process.communicate(timeout=300)[0]
        return process.returncode, " ".join(text.split())

    code, text = end(os.environ | {"PYTHONPATH": f"{tmp_path / 'fault'}:{os.environ.get('PYTHONPATH', '')}"})
    assert code == 1 and text.count("Traceback") == 1, text
    assert "Process 2 of 2 failed (ZeroDivisionError: provoked); the others were stopped." in text
    broken.write_bytes(content[:100])
    code, text = end()
    assert code == 2 and "Traceback" not in text and text.count("cannot be read as an image") == 1, text
    assert str(broken) in text
    broken.write_bytes(content)
    code, text = end()
    assert code == 0 and "(continued where it stopped)" in text, text
    rows = [row for row in read_rows(the_run(tmp_path / "runs") / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 11]


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if not word.startswith("recipe.batch_size")]
    assert main([*words, "recipe.batch_size=15", "method=supervised", "hardware=ddp_cpu", f"output={tmp_path}"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "recipe.batch_size=15 does not divide into 2 device(s)" in text and "multiple of 2" in text
