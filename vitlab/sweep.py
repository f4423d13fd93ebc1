"""``python -m vitlab -m key=a,b``: a run for each combination, each in a process of its own, compared at the end.

The grid is Hydra's: its parser reads the words, its sweeper multiplies them out. With ``sweep=optuna`` the same words,
and ranges such as ``key=interval(0,1)``, are the space of a search (:mod:`vitlab.sweep_search`). A job is the command
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

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from vitlab.compose import Composed, load
from vitlab.errors import Interrupted, UserError
from vitlab.hydra_private import BasicSweeper
from vitlab.launch import find_run
from vitlab.prompt import top
from vitlab.run import RESULT_FREE, own
from vitlab.sweep_jobs import Listen, say, work
from vitlab.sweep_table import Job, write_comparison

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
        from vitlab.sweep_search import search

        return search(plain, swept, first, command)
    jobs, composed = multiply(plain, swept)
    names = [shlex.join(sorted(job.words)) for job in jobs]
    name = first.config.sweep.name or "sweep-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    folder = folder_of(first, name)
    at_once = first.config.sweep.jobs
    with own(folder, "Wait for it, stop it, or give this one a name: sweep.name=NAME."), Listen() as asked:
        print(f"sweep    {folder}  ({len(jobs)} runs, {at_once} at once)", flush=True)
        work(Grid(jobs, composed), folder, at_once, asked)
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


def folder_of(first: Composed, name: str) -> Path:
    """``OUTPUT/sweeps/NAME``, made if need be."""
    folder = Path(first.config.output) / "sweeps" / name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder


def read(words: Sequence[str]) -> tuple[list[str], list[Override], Composed]:
    """The words for every job, the swept ones (those of ``sweep.over`` among them), and one example, composed.

    Raises:
        UserError: nothing is to be swept, a key is given twice, or the example is mistaken.
    """
    plain, swept = _told_apart(words)
    if not any(word.startswith(("sweep=", "sweep.sampler=", "experiment=")) for word in words):
        _refuse_ranges(swept)
    first = load([*plain, *(example(one) for one in swept)])
    typed = {one.get_key_element() for one in swept} | {word.partition("=")[0] for word in plain}
    stray, over = _told_apart(first.config.sweep.over)
    if stray:
        raise UserError(f"sweep.over: {stray[0]} has one value.", "Give several: KEY=a,b or KEY=interval(a,b).")
    swept += [one for one in over if one.get_key_element() not in typed]  # the prompt is stronger
    if not swept:
        raise UserError("-m: no key has several values.", "Give some, for instance -m seed=0,1,2, or leave -m out.")
    if first.config.mode != "train" or first.config.fresh:
        raise UserError("-m is for trainings that the same command continues.", "Leave out mode= and fresh=true.")
    return plain, swept, first


def _told_apart(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Words with one value, and words with several."""
    plain: list[str] = []
    swept: list[Override] = []
    for word in words:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            plain.append(word)  # load explains what is wrong with it, or takes it as text
            continue
        if not parsed.is_sweep_override():
            plain.append(word)
        elif any(parsed.get_key_element() == other.get_key_element() for other in swept):
            raise UserError(f"{parsed.get_key_element()} is given twice.", "Leave one of them out.")
        else:
            swept.append(parsed)
    return plain, swept


def _refuse_ranges(swept: Sequence[Override]) -> None:
    for one in swept:
        if not one.is_discrete_sweep():
            raise UserError(
                f"{one.input_line}: a grid takes values one by one.",
                "Write a,b,c, choice(a,b) or range(1,4); or search in it: sweep=optuna.",
            )


def example(swept: Override) -> str:
    """The word that gives a swept key its first value."""
    return f"{swept.get_key_element()}={values_of(swept)[0]}"


def values_of(swept: Override) -> list[str]:
    """The values of a swept key as typed one by one; of an interval both ends.

    Raises:
        UserError: a glob over the choices of a group.
    """
    value = swept.value()
    if isinstance(value, IntervalSweep):
        ends = [float(str(end)) for end in (value.start, value.end)]
        return [str(int(end)) if end.is_integer() else repr(end) for end in ends]
    try:
        (row,) = zip(*BasicSweeper.split_arguments([swept], None)[0], strict=True)
    except HydraException as error:
        raise UserError(f"{swept.input_line}: {error}.", "Write the values one by one.") from None
    return [word.partition("=")[2] for word in row]


def multiply(plain: Sequence[str], swept: Sequence[Override]) -> tuple[list[Job], list[Composed]]:
    """The jobs of a grid, each composed and checked.

    Raises:
        UserError: an interval has no values to count, two jobs are the same run, or a job is mistaken.
    """
    _refuse_ranges(swept)
    for one in swept:
        values_of(one)
    # Two ways to run one training would be one run: each way gets a name of its own.
    ways = [one.get_key_element() for one in swept if top(one.get_key_element()) in RESULT_FREE - {"name", "output"}]
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


def is_of_sweep(word: str) -> bool:
    """Whether a word is about the sweep itself, not about its jobs."""
    return word.startswith(("sweep.", "sweep="))


class Grid:
    """All combinations, in order; those that earlier sessions finished are told and left alone."""

    def __init__(self, jobs: list[Job], composed: list[Composed]) -> None:
        self.total = len(jobs)
        self.waiting = [(job, one) for job, one in zip(jobs, composed, strict=True) if job.state == "waiting"]
        for job in jobs:
            if job.state == "finished":
                say(job, self.total, "finished before")

    def next(self) -> tuple[Job, Composed] | None:
        return self.waiting.pop(0) if self.waiting else None

    def look(self, job: Job) -> bool:
        return False

    def ended(self, job: Job) -> None:
        pass
