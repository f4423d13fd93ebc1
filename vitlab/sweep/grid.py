"""``python -m vitlab -m key=a,b``: a run for each combination, each in its own process, compared at the end.

The overrides are parsed and expanded by Hydra. With ``sweep=optuna`` they, and ranges such as ``key=interval(0,1)``,
are the space of a search (:mod:`vitlab.sweep.search`). A job is an ordinary command, so its run is in its usual
folder, and the same sweep again runs only what is missing. ``OUTPUT/sweeps/NAME`` has the output of every job in
``logs/``, and the comparison. No torch here.
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
from vitlab.run.folder_lock import locked
from vitlab.sweep.jobs import SignalForwarder, print_line, run_jobs
from vitlab.sweep.table import Job, write_comparison
from vitlab.sweep.words import LOCKED_CURE, is_sweep_key, read_sweep, refuse_ranges, sweep_folder, values_of

MULTIRUN = ("-m", "--multirun")


def sweep(words: list[str]) -> int:
    """Run the jobs of the grid, or the search, that ``words`` give; 0 if every run is finished or pruned, else 1.

    Raises:
        UserError: a mistake in any of the jobs; none is started then.
        Interrupted: Ctrl-C or SIGTERM; the running jobs have saved and stopped.
    """
    words = [word for word in words if word not in MULTIRUN]
    plain, swept, first = read_sweep(words)
    command = shlex.join(["python", "-m", "vitlab", "-m", *words])
    if first.config.sweep.sampler != "grid":
        from vitlab.sweep.search import search

        return search(plain, swept, first, command)
    jobs, composed = expand_grid(plain, swept)
    names = [shlex.join(sorted(job.words)) for job in jobs]
    name = first.config.sweep.name or "sweep-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    folder = sweep_folder(first, name)
    parallel = first.config.sweep.jobs
    with locked(folder, LOCKED_CURE), SignalForwarder() as signals:
        print(f"sweep    {folder}  ({len(jobs)} runs, {parallel} in parallel)", flush=True)
        run_jobs(Grid(jobs, composed), folder, parallel, signals)
        table = write_comparison(folder, jobs, command)
    print(f"\n{table}\n\ncompared {folder / 'comparison.md'}")
    if signals.times:
        raise Interrupted("Stopped; finished work is saved. The same command continues.")
    return 0 if all(job.state == "finished" for job in jobs) else 1


def expand(words: list[str]) -> tuple[list[Job], list[Composed]]:
    """The jobs of the grid that ``words`` give, each composed and checked.

    Raises:
        UserError: a mistake in any of them.
    """
    plain, swept, _ = read_sweep(words)
    return expand_grid(plain, swept)


def expand_grid(plain: Sequence[str], swept: Sequence[Override]) -> tuple[list[Job], list[Composed]]:
    """The jobs of a grid, each composed and checked.

    Raises:
        UserError: an interval, two jobs that are the same run, or a mistake in a job.
    """
    refuse_ranges(swept)
    for override in swept:
        values_of(override)
    # Values of a key that cannot change the result give the same run name: they become part of name=.
    free_keys = [
        override.get_key_element()
        for override in swept
        if top_level_key(override.get_key_element()) in RESULT_FREE - {"name", "output"}
    ]
    common = [word for word in plain if not is_sweep_key(word)]
    jobs: list[Job] = []
    composed: list[Composed] = []
    folders: dict[Path, str] = {}
    for varied in BasicSweeper.split_arguments(list(swept), None)[0]:
        values = dict(word.split("=", 1) for word in varied)
        words = [*common, *varied]
        loaded = load(words)
        if free_keys and not any(word.startswith("name=") for word in words):
            prefix = f"{loaded.config.dataset.name}-{loaded.network}"
            suffix = "-".join(re.sub(r"[^\w.+]+", "-", values[key]).strip("-") for key in free_keys)
            words.append(f"name={prefix}-{suffix}")
            loaded = load(words)
        run = find_run(loaded)
        if run.folder in folders:
            raise UserError(f"{' '.join(varied)} and {folders[run.folder]} are the same run.", "Leave one out.")
        folders[run.folder] = " ".join(varied)
        job = Job(len(jobs) + 1, words, values, run.folder)
        job.state = "finished" if run.state == "finished" else "waiting"
        jobs.append(job)
        composed.append(loaded)
    return jobs, composed


class Grid:
    """All combinations, in order, without those that are finished, which are only printed."""

    def __init__(self, jobs: list[Job], composed: list[Composed]) -> None:
        self.total = len(jobs)
        self.waiting = [(job, one) for job, one in zip(jobs, composed, strict=True) if job.state == "waiting"]
        for job in jobs:
            if job.state == "finished":
                print_line(job, self.total, "finished before")

    def next(self) -> tuple[Job, Composed] | None:
        return self.waiting.pop(0) if self.waiting else None

    def should_prune(self, job: Job) -> bool:
        return False

    def on_end(self, job: Job) -> None:
        pass
