"""A run in several processes, one for each device of this machine: start them, pass signals on, tell how it ended.

torch's elastic launcher starts ``python -m vitlab.launch.worker`` for every rank. This process holds the run's lock and
talks to the user; a worker leaves how it ended as a small file (:class:`Outcome`) in a folder that both know. Several
machines do so side by side (:mod:`vitlab.launch.rendezvous`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from vitlab.config import Config
from vitlab.errors import Interrupted, UserError
from vitlab.files import read_json, write_json
from vitlab.launch.rendezvous import RENDEZVOUS_TIMEOUT, NodeInfo, Outcome, Rendezvous
from vitlab.run.run import Run
from vitlab.signals import SignalListener

LAUNCH = "launch.json"
"""What the workers read, in the run's folder: the finished configuration and the command."""

PATIENCE = 30
"""Seconds that processes get to end once one of them has failed."""


def known_process_count(config: Config) -> int | None:
    """How many processes ``trainer.devices`` means, as far as that can be said without torch; None: all GPUs."""
    devices = config.trainer.devices
    if devices == "auto":
        return 1 if config.trainer.accelerator in ("cpu", "mps") else None
    return len(devices) if isinstance(devices, list) else int(devices)


def process_count(config: Config) -> int:
    """How many processes ``trainer.devices`` means on this machine.

    Raises:
        UserError: there are not so many devices.
    """
    import torch

    trainer = config.trainer
    here = torch.cuda.device_count()
    if trainer.accelerator == "gpu" and not here and not torch.backends.mps.is_available():
        raise UserError("There is no GPU here that torch can use.", "Choose hardware=cpu, or hardware=auto.")
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("hardware=mps: this is no Apple machine, or its torch has no MPS.", "Choose hardware=auto.")
    known = known_process_count(config)
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


def run_distributed(
    run: Run, config: Config, tree: dict[str, object], command: str, processes: int, here: NodeInfo | None = None
) -> int:
    """The work of ``run`` in so many processes of each machine; the exit code (0, or 1 with the reason told).

    Raises:
        UserError: a process met a mistake that the user can mend.
        Interrupted: stopped by a signal, everything saved.
    """
    from vitlab.training.interrupt import SAVING

    here = here or NodeInfo()
    if here.is_main:
        write_json(run.folder / LAUNCH, {"command": command, "tree": tree})
    talk = Rendezvous(here) if here.count > 1 else None
    if talk is not None and here.is_main:
        talk.hold(run.folder, tree)
    with tempfile.TemporaryDirectory(prefix="vitlab-") as name:
        folder = Path(name)
        launch = _Launch(run.folder, folder, processes, here)
        ranks = range(here.number * processes, (here.number + 1) * processes)
        launch.start()
        if talk is not None:
            talk.start()
        with SignalListener(SAVING) as heard:
            passed = 0
            waiting = set(ranks)
            while launch.is_alive():
                launch.join(0.1)
                lost = talk is not None and talk.trouble is not None
                if lost and (run.folder / "finished.json").exists():
                    break  # torch's launcher would wait for the lost one's for minutes, and there is nothing left to do
                asked = 2 if lost else min(len(heard.times), 2)
                if asked > passed:
                    passed, waiting = asked, set(ranks)
                if passed:
                    _deliver(folder, waiting, signal.SIGTERM if passed == 1 else signal.SIGKILL)
        outcomes = {rank: one for rank in ranks if (one := read_outcome(folder, rank))}
        ending = _ending(launch, outcomes, processes * here.count, len(heard.times))
        if talk is not None:
            if ending is not None and ending.kind == "failure":  # perhaps no more than the echo of another machine's
                ending = talk.reason(talk.silence + 5) or ending
            ending = talk.trouble if talk.trouble is not None and ending is not None else ending
            talk.end(ending)
        return _told(ending)


class _Launch(threading.Thread):
    """torch's elastic agent. In a thread, where it leaves signals alone: its own way is to kill after 30 seconds."""

    def __init__(self, run: Path, folder: Path, processes: int, here: NodeInfo) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.folder, self.processes, self.here = run, folder, processes, here
        self.failed: dict[int, tuple[int, int]] = {}  # rank: exit code, time in seconds
        self.error: Exception | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        alone = self.here.count == 1
        config = LaunchConfig(
            min_nodes=self.here.count,
            max_nodes=self.here.count,
            nproc_per_node=self.processes,
            run_id=uuid4().hex if alone else "vitlab",
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint=f"{self.here.host}:{self.here.port}",
            rdzv_configs={} if alone else {"rank": self.here.number, "timeout": RENDEZVOUS_TIMEOUT},
            local_addr="127.0.0.1" if alone else None,
            max_restarts=0,  # a failed run is continued by its command, from what is on disk
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "logs")),
        )
        words = ["-m", "vitlab.launch.worker", str(self.run_folder), str(self.folder), str(os.getpid())]
        logging.disable(logging.CRITICAL)  # the agent's log tells in twenty lines what _told tells in one
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            self.failed = {rank: (one.exitcode, one.timestamp) for rank, one in error.failures.items()}
        except Exception as error:
            self.error = error
        finally:
            logging.disable(logging.NOTSET)


def _deliver(folder: Path, waiting: set[int], number: int) -> None:
    """Send a signal to those of the ranks in ``waiting`` that are ready to hear it, and strike them out."""
    for rank in sorted(waiting):
        path = folder / f"{rank}.pid"
        if path.exists():
            waiting.discard(rank)
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


def _ending(launch: _Launch, outcomes: dict[int, Outcome], processes: int, asked: int) -> Outcome | None:
    """From what the ranks of this machine left to how it ended here; None: well."""
    if launch.error is not None:
        raise RuntimeError("the processes could not be started") from launch.error
    mistakes = sorted((one for one in outcomes.values() if one.kind == "mistake"), key=lambda one: one.time)
    if mistakes:
        return mistakes[0]
    if asked > 1:
        return Outcome("stopped", "Stopped at once; the same command continues from the last checkpoint.")
    failures = sorted((one.time, rank) for rank, one in outcomes.items() if one.kind == "failure")
    stopped = sorted(one.text for one in outcomes.values() if one.kind == "stopped")
    if stopped and (asked or not (failures or launch.failed)):  # without being asked here: on another machine
        return Outcome("stopped", stopped[-1])
    if not launch.failed and not outcomes:
        return None
    if asked and launch.failed and all(code == -signal.SIGTERM for code, _ in launch.failed.values()):
        return Outcome("stopped", "Stopped before the work began; the same command starts it.")
    first = min((when for _, when in launch.failed.values()), default=0)
    for rank, (code, when) in sorted(launch.failed.items()):
        # A process that the launcher ended, because another had failed, ended after it or by SIGTERM.
        if code < 0 and code != -signal.SIGTERM and rank not in outcomes and when <= first + 1:
            return Outcome(
                "killed",
                f"Process {rank + 1} of {processes} was ended by {signal.Signals(-code).name} from outside vitlab (out "
                "of memory, or somebody's kill); the others were stopped. The same command continues from the last "
                "checkpoint.",
            )
    if failures:
        _, rank = failures[0]
        trace = outcomes[rank].text.rstrip()
        return Outcome(
            "failure",
            f"{trace}\n\nProcess {rank + 1} of {processes} failed ({trace.splitlines()[-1]}); the others were stopped. "
            "Once the cause is mended, the same command continues from the last checkpoint.",
        )
    codes = ", ".join(f"{rank + 1}: {code}" for rank, (code, _) in sorted(launch.failed.items()))
    return Outcome("failure", f"Processes ended without a word (exit codes {codes}); the same command continues.")


def _told(ending: Outcome | None) -> int:
    """Tell the user; the exit code."""
    if ending is None:
        return 0
    if ending.kind == "mistake":
        raise UserError(ending.text, ending.cure)
    if ending.kind == "stopped":
        raise Interrupted(ending.text)
    print(ending.text, file=sys.stderr)
    return 1
