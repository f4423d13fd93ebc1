"""A loader whose workers are killed: one error, raised where the next batch is fetched."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from vitlab.data.batch import Batch
from vitlab.data.loader import Loader
from vitlab.errors import UserError


class Numbers(Dataset[Batch]):
    """Batches of their own indices; index 13 cannot be read, index 14 is a mistake of ours."""

    def __getitems__(self, items: list[int]) -> Batch:
        if 13 in items:
            raise UserError("Image 13 is damaged.", "Remove it.")
        if 14 in items:
            raise ValueError("fourteen")
        index = torch.tensor(items)
        return Batch(torch.zeros(len(items), 1, 2, 2), index, index, index)


def loader(workers: int, batches: int = 40) -> Loader:
    return Loader(Numbers(), [[100 + number] for number in range(batches)], workers)


def shoot(children: list[multiprocessing.process.BaseProcess], number: signal.Signals) -> None:
    for child in children:
        os.kill(child.pid or 0, number)
    for child in children:
        child.join(10)
        time.sleep(0.05)


KILLED, ENDED = (signal.SIGKILL, "was killed"), (signal.SIGUSR1, "exited with code -10")


@pytest.mark.parametrize(("number", "how"), [KILLED, ENDED])
def test_a_killed_worker_is_an_error_at_the_next_batch_only(number: signal.Signals, how: str) -> None:
    """Also where two loaders lose their processes, one after the other: torch raises at each death, wherever it is."""
    before = signal.getsignal(signal.SIGCHLD)
    several = [loader(2), loader(1)]
    running: list[Iterator[Batch]] = [iter(each) for each in several]
    for batches in running:
        next(batches)
    children = [child for each in several for child in each._iterator._workers]  # type: ignore[union-attr]
    shoot(children[:1], number)  # nothing is raised here
    with pytest.raises(UserError, match=rf"A loader process \(\d+\) .*{how}.* memory") as excinfo:
        try:
            for _ in running[0]:
                pass
        finally:
            shoot(children[1:], number)  # nor here, in the midst of the answer
    assert "the last checkpoint" in str(excinfo.value)
    with pytest.raises(UserError, match="A loader process"):
        list(running[1])
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_of_others_stay_what_they_are(workers: int) -> None:
    for number, raised in ((13, UserError), (14, ValueError)):
        with pytest.raises(raised) as excinfo:
            list(Loader(Numbers(), [[12], [number]], workers))
        assert "loader process" not in str(excinfo.value)


class Fatal(Numbers):
    """Its process ends at the first batch."""

    def __getitems__(self, items: list[int]) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class SlowSecond:
    """Batches of which the second comes only when a process has read the first."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0]
        time.sleep(5)
        yield [1]


def test_a_worker_that_dies_while_the_loader_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch fetches the first batches while it starts, before the loader has its processes."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as for the first loader of a process
    with pytest.raises(UserError, match=r"A loader process \(\d+\) was killed, most often for lack of memory"):
        next(iter(Loader(Fatal(), SlowSecond(), 1)))
