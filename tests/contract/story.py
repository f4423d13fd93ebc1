"""Runs of the real command line inside this process, stopped and killed at chosen moments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vitlab.cli.main import main
from vitlab.training import interrupt

SMALL = (
    "dataset=digits",
    "hardware=cpu",
    "hardware.threads=1",
    "debug=smoke",
    "debug.max_images=80",
    "debug.max_steps=11",  # 5 steps an epoch: stops in the third
    "recipe.batch_size=16",
    "logger.every=3",
    "evaluation.latency=false",
    "export=none",
    "report.figures=false",
    "evaluation.batch_size=16",  # the store stage labels so many views at a time
)
"""A whole story in seconds: every stage, a few steps each."""


def small(*words: str) -> list[str]:
    """:data:`SMALL` without the keys that ``words`` give."""
    given = {word.partition("=")[0] for word in words}
    return [word for word in SMALL if word.partition("=")[0] not in given]


def tell(output: Path, *words: str) -> int:
    """One command; its exit code. Signals that it asked for are forgotten afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt._requests.clear()
    torch.set_num_threads(1)
    try:
        return main([*small(*words), f"output={output}", *words])
    finally:
        interrupt._requests.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def tell_and_kill(output: Path, *words: str) -> None:
    """The same in a forked process, which something in it kills with SIGKILL."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            tell(output, *words)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the run ended before it was killed"


@contextlib.contextmanager
def before(owner: object, name: str, when: Callable[..., bool], do: Callable[[], None]) -> Iterator[None]:
    """``do`` once, when ``owner.name`` is about to be called with arguments that ``when`` likes."""
    original = getattr(owner, name)
    done = False

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal done
        if not done and when(*args, **kwargs):
            done = True
            do()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


def at(
    owner: object, name: str, when: Callable[..., bool], number: signal.Signals
) -> contextlib.AbstractContextManager[None]:
    """Send ``number`` to this process when ``owner.name`` is about to be called with arguments that ``when`` likes."""
    return before(owner, name, when, lambda: os.kill(os.getpid(), number))


def the_run(output: Path) -> Path:
    """The one run folder below ``output``."""
    (found,) = output.glob("*/*/run.json")
    return found.parent


def content(run: Path) -> dict[str, bytes]:
    """What a run learned and said, without clocks: weights, stored targets, logits and the record of metrics."""
    files = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.parent.name != "export"
        and (path.suffix in (".safetensors", ".npz") or path.name in ("records.bin", "crc32.bin", "keys.txt"))
    }
    rows = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.append(
            {name: value for name, value in row.items() if name not in ("time", "images_per_second", "data_ms")}
        )
    return files | {"metrics": json.dumps(rows, indent=0).encode()}


def assert_same(run: Path, other: Path) -> None:
    """Two runs learned and said the same, bit for bit; what differs is named."""
    one, two = content(run), content(other)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []
