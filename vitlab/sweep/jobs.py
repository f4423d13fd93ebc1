"""The jobs of a sweep at work: each in a process of its own, so many at once, on devices of its own.

A queue says which job comes next, looks at those that run, and hears how each ended: all combinations of a grid, or a
search that draws one after the other.
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

PATIENCE = 120.0
"""Seconds that a job waits for an earlier, killed sweep's process that is still saving the same run."""

PROGRESS = re.compile(r"\[\d+/\d+\] |\w+: (step )?\d+/\d+|\w+ done in ")
"""A line that a run prints on its way."""


class Queue(Protocol):
    """Where the jobs come from."""

    @property
    def total(self) -> int:
        """How many there will be, as far as is known."""

    def next(self) -> tuple[Job, Composed] | None:
        """A job to start; None: none at present, and none ever if nothing runs."""

    def look(self, job: Job) -> bool:
        """Whether a running job is to be ended early."""

    def ended(self, job: Job) -> None:
        """A job has ended; its state says how."""


@dataclass
class Running:
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    devices: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    pruned: bool = False


def run_jobs(queue: Queue, folder: Path, at_once: int, asked: PassSignalsOn) -> None:
    """Run the jobs of ``queue``, ``at_once`` of them together, until there are none or somebody asks to stop."""
    free = visible_gpus() if at_once > 1 else []
    gpus = list(free)
    running: list[Running] = []
    held: tuple[Job, Composed] | None = None  # waits for devices, or for a process that is still saving its run
    since = time.monotonic()
    while True:
        while not asked.times and len(running) < at_once:
            if held is None:
                held, since = queue.next(), time.monotonic()
            if held is None:
                break
            job, composed = held
            wants = wanted_gpus(composed, gpus)
            if wants > len(free):
                break
            if is_locked(job.run) and time.monotonic() - since < PATIENCE:
                break
            devices, free = free[:wants], free[wants:]
            held = None
            print_line(job, queue.total, "running")
            running.append(Running(job, start(job, folder, devices), devices))
        if not running and (held is None or asked.times):
            return
        asked.pass_on(running)
        time.sleep(0.1)
        for one in [one for one in running if one.process.poll() is not None]:
            running.remove(one)
            free += one.devices
            finish_job(one, folder, bool(asked.times))
            queue.ended(one.job)
            print_line(one.job, queue.total, f"{one.job.state} {one.job.reason}".strip())
        for one in running:
            if not one.pruned and not asked.times and queue.look(one.job):
                one.pruned = True
                one.process.send_signal(signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs that jobs may have, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one for one in given.split(",") if one]
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in said.splitlines()))]


def wanted_gpus(composed: Composed, gpus: Sequence[str]) -> int:
    """How many of ``gpus`` a job takes for itself."""
    if composed.config.trainer.accelerator in ("cpu", "mps"):
        return 0
    known = known_process_count(composed.config)
    return len(gpus) if known is None else min(known, len(gpus))


def start(job: Job, folder: Path, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own: a terminal's Ctrl-C reaches it through us, once."""
    environment = dict(os.environ) | {SWEEP_NAME: folder.name}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    log = log_of(job, folder)
    with open(log, "wb") as out, open(log.with_suffix(".err"), "wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "vitlab", *job.words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_us if sys.platform == "linux" else None,
        )


def _end_with_us() -> None:
    """Have the kernel ask this new process to save and stop when the sweep is killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def finish_job(one: Running, folder: Path, asked: bool) -> None:
    """Why a job ended, for the table. ``asked``: somebody asked the whole sweep to stop."""
    code, job = one.process.returncode, one.job
    job.seconds = round(time.monotonic() - one.begun, 1)
    # A process that has no handler yet dies of the signal that asks it to stop.
    stopped = code == 130 or (code == -signal.SIGTERM and (asked or one.pruned))
    if code == 0:
        job.state, job.reason = "finished", ""
    elif stopped:
        job.state, job.reason = ("pruned" if one.pruned else "stopped"), ""
    else:
        job.state = "failed"
        if code < 0:
            job.reason = f"ended by {signal.Signals(-code).name}"
        else:
            job.reason = _reason(log_of(job, folder).with_suffix(".err").read_text(errors="replace"))


def _reason(said: str) -> str:
    """What a job said last on stderr: the paragraph of a mistake, or the last line of a stack trace."""
    lines = [line.strip() for line in said.strip().splitlines()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    news = [number for number, line in enumerate(lines) if not line or PROGRESS.match(line)]
    return " ".join(lines[news[-1] + 1 if news else 0 :])


def log_of(job: Job, folder: Path) -> Path:
    """Where the output of a job goes; its stderr stands beside, as .err."""
    return folder / "logs" / f"{job.number:03d}.log"


def print_line(job: Job, total: int, what: str) -> None:
    """A line about one job."""
    told = " ".join(f"{key}={value}" for key, value in job.values.items())
    print(f"[{job.number}/{total}] {told}: {what}", file=sys.stderr, flush=True)


class PassSignalsOn(SignalListener):
    """A first signal asks the running jobs to save and stop, a second one ends them at once."""

    def __init__(self) -> None:
        super().__init__("the jobs save and stop; once more stops at once.")
        self.passed = 0

    def __enter__(self) -> PassSignalsOn:
        super().__enter__()
        return self

    def pass_on(self, running: Sequence[Running]) -> None:
        """Deliver what was heard since."""
        if len(self.times) == self.passed:
            return
        self.passed = len(self.times)
        for one in running:
            if one.process.poll() is None:
                # Twice is at once: a job hears the second signal as its own user's.
                one.process.send_signal(signal.SIGTERM)
