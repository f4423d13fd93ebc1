"""``python -m vitlab -m key=a,b``: a run for each combination, each in a process of its own, compared at the end.

The grid is Hydra's: its parser reads the words, its sweeper multiplies them out. With ``sweep=optuna`` the same words,
and ranges such as ``key=interval(0,1)``, are the space of a search (:mod:`vitlab.sweep.search`). A job is the command
that somebody would have typed for it, so its run stands where it always stands, and the same sweep again runs what is
missing. What the sweep adds is in ``OUTPUT/sweeps/NAME``: the output of every job in ``logs/``, and the comparison.
No torch here.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from vitlab.compose.hydra_private import BasicSweeper
from vitlab.compose.load import load
from vitlab.config.catalogue import RESULT_FREE, top_level_key
from vitlab.config.composed import Composed
from vitlab.errors import Interrupted, UserError
from vitlab.launch.start import find_run
from vitlab.run.run import locked
from vitlab.sweep.jobs import PassSignalsOn, print_line, run_jobs
from vitlab.sweep.table import Job, write_comparison
from vitlab.sweep.words import folder_of, is_of_sweep, read, refuse_ranges, values_of

MULTIRUN = ("-m", "--multirun")


def sweep(words: list[str]) -> int:
    """Run the jobs that ``words`` multiply out to, or search among; 0 if every run is finished or pruned, else 1.

    Raises:
        UserError: a mistake in any of the jobs; nothing was started then.
        Interrupted: Ctrl-C or SIGTERM; the running jobs have saved and stopped.
    """
    words = [word for word in words if word not in MULTIRUN]
    plain, swept, first = read(words)
    command = shlex.join(["python", "-m", "vitlab", "-m", *words])
    if first.config.sweep.sampler != "grid":
        from vitlab.sweep.search import search

        return search(plain, swept, first, command)
    jobs, composed = multiply(plain, swept)
    names = [shlex.join(sorted(job.words)) for job in jobs]
    name = first.config.sweep.name or "sweep-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    folder = folder_of(first, name)
    at_once = first.config.sweep.jobs
    with locked(folder, "Wait for it, stop it, or give this one a name: sweep.name=NAME."), PassSignalsOn() as asked:
        print(f"sweep    {folder}  ({len(jobs)} runs, {at_once} at once)", flush=True)
        run_jobs(Grid(jobs, composed), folder, at_once, asked)
        table = write_comparison(folder, jobs, command)
    print(f"\n{table}\n\ncompared {folder / 'comparison.md'}")
    if asked.times:
        raise Interrupted("Stopped; what was done is saved. The same command continues.")
    return 0 if all(job.state == "finished" for job in jobs) else 1


def expand(words: list[str]) -> tuple[list[Job], list[Composed]]:
    """The jobs that ``words`` multiply out to, each composed and checked.

    Raises:
        UserError: a mistake in any of them.
    """
    plain, swept, _ = read(words)
    return multiply(plain, swept)


def multiply(plain: Sequence[str], swept: Sequence[Override]) -> tuple[list[Job], list[Composed]]:
    """The jobs of a grid, each composed and checked.

    Raises:
        UserError: an interval has no values to count, two jobs are the same run, or a job is mistaken.
    """
    refuse_ranges(swept)
    for one in swept:
        values_of(one)
    # Two ways to run one training would be one run: each way gets a name of its own.
    ways = [
        one.get_key_element()
        for one in swept
        if top_level_key(one.get_key_element()) in RESULT_FREE - {"name", "output"}
    ]
    mine = [word for word in plain if not is_of_sweep(word)]
    jobs: list[Job] = []
    composed: list[Composed] = []
    folders: dict[Path, str] = {}
    for varied in BasicSweeper.split_arguments(list(swept), None)[0]:
        values = dict(word.split("=", 1) for word in varied)
        words = [*mine, *varied]
        whole = load(words)
        if ways and not any(word.startswith("name=") for word in words):
            prefix = f"{whole.config.dataset.name}-{whole.network}"
            way = "-".join(re.sub(r"[^\w.+]+", "-", values[key]).strip("-") for key in ways)
            words.append(f"name={prefix}-{way}")
            whole = load(words)
        run = find_run(whole)
        if run.folder in folders:
            raise UserError(f"{' '.join(varied)} and {folders[run.folder]} are the same run.", "Leave one out.")
        folders[run.folder] = " ".join(varied)
        job = Job(len(jobs) + 1, words, values, run.folder)
        job.state = "finished" if run.state == "finished" else "waiting"
        jobs.append(job)
        composed.append(whole)
    return jobs, composed


class Grid:
    """All combinations, in order; those that earlier sessions finished are told and left alone."""

    def __init__(self, jobs: list[Job], composed: list[Composed]) -> None:
        self.total = len(jobs)
        self.waiting = [(job, one) for job, one in zip(jobs, composed, strict=True) if job.state == "waiting"]
        for job in jobs:
            if job.state == "finished":
                print_line(job, self.total, "finished before")

    def next(self) -> tuple[Job, Composed] | None:
        return self.waiting.pop(0) if self.waiting else None

    def look(self, job: Job) -> bool:
        return False

    def ended(self, job: Job) -> None:
        pass
