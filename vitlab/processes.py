"""A run in several processes of this machine, one for each device: start them, pass signals on, tell how it ended.

torch's elastic launcher starts ``python -m vitlab.worker`` for every rank. This process holds the run's lock and talks
to the user; a worker leaves how it ended as a small file (:class:`Outcome`) in a folder that both know.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from uuid import uuid4

from vitlab.config import Config, RecipeConfig
from vitlab.errors import Interrupted, UserError
from vitlab.files import read_json, write_json
from vitlab.run import Run

LAUNCH = "launch.json"
"""What the workers read, in the run's folder: the finished configuration and the command."""

PATIENCE = 30
"""Seconds that processes get to end once one of them has failed."""


@dataclass
class Outcome:
    """How a worker ended, if it could still say so."""

    kind: str  # "mistake" (the user's), "stopped" (asked to), "failure" (ours)
    text: str  # the paragraph, or the stack trace
    cure: str = ""
    time: float = 0.0


def known_count(config: Config) -> int | None:
    """How many processes ``trainer.devices`` means, as far as that can be said without torch; None: all GPUs."""
    devices = config.trainer.devices
    if devices == "auto":
        return 1 if config.trainer.accelerator in ("cpu", "mps") else None
    return len(devices) if isinstance(devices, list) else int(devices)


def count(config: Config) -> int:
    """How many processes ``trainer.devices`` means on this machine.

    Raises:
        UserError: there are not so many devices.
    """
    import torch

    trainer = config.trainer
    here = torch.cuda.device_count()
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: one command starts the processes of one machine.",
            "Leave it at 1.",
        )
    if trainer.accelerator == "gpu" and not here and not torch.backends.mps.is_available():
        raise UserError("There is no GPU here that torch can use.", "Choose hardware=cpu, or hardware=auto.")
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("hardware=mps: this is no Apple machine, or its torch has no MPS.", "Choose hardware=auto.")
    known = known_count(config)
    if known is None:
        return max(here, 1)
    cuda = trainer.accelerator in ("auto", "gpu") and here > 0
    listed = trainer.devices if isinstance(trainer.devices, list) else range(known)
    if isinstance(trainer.devices, list) and not cuda:
        raise UserError(f"trainer.devices={trainer.devices}: only GPUs have numbers.", "Give how many instead.")
    if cuda and max(listed) >= here:
        raise UserError(f"trainer.devices={trainer.devices}: this machine has {here} GPU(s).", "Give fewer, or auto.")
    if known > 1 and not cuda and trainer.accelerator != "cpu" and torch.backends.mps.is_available():
        raise UserError(f"trainer.devices={known}: MPS is one device.", "Leave it at 1.")
    if trainer.sync_batchnorm and known > 1 and not cuda:
        raise UserError("trainer.sync_batchnorm: torch synchronises statistics on GPUs only.", "Leave it out.")
    return known


def check_division(recipes: dict[str, RecipeConfig], processes: int) -> None:
    """Refuse a global batch that does not divide into equal parts.

    Raises:
        UserError: naming the key and the batches that would do.
    """
    for key, recipe in recipes.items():
        if recipe.batch_size % (parts := processes * recipe.accumulate):
            raise UserError(
                f"{key}.batch_size={recipe.batch_size} does not divide into {processes} device(s) × {key}.accumulate="
                f"{recipe.accumulate}.",
                f"Take a multiple of {parts}; lr is meant for the whole batch, so scale it likewise.",
            )


def work_together(run: Run, config: Config, tree: dict[str, object], command: str, processes: int) -> int:
    """The work of ``run`` in so many processes; the exit code (0, or 1 with the reason told).

    Raises:
        UserError: a process met a mistake that the user can mend.
        Interrupted: stopped by a signal, everything saved.
    """
    write_json(run.folder / LAUNCH, {"command": command, "tree": tree})
    with tempfile.TemporaryDirectory(prefix="vitlab-") as name:
        folder = Path(name)
        launch = _Launch(run.folder, folder, processes)
        launch.start()
        with _PassOn(folder, processes) as signals:
            while launch.is_alive():
                launch.join(0.1)
                signals.deliver()
        outcomes = {rank: one for rank in range(processes) if (one := read_outcome(folder, rank))}
        return _told(launch, outcomes, processes, signals.times)


class _Launch(threading.Thread):
    """torch's elastic agent. In a thread, where it leaves signals alone: its own way is to kill after 30 seconds."""

    def __init__(self, run: Path, folder: Path, processes: int) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.folder, self.processes = run, folder, processes
        self.failed: dict[int, tuple[int, int]] = {}  # rank: exit code, time in seconds
        self.error: Exception | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.processes,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # a failed run is continued by its command, from what is on disk
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "logs")),
        )
        words = ["-m", "vitlab.worker", str(self.run_folder), str(self.folder), str(os.getpid())]
        logging.disable(logging.CRITICAL)  # the agent's log tells in twenty lines what _told tells in one
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            self.failed = {rank: (one.exitcode, one.timestamp) for rank, one in error.failures.items()}
        except Exception as error:
            self.error = error
        finally:
            logging.disable(logging.NOTSET)


class _PassOn:
    """Signals to this process go to every worker once it listens; a second one kills them."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder = folder
        self.waiting = set(range(processes))
        self.processes = processes
        self.times: list[float] = []

    def __enter__(self) -> _PassOn:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        from vitlab.training.interrupt import SAME, SAVING

        now = time.monotonic()
        if not self.times:
            print(f"\n{signal.Signals(number).name}: {SAVING}", file=sys.stderr, flush=True)
        elif now - self.times[0] < SAME:
            return
        else:
            self.waiting = set(range(self.processes))
        self.times.append(now)

    def deliver(self) -> None:
        """Pass on what was heard to whoever is ready to hear it."""
        if not self.times:
            return
        number = signal.SIGTERM if len(self.times) == 1 else signal.SIGKILL
        for rank in sorted(self.waiting):
            path = self.folder / f"{rank}.pid"
            if path.exists():
                self.waiting.discard(rank)
                try:
                    os.kill(int(path.read_text()), number)
                except ProcessLookupError:
                    continue


def outcome_path(folder: Path, rank: int) -> Path:
    """Where a worker leaves how it ended."""
    return folder / f"{rank}.json"


def write_outcome(folder: Path, rank: int, outcome: Outcome) -> None:
    """A worker's last words."""
    outcome.time = time.time()
    write_json(outcome_path(folder, rank), asdict(outcome))


def read_outcome(folder: Path, rank: int) -> Outcome | None:
    """How ``rank`` ended; None if it finished or could not say."""
    path = outcome_path(folder, rank)
    return Outcome(**read_json(path)) if path.exists() else None


def _told(launch: _Launch, outcomes: dict[int, Outcome], processes: int, asked: list[float]) -> int:
    """From what the ranks left to what the user hears."""
    if launch.error is not None:
        raise RuntimeError("the processes could not be started") from launch.error
    mistakes = sorted((one for one in outcomes.values() if one.kind == "mistake"), key=lambda one: one.time)
    if mistakes:
        raise UserError(mistakes[0].text, mistakes[0].cure)
    if len(asked) > 1:
        raise Interrupted("Stopped at once; the same command continues from the last checkpoint.")
    stopped = [one for one in outcomes.values() if one.kind == "stopped"]
    if stopped and asked:
        raise Interrupted(stopped[0].text)
    if not launch.failed and not outcomes:
        return 0
    if asked and all(rank in launch.failed and launch.failed[rank][0] == -signal.SIGTERM for rank in range(processes)):
        raise Interrupted("Stopped before the work began; the same command starts it.")
    failures = sorted((one.time, rank) for rank, one in outcomes.items() if one.kind == "failure")
    first = min((when for _, when in launch.failed.values()), default=0)
    for rank, (code, when) in sorted(launch.failed.items()):
        # A process that the launcher ended, because another had failed, ended after it or by SIGTERM.
        if code < 0 and code != -signal.SIGTERM and rank not in outcomes and when <= first + 1:
            print(
                f"Process {rank + 1} of {processes} was ended by {signal.Signals(-code).name} from outside vitlab (out "
                "of memory, or somebody's kill); the others were stopped. The same command continues from the last "
                "checkpoint.",
                file=sys.stderr,
            )
            return 1
    if failures:
        _, rank = failures[0]
        print(f"Process {rank + 1} of {processes} failed:\n{outcomes[rank].text}", file=sys.stderr)
        return 1
    codes = ", ".join(f"{rank + 1}: {code}" for rank, (code, _) in sorted(launch.failed.items()))
    print(f"Processes ended without a word (exit codes {codes}); the same command continues.", file=sys.stderr)
    return 1
