"""Two trained runs, made once in a session and copied for each module, and the command line inside this process."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.shared import made_once
from vitlab.cli.main import main
from vitlab.training import interrupt

QUIET = ("hardware=cpu", "hardware.threads=1", "hardware.workers=0")

SHALLOW = tuple(
    f"model.args.{word}" for word in ("embed_dims=[16,32]", "depths=[1,1]", "num_heads=[1,1]", "window_sizes=[8,4]")
)
"""A network that is exported to ONNX in half the time of the usual one."""

Ask = Callable[..., int]


def ask(output: Path, *words: str) -> int:
    """One command on runs below ``output``; its exit code."""
    with signals_put_back():
        return main([*QUIET, f"output={output}", *words])


@contextlib.contextmanager
def signals_put_back() -> Iterator[None]:
    """A command in this process: afterwards signals do what they did before, and none is waiting."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    torch.set_num_threads(1)
    try:
        yield
    finally:
        interrupt._requests.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def train(output: Path, *words: str) -> Path:
    """A small supervised run on real digits (some seconds); its folder."""
    usual: tuple[str, ...] = ("method=supervised", "dataset=digits", "debug.max_images=200", "recipe.duration=6ep")
    usual += ("recipe.batch_size=32", "evaluation.latency=false", "evaluation.batch_size=64", "export=none")
    usual += ("report.figures=false",)
    given = {word.partition("=")[0] for word in words}
    assert ask(output, *(word for word in usual if word.partition("=")[0] not in given), *words) == 0
    return max(output.glob("*/*/run.json"), key=lambda marker: marker.stat().st_mtime_ns).parent


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs of this module are made."""
    yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: supervised, 200 real digits, some seconds of training, one stage ``train``."""
    return copied(made_once(tmp_path_factory, "run", train), output)


@pytest.fixture(scope="module")
def other(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run: fewer steps, so a worse model, and a fifth of every class held out of its training."""
    words = ("debug.max_steps=12", "dataset.val_fraction=0.2")
    return copied(made_once(tmp_path_factory, "other", lambda folder: train(folder, *words)), output)


def copied(made: Path, output: Path) -> Path:
    """A copy below ``output`` of the one run below ``made``: tests of a module write into theirs."""
    (marker,) = made.glob("*/*/run.json")
    return Path(shutil.copytree(marker.parent, output / marker.parent.relative_to(made)))
