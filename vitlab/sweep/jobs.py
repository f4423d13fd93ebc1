"""Execution of a sweep's jobs: each in its own process, ``sweep.jobs`` at a time, on its own devices.

A :class:`Queue` gives the next job, decides which running jobs are pruned, and receives the finished ones: all
combinations of a grid, or the trials of a search.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitlab.config.composed import Composed
from vitlab.launch.processes import known_process_count
from vitlab.run.folder_lock import is_locked
from vitlab.signals import SignalListener
from vitlab.sweep.table import Job
from vitlab.training.wandb_logger import SWEEP_NAME

LOCK_TIMEOUT = 120.0
"""Seconds that a job waits for a process of a killed sweep that still saves the same run."""

PROGRESS = re.compile(r"\[\d+/\d+\] |\w+: (step )?\d+/\d+|\w+ done in ")
"""A progress line of a run."""


class Queue(Protocol):
    """Source of the jobs."""

    @property
    def total(self) -> int:
        """Number of jobs, as far as it is known."""

    def next(self) -> tuple[Job, Composed] | None:
        """The next job to start; None: none now, and the sweep is over once no job runs."""

    def should_prune(self, job: Job) -> bool:
        """Whether a running job is to be stopped early."""

    def on_end(self, job: Job) -> None:
        """Called after a job has ended, with its final state."""


@dataclass
class Running:
    """A running job."""

    job: Job
    process: subprocess.Popen[bytes]
    devices: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    pruned: bool = False


def run_jobs(queue: Queue, folder: Path, parallel: int, signals: SignalForwarder) -> None:
    """Run the jobs of ``queue``, ``parallel`` at a time, until there are none or a signal requests a stop."""
    free = visible_gpus() if parallel > 1 else []
    gpus = list(free)
    running: list[Running] = []
    blocked: tuple[Job, Composed] | None = None  # waits for devices, or for a process that still saves its run
    since = time.monotonic()
    while True:
        while not signals.times and len(running) < parallel:
            if blocked is None:
                blocked, since = queue.next(), time.monotonic()
            if blocked is None:
                break
            job, composed = blocked
            count = gpu_count(composed, gpus)
            if count > len(free):
                break
            if is_locked(job.run) and time.monotonic() - since < LOCK_TIMEOUT:
                break
            devices, free = free[:count], free[count:]
            blocked = None
            print_line(job, queue.total, "running")
            running.append(Running(job, start(job, folder, devices), devices))
        if not running and (blocked is None or signals.times):
            return
        signals.forward(running)
        time.sleep(0.1)
        for ended in [one for one in running if one.process.poll() is not None]:
            running.remove(ended)
            free += ended.devices
            finish_job(ended, folder, bool(signals.times))
            queue.on_end(ended.job)
            print_line(ended.job, queue.total, f"{ended.job.state} {ended.job.reason}".strip())
        for one in running:
            if not one.pruned and not signals.times and queue.should_prune(one.job):
                one.pruned = True
                one.process.send_signal(signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as values for CUDA_VISIBLE_DEVICES."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one for one in given.split(",") if one]
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in output.splitlines()))]


def gpu_count(composed: Composed, gpus: Sequence[str]) -> int:
    """How many of ``gpus`` a job uses."""
    if composed.config.trainer.accelerator in ("cpu", "mps"):
        return 0
    known = known_process_count(composed.config)
    return len(gpus) if known is None else min(known, len(gpus))


def start(job: Job, folder: Path, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a job in a new session: Ctrl-C in the terminal reaches it through this process only, once."""
    environment = dict(os.environ) | {SWEEP_NAME: folder.name}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    log = log_path(job, folder)
    with open(log, "wb") as out, open(log.with_suffix(".err"), "wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "vitlab", *job.words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
            preexec_fn=_terminate_with_parent if sys.platform == "linux" else None,
        )


def _terminate_with_parent() -> None:
    """Have the kernel send this new process SIGTERM when the sweep is killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def finish_job(ended: Running, folder: Path, stop_requested: bool) -> None:
    """Set the final state of a job and its reason. ``stop_requested``: a signal stopped the sweep."""
    code, job = ended.process.returncode, ended.job
    job.seconds = round(time.monotonic() - ended.started, 1)
    # A process without a signal handler yet is ended by the signal itself.
    stopped = code == 130 or (code == -signal.SIGTERM and (stop_requested or ended.pruned))
    if code == 0:
        job.state, job.reason = "finished", ""
    elif stopped:
        job.state, job.reason = ("pruned" if ended.pruned else "stopped"), ""
    else:
        job.state = "failed"
        if code < 0:
            job.reason = f"ended by {signal.Signals(-code).name}"
        else:
            job.reason = _reason(log_path(job, folder).with_suffix(".err").read_text(errors="replace"))


def _reason(stderr: str) -> str:
    """The message at the end of a job's stderr: the paragraph of a mistake, or the last line of a stack trace."""
    lines = [line.strip() for line in stderr.strip().splitlines()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    progress = [number for number, line in enumerate(lines) if not line or PROGRESS.match(line)]
    return " ".join(lines[progress[-1] + 1 if progress else 0 :])


def log_path(job: Job, folder: Path) -> Path:
    """File of a job's stdout; its stderr is beside it, as .err."""
    return folder / "logs" / f"{job.number:03d}.log"


def print_line(job: Job, total: int, state: str) -> None:
    """Print the state of a job to stderr."""
    values = " ".join(f"{key}={value}" for key, value in job.values.items())
    print(f"[{job.number}/{total}] {values}: {state}", file=sys.stderr, flush=True)


class SignalForwarder(SignalListener):
    """Forwards signals to the running jobs: the first one makes them save and stop, the second one stop at once."""

    def __init__(self) -> None:
        super().__init__("the jobs save and stop; a second signal stops them at once.")
        self.forwarded = 0

    def __enter__(self) -> SignalForwarder:
        super().__enter__()
        return self

    def forward(self, running: Sequence[Running]) -> None:
        """Send the signals received since the last call."""
        if len(self.times) == self.forwarded:
            return
        self.forwarded = len(self.times)
        for one in running:
            if one.process.poll() is None:
                # The job counts the signals itself: SIGTERM for the second time stops it at once.
                one.process.send_signal(signal.SIGTERM)
