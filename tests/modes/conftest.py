"""One trained run, shared by the tests of a module, and the command line inside this process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vitlab.cli.main import main
from vitlab.training import interrupt

QUIET = ("hardware=cpu", "hardware.threads=1", "hardware.workers=0")

Ask = Callable[..., int]


def ask(output: Path, *words: str) -> int:
    """One command on runs below ``output``; its exit code. Signal handlers are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    try:
        return main([*QUIET, f"output={output}", *words])
    finally:
        interrupt._requests.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def train(output: Path, *words: str) -> Path:
    """A small supervised run on real digits (some seconds); its folder."""
    usual: tuple[str, ...] = ("method=supervised", "dataset=digits", "debug.max_images=200", "recipe.duration=6ep")
    usual += ("recipe.batch_size=32", "evaluation.latency=false", "evaluation.batch_size=64", "export=none")
    given = {word.partition("=")[0] for word in words}
    assert ask(output, *(word for word in usual if word.partition("=")[0] not in given), *words) == 0
    return max(output.glob("*/*/run.json"), key=lambda marker: marker.stat().st_mtime_ns).parent


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs of this module are made."""
    yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    """The folder of a finished run: supervised, 200 real digits, a few seconds of training, one stage ``train``."""
    return train(output)
