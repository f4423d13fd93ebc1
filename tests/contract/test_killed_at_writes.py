"""Killed at a write event and continued by the same command, a run has the bytes of an uninterrupted one.

Every method's smallest run makes some hundred write events (tests/contract/kills.py). The tests of `make test` kill one
run of each method several times over; the slow ones kill at every event, each time from the start, in :data:`PARTS`
parts: ``pytest -m slow tests/contract/test_killed_at_writes.py -n 16``, and one part alone is a sample of all.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.kills import KILL, POWER, POWER_AND_NAMES, TORN, WriteEvents
from tests.contract.story import run_command
from tests.shared import skip_where_torch_is_not_forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")

PARTS = 16

NETWORK = "{name:vit_tiny_patch16_224,args:{patch_size:8,embed_dim:16,depth:1,num_heads:2}}"
VIT = ("model=vit_small", "model.name=vit_tiny_patch16_224", "dataset.size=32")
VIT += tuple(f"model.args.{one}" for one in ("patch_size=8", "embed_dim=16", "depth=1", "num_heads=2"))
SHORT = (
    "debug.max_images=32",
    "debug.max_steps=5",  # 4 steps an epoch
    "recipe.batch_size=8",
    "evaluation.batch_size=8",
    "recipe.checkpoint_every=2st",
    "logger.every=1",
    "evaluation=quick",
)
METHODS = {
    "supervised": ("method=supervised", *VIT, *SHORT),
    "multilabel": ("method=supervised", "task=multilabel", "dataset=digits_multi", "recipe=digits_multi", *VIT, *SHORT),
    "tinyvit": ("method=tinyvit", f"teacher.members=[{NETWORK}]", *VIT, *SHORT),
    "reinforce": ("method=reinforce", "method.kd=true", f"teacher.members=[{NETWORK}]", *VIT, *SHORT),
    "deepmad": (
        *("method=deepmad", "method.train=true", "method.budget.params=0.1M", "method.budget.flops=8M"),
        *("method.chains=32", "method.steps=60", "dataset.size=32", *SHORT),
    ),
}

CLOCKS = ("time", "seconds", "created", "date", "images_per_second", "data_ms")
NOT_COMPARED = ("lock", "commands.jsonl", "environment.jsonl", "report.json", "report.html", "report.md", "finished.json")
OWN = "own notes.txt"
"""A file of the user's."""


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run of a method, which lay where the killed ones lie."""

    output: Path
    words: tuple[str, ...]
    events: list[str]
    result: dict[str, bytes]


def command(output: Path, words: tuple[str, ...], at: int | None = None, how: str = KILL) -> tuple[int, str, list[str]]:
    """A command in a forked process that ends at event ``at``; its exit code (negative: the signal), its output and
    its write events."""
    skip_where_torch_is_not_forked()
    log, events = output.with_suffix(".log"), output.with_suffix(".events")
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), log.read_text(), events.read_text().splitlines()
    code = 1
    try:
        with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            watched = WriteEvents(output, events, output.with_suffix(".aside"), at, how)
            watched.install()
            code = run_command(output, *words)
            if code == 0 and at is None and (unseen := watched.unseen()):
                print("written, but not seen:", unseen)
                code = 1
    finally:
        os._exit(code)


def result(output: Path) -> dict[str, bytes]:
    """The files of the run below ``output``, without clocks."""
    return {
        str(path.relative_to(output)): without_clocks(path)
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != OWN
    }


def without_clocks(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name in NOT_COMPARED:
        return b""
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(_timeless(json.loads(line))) for line in content.splitlines()).encode()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(content)), indent=0).encode()
    return content


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: None if name in CLOCKS else _timeless(one) for name, one in value.items()}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def uninterrupted(output: Path, words: tuple[str, ...]) -> Reference:
    output.mkdir(exist_ok=True)
    code, text, events = command(output, words)
    assert code == 0, text
    reference = Reference(output, words, events, result(output))
    shutil.rmtree(output)
    return reference


def faults(reference: Reference, kills: list[tuple[int, str]]) -> list[str]:
    """What is wrong after commands that were killed one after the other, and one that was not."""
    output, done = reference.output, []
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(output.with_suffix(".aside"), ignore_errors=True)
    output.mkdir()
    own = [output / OWN]
    own[0].write_text("mine")
    for at, how in kills:
        code, text, events = command(output, reference.words, at, how)
        done.append(f"{how} at {at} ({events[-1]})")
        if code != -signal.SIGKILL:
            return [f"{', '.join(done)}: ended with {code}: {text}"]
        for file in output.glob("*/*/run.json"):
            own += [file.with_name(OWN), *(marker.with_name(OWN) for marker in file.parent.glob("*/done.json"))]
            for path in own:
                path.write_text("mine")
    code, text, _ = command(output, reference.words)
    if code != 0:
        return [f"{', '.join(done)}: continued, ended with {code}: {text}"]
    found = result(output)
    wrong = [f"{name} differs" for name in found if found[name] != reference.result.get(name, found[name])]
    wrong += [f"{name} is lost" for name in reference.result.keys() - found.keys()]
    wrong += [f"{name} is new" for name in found.keys() - reference.result.keys()]
    wrong += [f"{path} is deleted" for path in own if not path.exists()]
    return [f"{', '.join(done)}: {'; '.join(wrong)}"] if wrong else []


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a run imports, once, in the process that the commands are forked from."""
    assert run_command(tmp_path_factory.mktemp("imported"), *METHODS["supervised"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_killed_again_and_again(method: str, tmp_path: Path) -> None:
    """Each command is killed some events after the one before it."""
    reference = uninterrupted(tmp_path / "output", METHODS[method])
    dice = random.Random(method)
    kills = [(dice.randrange(len(reference.events) * 3 // 5), KILL)]
    kills += [(dice.randrange(10, 40), how) for how in (TORN, POWER, POWER_AND_NAMES)]
    assert faults(reference, kills) == []


def cases(events: list[str]) -> list[tuple[int, str]]:
    """Every event is one to be killed before; a write is torn, too; a loss of power matters most just before what was
    written is synced, and before names change."""
    all_ = [(at, KILL) for at in range(len(events))]
    all_ += [(at, TORN) for at, event in enumerate(events) if event.startswith("write ")]
    sync = ("fsync ", "rename ", "remove ")
    return all_ + [
        (at, how) for at, event in enumerate(events) if event.startswith(sync) for how in (POWER, POWER_AND_NAMES)
    ]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_event(
    method: str, part: int, references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if method not in references:
        references[method] = uninterrupted(tmp_path_factory.mktemp(method) / "output", METHODS[method])
    reference = references[method]
    assert [line for case in cases(reference.events)[part::PARTS] for line in faults(reference, [case])] == []
