"""Runs of the command line inside this process, with signals at chosen calls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.shared import skip_where_torch_is_not_forked
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
    "evaluation.batch_size=16",  # also the batch size of the store stage
)
"""Overrides for a complete run in seconds: every stage, a few steps each."""

TEACHER = ("teacher.recipe.batch_size=16", "teacher.members.0.args.channels=[16,16,32,64]")
"""Overrides for a smaller teacher, trained in epochs of several steps: it is validated and saved after each epoch."""


def small(*words: str) -> list[str]:
    """:data:`SMALL` without the keys that ``words`` give."""
    given = {word.partition("=")[0] for word in words}
    return [word for word in SMALL if word.partition("=")[0] not in given]


def run_command(output: Path, *words: str) -> int:
    """Run one command; its exit code. Pending stop requests and signal handlers are reset afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    interrupt._requests.clear()
    torch.set_num_threads(1)
    try:
        return main([*small(*words), f"output={output}", *words])
    finally:
        interrupt._requests.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_and_kill(output: Path, *words: str) -> None:
    """The same in a forked process, which must be killed by SIGKILL."""
    skip_where_torch_is_not_forked()
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            run_command(output, *words)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the run ended before it was killed"


@contextlib.contextmanager
def before(owner: object, name: str, when: Callable[..., bool], do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` once, before ``owner.name`` is called with arguments for which ``when`` is true."""
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
    """Send the signal ``number`` to this process when :func:`before` would call ``do``."""
    return before(owner, name, when, lambda: os.kill(os.getpid(), number))


def the_run(output: Path) -> Path:
    """The one run folder below ``output``."""
    (file,) = output.glob("*/*/run.json")
    return file.parent


def content(run: Path) -> dict[str, bytes]:
    """Results of a run without times: weights, stored targets, logits and the record of metrics."""
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
    """Two runs have the same results, bit for bit."""
    one, two = content(run), content(other)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []
