"""The one DataLoader: complete batches from the data set, workers that ignore Ctrl-C, readable errors."""

from __future__ import annotations

import os
import re
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
    """How batches are read; the images of an optimiser step depend on ``batch_size * world * accumulate`` alone.

    Attributes:
        batch_size: of one rank in one micro-batch of training.
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

    A batch does not depend on ``workers``. A :class:`UserError` in a worker process is raised here as it is, without
    the stack trace of the worker around it.
    """

    def __init__(self, dataset: Dataset[Batch], sampler: Iterable[list[Any]], workers: int) -> None:
        super().__init__(
            _ErrorsAsValues(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_identity,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its private iterator class
        try:
            # Workers are forked here. SIGTERM stays blocked until they have set up their own handling; threads that a
            # library starts in the forked process (telemetry) inherit the mask.
            with _block_sigterm(), _keep_sigchld_handler():
                batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, EOFError, OSError) as error:
            # torch reports a killed worker as whichever of these its queue or its shared memory runs into first.
            if (ended := self._ended_worker_error() or _ended_at_start(error)) is None:
                raise
            raise ended from error

    def _ended_worker_error(self) -> UserError | None:
        """The error of a worker process that has ended; None while all are alive. torch may fail on the batch that the
        worker was sending before the exit itself can be observed, hence the wait."""
        processes = getattr(self._iterator, "_workers", [])
        if not processes:
            return None
        ready = wait([process.sentinel for process in processes], timeout=2)
        ended = [process for process in processes if process.sentinel in ready]
        if not ended:
            return None
        ended[0].join(timeout=5)  # a sentinel is ready a moment before the exit code is
        how = "was killed" if ended[0].exitcode == -signal.SIGKILL else f"exited with code {ended[0].exitcode}"
        return _ended(ended[0].pid, how)


def _ended_at_start(error: Exception) -> UserError | None:
    """The error of a worker that ended while the others were started: torch's own handler raises then, and the loader
    does not hold its processes yet. None for any other error."""
    found = re.match(r"DataLoader worker \(pid (\d+)\) (is killed|exited)", str(error))
    return None if found is None else _ended(found[1], "was killed" if found[2] == "is killed" else "ended")


def _ended(process: object, how: str) -> UserError:
    return UserError(
        f"A loader process ({process}) {how}, most often for lack of memory.",
        "The same command continues from the last checkpoint; hardware.workers=1 (or 0) needs less.",
    )


class _ErrorsAsValues(Dataset[Batch]):
    """Returns a UserError instead of raising it: torch would wrap a raised one in the text of a stack trace."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitems__(self, items: list[Any]) -> Batch | UserError:
        try:
            return cast(Batch, self.dataset.__getitems__(items))  # type: ignore[attr-defined]
        except UserError as error:
            return error


def _identity(batch: Any) -> Any:
    return batch  # ``__getitems__`` has made the batch; a lambda would not pickle where workers are spawned


@contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Undo torch's SIGCHLD handler, which raises at any point of the main process: within the writing of a file, or
    within the handling of the first worker's exit. The loader checks its workers itself after 5 s without a batch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


@contextmanager
def _block_sigterm() -> Iterator[None]:
    """Block SIGTERM until the context is left; processes forked in it inherit the mask (:func:`_prepare_worker`)."""
    if not hasattr(signal, "sigwaitinfo"):  # not Linux
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(number: int) -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP, which may be sent to the process group: the main process handles them.

    The main process finishes its step, saves, and then ends the workers. torch has already limited this process to one
    thread and ends it when the main process has exited.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_of(parent: int) -> None:
    """Exit on a SIGTERM from the main process, with which multiprocessing ends its children, and on no other."""
    # sigwaitinfo gives the sender, which a signal handler in Python does not get.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def default_workers(source: Source, costly: bool = False) -> int:
    """One worker for each core of this rank's share but one, which the main process uses; none for data in memory,
    unless the views are expensive (``costly``)."""
    if source.in_memory and not costly:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)
