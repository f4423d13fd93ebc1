"""The one DataLoader: batches as the data set makes them, processes that outlive Ctrl-C, errors that stay readable."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from vitlab.data.batch import Batch
from vitlab.data.sources import Source
from vitlab.errors import UserError


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are read; what an optimiser step sees follows from ``batch_size * world * accumulate`` alone.

    Attributes:
        batch_size: of one rank and one micro-batch of training.
        eval_batch_size: of one rank in evaluation; None: ``batch_size``.
        accumulate: micro-batches of one optimiser step.
        workers: loader processes; None: :func:`default_workers`.
        rank, world: which process this is, of how many.
    """

    batch_size: int = 1
    eval_batch_size: int | None = None
    accumulate: int = 1
    workers: int | None = None
    rank: int = 0
    world: int = 1


class Loader(DataLoader[Batch]):
    """Batches that ``sampler`` lists and ``dataset.__getitems__`` makes.

    What a batch holds does not depend on ``workers``. A mistake in the data that a worker process meets is raised here
    as the same :class:`UserError`, without the process's stack trace around it.
    """

    def __init__(self, dataset: Dataset[Batch], sampler: Iterable[list[Any]], workers: int) -> None:
        super().__init__(
            _Courier(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its private iterator class
        try:
            # Threads that a library starts in the forked process (telemetry) inherit the mask.
            with _sigterm_waits(), _deaths_wait():
                batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, EOFError, OSError) as error:
            if (gone := self._process_gone()) is None:
                raise
            raise gone from error

    def _process_gone(self) -> UserError | None:
        """The answer where a loader process is gone; torch may fail at the batch that it was handing over before that
        is known."""
        processes = getattr(self._iterator, "_workers", [])
        if not processes:
            return None
        gone = wait([process.sentinel for process in processes], timeout=2)
        ended = [process for process in processes if process.sentinel in gone]
        if not ended:
            return None
        ended[0].join(timeout=5)  # a sentinel is ready a moment before the exit code is
        how = "was ended from outside" if ended[0].exitcode == -signal.SIGKILL else "ended without a word"
        return UserError(
            f"A loader process ({ended[0].pid}) {how}, most often for want of memory.",
            "The same command continues from the last checkpoint; hardware.workers=1 (or 0) needs less.",
        )


class _Courier(Dataset[Batch]):
    """Hands a UserError over as a value: torch would wrap a raised one in the text of a stack trace."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitems__(self, items: list[Any]) -> Batch | UserError:
        try:
            return cast(Batch, self.dataset.__getitems__(items))  # type: ignore[attr-defined]
        except UserError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _deaths_wait() -> Iterator[None]:
    """Keep torch from handling SIGCHLD: its handler raises wherever the main process is, in a writer or in the midst of
    answering the first death. The loader asks after its processes anyway, after 5 s without a batch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


@contextmanager
def _sigterm_waits() -> Iterator[None]:
    """SIGTERM is held back until the block is left; processes begun in it do not get it before they are prepared."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(number: int) -> None:
    """Leave Ctrl-C, SIGTERM and SIGHUP, which may reach the process group, to the main process.

    It finishes its step, saves, and then ends the workers. torch has already limited this process to one thread and
    ends it when the main process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End on the SIGTERM of the main process, by which multiprocessing ends its children, and on no other process's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def default_workers(source: Source, costly: bool = False) -> int:
    """One process per free core of this rank's share, one core left to the main process; none for data in memory,
    unless much is done to the images (``costly``)."""
    if source.in_memory and not costly:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)
