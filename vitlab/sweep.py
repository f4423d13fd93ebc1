"""``python -m vitlab -m key=a,b``: a run for each combination, each in a process of its own, compared at the end.

The grid is Hydra's: its parser reads the words, its sweeper multiplies them out. A job is the command that somebody
would have typed for it, so its run stands where it always stands, and the same sweep again runs what is missing.
What the sweep adds is in ``OUTPUT/sweeps/NAME``: the output of every job in ``logs/``, and the comparison.
No torch here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from vitlab.compose import Composed, load
from vitlab.errors import Interrupted, UserError
from vitlab.launch import find_run
from vitlab.processes import known_count
from vitlab.sweep_table import Job, write_comparison

MULTIRUN = ("-m", "--multirun")

PROGRESS = re.compile(r"\[\d+/\d+\] |\w+: (step )?\d+/\d+|\w+ done in ")
"""A line that a run prints on its way."""


@dataclass
class Running:
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    devices: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)


def sweep(words: list[str]) -> int:
    """Run the jobs that ``words`` multiply out to; 0 if every run is finished, else 1.

    Raises:
        UserError: a mistake in any of the jobs; nothing was started then.
        Interrupted: Ctrl-C or SIGTERM; the running jobs have saved and stopped.
    """
    words = [word for word in words if word not in MULTIRUN]
    jobs, composed = expand(words)
    first = composed[0].config
    names = [shlex.join(sorted(job.words)) for job in jobs]
    name = first.sweep.name or "sweep-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    folder = Path(first.output) / "sweeps" / name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "vitlab", "-m", *words])
    at_once = first.sweep.jobs
    print(f"sweep    {folder}  ({len(jobs)} runs, {at_once} at once)", flush=True)
    with _Listen() as asked:
        _work(jobs, composed, folder, at_once, asked)
    table = write_comparison(folder, jobs, command)
    print(f"\n{table}\n\ncompared {folder / 'comparison.md'}")
    if asked.times:
        raise Interrupted("Stopped; what was done is saved. The same command continues.")
    return 0 if all(job.state == "finished" for job in jobs) else 1


def expand(words: list[str]) -> tuple[list[Job], list[Composed]]:
    """The jobs of a grid, each composed and checked.

    Raises:
        UserError: nothing is to be swept, two jobs are the same run, or a job is mistaken.
    """
    swept: list[Override] = []
    plain: list[str] = []
    for word in words:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            plain.append(word)  # load explains what is wrong with it, or takes it as text
            continue
        if not parsed.is_sweep_override():
            plain.append(word)
        elif not parsed.is_discrete_sweep():
            raise UserError(f"{word}: a grid takes values one by one.", "Write a,b,c, choice(a,b) or range(1,4).")
        elif any(parsed.get_key_element() == other.get_key_element() for other in swept):
            raise UserError(f"{parsed.get_key_element()} is given twice.", "Leave one of them out.")
        else:
            swept.append(parsed)
    if not swept:
        raise UserError("-m: no key has several values.", "Give some, for instance -m seed=0,1,2, or leave -m out.")
    jobs: list[Job] = []
    composed: list[Composed] = []
    folders: dict[Path, str] = {}
    try:
        (grid,) = BasicSweeper.split_arguments(swept, None)
    except HydraException as error:  # a glob over the choices of a group
        raise UserError(f"{shlex.join(words)}: {error}.", "Write the values one by one.") from None
    for varied in grid:
        mine = [*plain, *varied]
        one = load([word for word in mine if not word.startswith("sweep.")] if jobs else mine)
        if one.config.mode != "train" or one.config.fresh:
            raise UserError("-m is for trainings that the same command continues.", "Leave out mode= and fresh=true.")
        run = find_run(one)
        if run.folder in folders:
            raise UserError(f"{' '.join(varied)} and {folders[run.folder]} are the same run.", "Leave one out.")
        folders[run.folder] = " ".join(varied)
        values = dict(word.split("=", 1) for word in varied)
        job = Job(len(jobs) + 1, [word for word in mine if not word.startswith("sweep.")], values, run.folder)
        job.state = "finished" if run.state == "finished" else "waiting"
        jobs.append(job)
        composed.append(one)
    return jobs, composed


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
    known = known_count(composed.config)
    return len(gpus) if known is None else min(known, len(gpus))


def _work(jobs: list[Job], composed: list[Composed], folder: Path, at_once: int, asked: _Listen) -> None:
    free = visible_gpus() if at_once > 1 else []
    gpus = list(free)
    waiting = [job for job in jobs if job.state == "waiting"]
    for job in jobs:
        if job.state == "finished":
            _say(job, len(jobs), "finished before")
    running: list[Running] = []
    while running or (waiting and not asked.times):
        while waiting and not asked.times and len(running) < at_once:
            wants = wanted_gpus(composed[waiting[0].number - 1], gpus)
            if wants > len(free):
                break
            devices, free = free[:wants], free[wants:]
            job = waiting.pop(0)
            _say(job, len(jobs), "running")
            running.append(Running(job, _start(job, folder, devices), devices))
        asked.pass_on(running)
        time.sleep(0.1)
        for one in [one for one in running if one.process.poll() is not None]:
            running.remove(one)
            free += one.devices
            _settle(one, folder)
            _say(one.job, len(jobs), f"{one.job.state} {one.job.reason}".strip())


def _start(job: Job, folder: Path, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own: a terminal's Ctrl-C reaches it through us, once."""
    environment = dict(os.environ)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    log = _log(job, folder)
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


def _settle(one: Running, folder: Path) -> None:
    """Why a job ended, for the table."""
    code, job = one.process.returncode, one.job
    job.seconds = round(time.monotonic() - one.begun, 1)
    if code == 0:
        job.state, job.reason = "finished", ""
    elif code == 130:
        job.state, job.reason = "stopped", ""
    else:
        job.state = "failed"
        if code < 0:
            job.reason = f"ended by {signal.Signals(-code).name}"
        else:
            job.reason = _reason(_log(job, folder).with_suffix(".err").read_text(errors="replace"))


def _reason(said: str) -> str:
    """What a job said last on stderr: the paragraph of a mistake, or the last line of a stack trace."""
    lines = [line.strip() for line in said.strip().splitlines()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    news = [number for number, line in enumerate(lines) if not line or PROGRESS.match(line)]
    return " ".join(lines[news[-1] + 1 if news else 0 :])


def _log(job: Job, folder: Path) -> Path:
    return folder / "logs" / f"{job.number:03d}.log"


def _say(job: Job, jobs: int, what: str) -> None:
    told = " ".join(f"{key}={value}" for key, value in job.values.items())
    print(f"[{job.number}/{jobs}] {told}: {what}", file=sys.stderr, flush=True)


class _Listen:
    """A first signal asks the running jobs to save and stop, a second one ends them at once."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.passed = 0

    def __enter__(self) -> _Listen:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.times and now - self.times[0] < 1.0:  # the same one, told twice
            return
        if not self.times:
            print(f"\n{signal.Signals(number).name}: the jobs save and stop; once more stops at once.", file=sys.stderr)
        self.times.append(now)

    def pass_on(self, running: Sequence[Running]) -> None:
        """Deliver what was heard since."""
        if len(self.times) == self.passed:
            return
        self.passed = len(self.times)
        for one in running:
            if one.process.poll() is None:
                # Twice is at once: a job hears the second signal as its own user's.
                one.process.send_signal(signal.SIGTERM)
