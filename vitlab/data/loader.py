"""The one DataLoader: whole batches from the data set, processes that outlive Ctrl-C, errors that stay readable."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from vitlab.data.batch import Batch
from vitlab.data.sources import Source
from vitlab.errors import UserError


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
            with _sigterm_waits():  # what a fork starts in a new process, telemetry's threads say, inherits the mask
                batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, EOFError, OSError) as error:
            if (ended := loader_ended(error) or self._process_gone()) is None:
                raise
            raise ended from error

    def _process_gone(self) -> UserError | None:
        """The answer where a loader process died while it was handing a batch over: torch then says nothing of it."""
        for process in getattr(self._iterator, "_workers", []):
            process.join(timeout=0.5)
            if not process.is_alive():
                return _told(str(process.pid), "Killed" if process.exitcode == -signal.SIGKILL else None)
        return None


_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: (\w[\w ]*))?")
"""What torch says of a loader process that is gone."""


def loader_ended(error: Exception) -> UserError | None:
    """The answer where ``error`` is torch's word of a loader process that is gone; it may come at any place."""
    if (found := _ENDED.search(str(error))) is None:
        return None
    return _told(found[1], found[2])


def _told(processes: str, by: str | None) -> UserError:
    how = f"was ended from outside ({by})" if by else "ended without a word"
    return UserError(
        f"A loader process ({processes}) {how}, most often for want of memory.",
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
    """Leave Ctrl-C and SIGTERM, which may reach the whole process group, to the main process.

    It finishes its step, saves, and then ends the workers. torch has already limited this process to one thread and
    ends it when the main process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End on the SIGTERM of the main process, by which multiprocessing ends its children; on nobody else's."""
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
