"""A run in several processes, one per device of this node: start them, forward signals, report how they ended.

torch's elastic launcher starts ``python -m vitlab.launch.worker`` for every rank. This process holds the run's lock and
prints the messages; a worker writes its :class:`Outcome` as a small file into a temporary folder that both know. With
several nodes, each does this for its own ranks (:mod:`vitlab.launch.rendezvous`).
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
"""File in the run's folder that the workers read: the composed configuration and the command."""


def known_process_count(config: Config) -> int | None:
    """Number of processes that ``trainer.devices`` gives, without torch; None: one per GPU, not counted here."""
    devices = config.trainer.devices
    if devices == "auto":
        return 1 if config.trainer.accelerator in ("cpu", "mps") else None
    return len(devices) if isinstance(devices, list) else int(devices)


def process_count(config: Config) -> int:
    """Number of processes that ``trainer.devices`` gives on this node.

    Raises:
        UserError: this node has fewer devices, or not these.
    """
    import torch

    trainer = config.trainer
    gpus = torch.cuda.device_count()
    lacking = not gpus and (trainer.accelerator == "cuda" or not torch.backends.mps.is_available())
    if trainer.accelerator in ("gpu", "cuda") and lacking:
        raise UserError("torch finds no GPU on this machine.", "Choose hardware=cpu, or hardware=auto.")
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("hardware=mps: torch finds no MPS device on this machine.", "Choose hardware=auto.")
    known = known_process_count(config)
    if known is None:
        return max(gpus, 1)
    cuda = trainer.accelerator in ("auto", "gpu") and gpus > 0
    listed = trainer.devices if isinstance(trainer.devices, list) else range(known)
    if isinstance(trainer.devices, list) and not cuda:
        raise UserError(
            f"trainer.devices={trainer.devices}: only GPUs have indices.", "Give the number of devices instead."
        )
    if cuda and max(listed) >= gpus:
        raise UserError(f"trainer.devices={trainer.devices}: this machine has {gpus} GPU(s).", "Give fewer, or auto.")
    if known > 1 and not cuda and trainer.accelerator != "cpu" and torch.backends.mps.is_available():
        raise UserError(f"trainer.devices={known}: MPS is one device.", "Leave it at 1.")
    if trainer.sync_batchnorm and known > 1 and not cuda:
        raise UserError("trainer.sync_batchnorm: torch synchronises statistics on GPUs only.", "Leave it out.")
    return known


def run_distributed(
    run: Run, config: Config, tree: dict[str, object], command: str, processes: int, node: NodeInfo | None = None
) -> int:
    """Run ``run`` in ``processes`` processes on each node; the exit code (0, or 1 after the cause is printed).

    Raises:
        UserError: raised by one of the processes.
        Interrupted: stopped by a signal, everything saved.
    """
    from vitlab.training.interrupt import SAVING

    node = node or NodeInfo()
    if node.is_main:
        write_json(run.folder / LAUNCH, {"command": command, "tree": tree})
    rendezvous = Rendezvous(node) if node.count > 1 else None
    if rendezvous is not None and node.is_main:
        rendezvous.publish(run.folder, tree)
    with tempfile.TemporaryDirectory(prefix="vitlab-") as name:
        folder = Path(name)
        launch = _Launch(run.folder, folder, processes, node)
        ranks = range(node.rank * processes, (node.rank + 1) * processes)
        launch.start()
        if rendezvous is not None:
            rendezvous.start()
        with SignalListener(SAVING) as received:
            forwarded = 0
            pending = set(ranks)
            while launch.is_alive():
                launch.join(0.1)
                peer_ended = rendezvous is not None and rendezvous.peer_outcome is not None
                if peer_ended and (run.folder / "finished.json").exists():
                    break  # torch's launcher would wait minutes for a node that is lost, and the run is finished
                requests = 2 if peer_ended else min(len(received.times), 2)
                if requests > forwarded:
                    forwarded, pending = requests, set(ranks)
                if forwarded:
                    _send_signal(folder, pending, signal.SIGTERM if forwarded == 1 else signal.SIGKILL)
        outcomes = {rank: one for rank in ranks if (one := read_outcome(folder, rank))}
        outcome = _combine(launch, outcomes, processes * node.count, len(received.times))
        if rendezvous is not None:
            if outcome is not None and outcome.kind == "failure":  # may only follow from a failure on another node
                outcome = rendezvous.wait_for_peer_outcome(rendezvous.heartbeat_timeout + 5) or outcome
            if rendezvous.peer_outcome is not None and outcome is not None:
                outcome = rendezvous.peer_outcome
            rendezvous.close(outcome)
        return _report(outcome)


class _Launch(threading.Thread):
    """torch's elastic agent, in a thread: there it installs no signal handlers (its own kill after 30 seconds)."""

    def __init__(self, run: Path, folder: Path, processes: int, node: NodeInfo) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.folder, self.processes, self.node = run, folder, processes, node
        self.failed: dict[int, tuple[int, int]] = {}  # rank: exit code, time in seconds
        self.error: Exception | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        single_node = self.node.count == 1
        config = LaunchConfig(
            min_nodes=self.node.count,
            max_nodes=self.node.count,
            nproc_per_node=self.processes,
            run_id=uuid4().hex if single_node else "vitlab",
            rdzv_backend="c10d" if single_node else "static",
            rdzv_endpoint=f"{self.node.host}:{self.node.port}",
            rdzv_configs={} if single_node else {"rank": self.node.rank, "timeout": RENDEZVOUS_TIMEOUT},
            local_addr="127.0.0.1" if single_node else None,
            max_restarts=0,  # a failed run is continued by its command, from what is on disk
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "logs")),
        )
        words = ["-m", "vitlab.launch.worker", str(self.run_folder), str(self.folder), str(os.getpid())]
        logging.disable(logging.CRITICAL)  # the agent logs twenty lines of what _report prints in one
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            self.failed = {rank: (one.exitcode, one.timestamp) for rank, one in error.failures.items()}
        except Exception as error:
            self.error = error
        finally:
            logging.disable(logging.NOTSET)


def _send_signal(folder: Path, pending: set[int], number: int) -> None:
    """Send a signal to the ranks in ``pending`` whose handlers are installed, and remove these from the set."""
    for rank in sorted(pending):
        path = folder / f"{rank}.pid"
        if path.exists():
            pending.discard(rank)
            try:
                os.kill(int(path.read_text()), number)
            except ProcessLookupError:
                continue


def outcome_path(folder: Path, rank: int) -> Path:
    """File of a worker's outcome."""
    return folder / f"{rank}.json"


def write_outcome(folder: Path, rank: int, outcome: Outcome) -> None:
    """Write a worker's outcome, stamped with the time."""
    outcome.time = time.time()
    write_json(outcome_path(folder, rank), asdict(outcome))


def read_outcome(folder: Path, rank: int) -> Outcome | None:
    """The outcome of ``rank``; None if it finished, or was killed before it wrote one."""
    path = outcome_path(folder, rank)
    return Outcome(**read_json(path)) if path.exists() else None


def _combine(launch: _Launch, outcomes: dict[int, Outcome], processes: int, requests: int) -> Outcome | None:
    """The outcome of this node from those of its ranks; None: finished.

    Args:
        processes: on all nodes.
        requests: number of signals received here.
    """
    if launch.error is not None:
        raise RuntimeError("the processes could not be started") from launch.error
    mistakes = sorted((one for one in outcomes.values() if one.kind == "mistake"), key=lambda one: one.time)
    if mistakes:
        return mistakes[0]
    if requests > 1:
        from vitlab.training.interrupt import AT_ONCE

        return Outcome("stopped", AT_ONCE)
    failures = sorted((one.time, rank) for rank, one in outcomes.items() if one.kind == "failure")
    stopped = sorted(one.text for one in outcomes.values() if one.kind == "stopped")
    if stopped and (requests or not (failures or launch.failed)):  # without a request here: on another node
        return Outcome("stopped", stopped[-1])
    if not launch.failed and not outcomes:
        return None
    if requests and launch.failed and all(code == -signal.SIGTERM for code, _ in launch.failed.values()):
        return Outcome("stopped", "Stopped before the training began; the same command starts it.")
    first = min((when for _, when in launch.failed.values()), default=0)
    for rank, (code, when) in sorted(launch.failed.items()):
        # A process that the launcher ended because another one failed ended later, or by SIGTERM.
        if code < 0 and code != -signal.SIGTERM and rank not in outcomes and when <= first + 1:
            return Outcome(
                "killed",
                f"Process {rank + 1} of {processes} was killed by {signal.Signals(-code).name} from outside vitlab "
                "(out of memory, or a kill command); the others were stopped. The same command continues from the last "
                "checkpoint.",
            )
    if failures:
        _, rank = failures[0]
        trace = outcomes[rank].text.rstrip()
        return Outcome(
            "failure",
            f"{trace}\n\nProcess {rank + 1} of {processes} failed ({trace.splitlines()[-1]}); the others were stopped. "
            "Once the cause is fixed, the same command continues from the last checkpoint.",
        )
    codes = ", ".join(f"{rank + 1}: {code}" for rank, (code, _) in sorted(launch.failed.items()))
    return Outcome("failure", f"Processes ended without a message (exit codes {codes}); the same command continues.")


def _report(outcome: Outcome | None) -> int:
    """Raise or print ``outcome``; the exit code.

    Raises:
        UserError, Interrupted: the outcome of the processes.
    """
    if outcome is None:
        return 0
    if outcome.kind == "mistake":
        raise UserError(outcome.text, outcome.cure)
    if outcome.kind == "stopped":
        raise Interrupted(outcome.text)
    print(outcome.text, file=sys.stderr)
    return 1
