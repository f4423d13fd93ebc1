"""Killed at a write event and continued by the same command, a run has the bytes of an uninterrupted one.

Every method's smallest run makes some hundred write events (tests/contract/kills.py). The tests of `make test` kill one
run of a method several times over; the slow ones kill at every event, each time from the start, and each of two
processes. They come in :data:`PARTS` parts, each an even sample of all events:
``pytest -m slow tests/contract/test_killed_at_writes.py -n 16``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.kills import KILL, POWER, POWER_AND_NAMES, TORN, WriteEvents
from tests.contract.story import run_command
from tests.contract.together import run_ranks
from tests.shared import skip_where_torch_is_not_forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")

PARTS = 16

NETWORK = "{name:vit_tiny_patch16_224,args:{patch_size:8,embed_dim:16,depth:1,num_heads:2}}"
VIT = (
    *("model=vit_small", "model.name=vit_tiny_patch16_224", "dataset.size=32"),
    *(f"model.args.{one}" for one in ("patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")),
)
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

CLOCKS = ("time", "seconds", "created", "date", "images_per_second", "data_ms", "digest")
"""Keys that differ between two runs; the digest of model.json is also over its date."""

RECORDS = (
    "lock",
    "commands.jsonl",
    "environment.jsonl",
    "report.json",
    "report.html",
    "report.md",
    "finished.json",
)
OWN = "own notes.txt"
"""A file of the user's."""


@dataclass(frozen=True)
class Kill:
    """The end of the process ``rank`` at event ``at``, a number or the operation and the end of the path."""

    at: int | str
    how: str
    rank: int = 0


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run of a method, which lay where the killed ones lie."""

    output: Path
    words: tuple[str, ...]
    processes: int
    events: list[list[str]]  # of each rank
    result: dict[str, bytes]


def command(
    output: Path, words: tuple[str, ...], processes: int = 1, kill: Kill | None = None
) -> tuple[int, str, list[list[str]]]:
    """A command in forked processes, one of which may be killed; its exit code (negative: the signal that ended that
    process), its output and the write events of each rank."""
    skip_where_torch_is_not_forked()
    log, events = output.with_suffix(".log"), [output.with_suffix(f".events{rank}") for rank in range(processes)]
    log.unlink(missing_ok=True)

    def watch(rank: int) -> WriteEvents:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        at = kill.at if kill is not None and kill.rank == rank else None
        how = kill.how if kill is not None else KILL
        watched = WriteEvents(output, events[rank], output.with_suffix(f".aside{rank}"), at, how)
        watched.install()
        return watched

    if processes > 1:
        codes = run_ranks(output, *words, processes=processes, setup=watch)
        code = max(codes) if kill is None else codes[kill.rank]
    elif child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    else:
        code = 1
        try:
            watched = watch(0)
            code = run_command(output, *words)
            if code == 0 and (unseen := watched.unseen()) and not (output / OWN).exists():
                print("written, but not seen:", unseen)
                code = 1
        finally:
            os._exit(code)
    return code, log.read_text(), [file.read_text().splitlines() for file in events]


def result(output: Path) -> dict[str, bytes]:
    """The files of the run below ``output``, without clocks."""
    return {
        str(path.relative_to(output)): without_clocks(path)
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != OWN
    }


def without_clocks(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name in RECORDS:
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


def uninterrupted(output: Path, words: tuple[str, ...], processes: int = 1) -> Reference:
    output.mkdir(exist_ok=True)
    code, text, events = command(output, words, processes)
    assert code == 0, text
    reference = Reference(output, words, processes, events, result(output))
    shutil.rmtree(output)
    return reference


def faults(reference: Reference, *kills: Kill) -> list[str]:
    """What is wrong after commands that were killed one after the other, and one that was not."""
    output, words, processes = reference.output, reference.words, reference.processes
    done: list[str] = []
    shutil.rmtree(output, ignore_errors=True)
    for folder in output.parent.glob("output.aside*"):
        shutil.rmtree(folder)
    output.mkdir()
    own = [output / OWN]
    own[0].write_text("mine")
    for kill in kills:
        code, text, events = command(output, words, processes, kill)
        last = events[kill.rank][-1] if events[kill.rank] else "no event"
        done.append(f"{kill.how} at event {kill.at} of rank {kill.rank} ({last})")
        if code != -signal.SIGKILL:
            return [f"{', '.join(done)}: ended with {code}: {text}"]
        for file in output.glob("*/*/run.json"):
            own += [file.with_name(OWN), *(marker.with_name(OWN) for marker in file.parent.glob("*/done.json"))]
            for path in own:
                path.write_text("mine")
    code, text, _ = command(output, words, processes)
    if code != 0:
        return [f"{', '.join(done)}: continued, ended with {code}: {text}"]
    found = result(output)
    wrong = [f"{name} differs" for name in found if found[name] != reference.result.get(name, found[name])]
    wrong += [f"{name} is lost" for name in reference.result.keys() - found.keys()]
    wrong += [f"{name} is new" for name in found.keys() - reference.result.keys()]
    wrong += [f"{path} is deleted" for path in own if not path.exists()]
    wrong += ["something was repaired"] if "repaired" in text else []
    return [f"{', '.join(done)}: {'; '.join(wrong)}"] if wrong else []


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a run imports, once, in the process that the commands are forked from."""
    assert run_command(tmp_path_factory.mktemp("imported"), *METHODS["supervised"]) == 0


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        (
            "tinyvit",
            (
                Kill("write slot_00001/records.bin", TORN),
                Kill("rename pretrain/model.safetensors", POWER_AND_NAMES),
                Kill("open evaluation/.comparisons.json.tmp", KILL),
            ),
        ),
        (
            "reinforce",
            (
                Kill("write environment.jsonl", TORN),
                Kill("fsync slot_00000/.sealed.json.tmp", POWER),
                Kill("remove kd/checkpoint.ckpt", KILL),
            ),
        ),
        (
            "deepmad",
            (
                Kill("write solve/journal.jsonl", TORN),
                Kill("rename train/checkpoint.ckpt", POWER_AND_NAMES),
                Kill("rename benchmark/done.json", KILL),
            ),
        ),
    ],
)
def test_killed_three_times(method: str, kills: tuple[Kill, ...], tmp_path: Path) -> None:
    found = faults(uninterrupted(tmp_path / "output", METHODS[method]), *kills)
    assert not found, found[0]


def cases(reference: Reference) -> list[Kill]:
    """Every event is one to be killed before; a write is torn, too; a loss of power matters most just before what was
    written is synced, and before names change."""
    found = []
    for rank, events in enumerate(reference.events):
        for at, event in enumerate(events):
            operation = event.partition(" ")[0]
            ways = [KILL]
            if operation == "write":
                ways += [TORN]
            if operation in ("fsync", "rename", "remove") and reference.processes == 1:
                ways += [POWER, POWER_AND_NAMES]
            found += [Kill(at, how, rank) for how in ways]
    return found


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, int], Reference]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_event(
    method: str,
    processes: int,
    part: int,
    references: dict[tuple[str, int], Reference],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    key = (method, processes)
    if key not in references:
        references[key] = uninterrupted(tmp_path_factory.mktemp(method) / "output", METHODS[method], processes)
    found = [line for kill in cases(references[key])[part::PARTS] for line in faults(references[key], kill)]
    assert not found, "\n".join(found)
