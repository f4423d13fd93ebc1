"""Reinforcement by 1, 2 and 4 processes gives the same bytes, also after SIGKILL of one of them or of all.

Complete commands in gloo processes; a store that was interrupted is completed by another number of processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.contract.story import run_command, the_run
from tests.contract.together import run_ranks
from vitlab.distill import store_writer
from vitlab.distill.store import TargetStore
from vitlab.training import label_views

pytestmark = pytest.mark.slow

SAMPLES = 6
SHAPE: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
WORDS = (
    *("method=reinforce", "method.erm=false", "method.views.variant=randaug_mixing"),
    *("method.group=4", f"debug.max_slots={SAMPLES}"),  # two waves: four samples of an image at once, then two of two
    *("debug.max_steps=1", "evaluation=quick", "evaluation.resamples=0", "recipe=digits"),
    *("model=vit_small", "model.name=vit_tiny_patch16_224", *(f"model.args.{k}={v}" for k, v in SHAPE.items())),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command, with a teacher of random weights."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SHAPE).state_dict(), path)
    args = ",".join(f"{name}:{value}" for name, value in SHAPE.items())
    member = f"{{name:vit_tiny_patch16_224,args:{{{args}}},checkpoint:{path}}}"
    return *WORDS, "teacher.train=false", f"teacher.members=[{member}]"


@pytest.fixture(scope="module")
def expected(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of a single process."""
    output = tmp_path_factory.mktemp("one")
    assert run_command(output, *words) == 0
    store = TargetStore.open(the_run(output) / "reinforce" / "targets")
    assert (store.spec.images, store.spec.slots, store.verify()) == (80, SAMPLES, [])
    return stored(output)


def stored(output: Path) -> dict[str, bytes]:
    """Every file of the store."""
    folder = the_run(output) / "reinforce" / "targets"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_processes(
    output: Path, words: tuple[str, ...], processes: int, die: Callable[[int], None] | None = None
) -> list[int]:
    """Run the command in ``processes`` processes; their exit codes."""
    return run_ranks(output, *words, f"trainer.devices={processes}", processes=processes, setup=die)


def die_at(owner: object, name: str, calls: int, ranks: tuple[int, ...]) -> Callable[[int], None]:
    """In the processes ``ranks``: SIGKILL instead of call number ``calls`` of ``owner.name``. Until then all of them
    flush every record, so that there is something to continue."""

    def setup(rank: int) -> None:
        write, original, count = store_writer.SlotWriter.write, getattr(owner, name), 0

        def at_once(self: store_writer.SlotWriter, *args: object, **kwargs: object) -> int:
            new = write(self, *args, **kwargs)  # type: ignore[arg-type]  # any arguments
            self.flush()
            return new

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == calls and rank in ranks:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        store_writer.SlotWriter.write = at_once  # type: ignore[method-assign]  # in this process alone
        setattr(owner, name, counted)

    return setup


@pytest.mark.parametrize("processes", [2, 4])  # one: below
def test_any_number_of_processes(
    processes: int, words: tuple[str, ...], expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert run_processes(tmp_path, words, processes) == [0] * processes
    assert stored(tmp_path) == expected


# Of two processes each writes 40 blocks of four views in the first wave, then 20 of four in the second.
KILLS = {
    "one of two, first wave": (die_at(label_views, "_write", 50, (1,)), 2, 4),
    "all of four, second wave": (die_at(label_views, "_write", 90, (0, 1, 2, 3)), 4, 2),
    "the first of two, while it seals": (die_at(store_writer, "write_json", 2, (0,)), 2, 1),
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_completed_by_another_number_of_processes(
    kill: str, words: tuple[str, ...], expected: dict[str, bytes], tmp_path: Path
) -> None:
    die, processes, others = KILLS[kill]
    codes = run_processes(tmp_path, words, processes, die)
    assert -signal.SIGKILL in codes and 0 not in codes
    store = TargetStore.open(the_run(tmp_path) / "reinforce" / "targets", allow_partial=True)
    there = sum(store.count(slot) for slot in range(SAMPLES))
    assert 0 < there < 80 * SAMPLES, "killed too early or too late to test anything"
    assert run_processes(tmp_path, words, others) == [0] * others
    assert stored(tmp_path) == expected
