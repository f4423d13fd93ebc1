"""``-m sweep=optuna``: trials drawn by Optuna instead of all combinations, bad ones ended early, all of it in SQLite.

    python -m vitlab -m sweep=optuna 'recipe.lr=tag(log,interval(1e-4,1e-2))' recipe.optimizer=adamw,lamb
    python -m vitlab -m sweep=optuna ... sweep.maximize=[val_top1] sweep.minimize=[latency_ms_1] sweep.prune=null

The space is written with Hydra's own words: ``a,b`` and ``choice(a,b)`` are categories, ``range(8,65,8)`` a ladder,
``interval(a,b)`` a range (of whole numbers where the key takes those), ``tag(log,...)`` its logarithm. Each end is
composed, so a space that the configuration does not allow is refused before anything runs.

The study lies in ``OUTPUT/sweeps/NAME/study.db``. A trial is drawn by a sampler seeded by (seed, trial), so a search
that was stopped draws what it would have drawn; a trial that was running is continued under its number.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from vitlab.compose.load import load
from vitlab.compose.schema import fields, find
from vitlab.config import SweepConfig
from vitlab.config.composed import Composed
from vitlab.errors import Interrupted, UserError
from vitlab.launch.start import find_run
from vitlab.methods.base import find_method
from vitlab.modes.find_runs import result_of
from vitlab.run.recorder import Row, read_rows
from vitlab.run.run import locked
from vitlab.sweep.jobs import PassSignalsOn, print_line, run_jobs
from vitlab.sweep.table import Job, results, write_comparison
from vitlab.sweep.words import example, folder_of, is_of_sweep, values_of
from vitlab.tasks.base import find_task

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

STANDING = ("sweep.jobs", "sweep.trials", "sweep.name")
"""Words that may differ when a search continues."""


def search(plain: list[str], swept: list[Override], first: Composed, command: str) -> int:
    """Draw and run trials until there are ``sweep.trials``; 0 if all of them finished or were pruned, else 1.

    Raises:
        UserError: the space or the metric does not fit; another search stands in the folder.
        Interrupted: Ctrl-C or SIGTERM; the running jobs have saved and stopped.
    """
    spec = first.config.sweep
    mine = [word for word in plain if not is_of_sweep(word)]
    space = {one.get_key_element(): distribution(one, first) for one in swept}
    for one in swept:
        others = [example(other) for other in swept if other is not one]
        for value in values_of(one):
            load([*mine, *others, f"{one.get_key_element()}={value}"])
    kept = [word for word in plain if not word.startswith(STANDING)] + [str(one.input_line) for one in swept]
    what = json.dumps(sorted(kept))
    name = spec.name or "search-" + hashlib.sha256(what.encode()).hexdigest()[:8]
    folder = folder_of(first, name)
    with locked(folder, "Wait for it, stop it, or give this one a name: sweep.name=NAME."), PassSignalsOn() as asked:
        print(f"search   {folder}  ({spec.trials} trials, {spec.jobs} at once)", flush=True)
        queue = Search(folder, mine, space, first, what)
        run_jobs(queue, folder, spec.jobs, asked)
        from vitlab.sweep.report import write_search_report

        about, told = write_search_report(queue.study, folder, queue.jobs)
        table = write_comparison(folder, queue.jobs, command, about=about, show=queue.names)
    print(f"\n{table}\n\n{told}\n\ncompared {folder / 'comparison.md'}")
    if queue.mistake is not None:
        raise queue.mistake
    if asked.times:
        raise Interrupted("Stopped; what was done is saved. The same command continues.")
    return 0 if all(job.state in ("finished", "pruned") for job in queue.jobs) else 1


def distribution(swept: Override, first: Composed) -> BaseDistribution:
    """What Optuna draws for a swept key.

    Raises:
        UserError: a range that is empty, or an interval of a key that takes no numbers.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, line = swept.value(), swept.input_line
    key = swept.get_key_element()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        field = find(key, fields(find_method(first.config.method.name).Options))
        # By the key, or by Hydra's cast: int(interval(1,5)).
        whole = (field is not None and field.kind == "a whole number") or isinstance(value.start, int)
        log = "log" in value.tags
        if not value.start < value.end or (log and value.start <= 0):
            raise UserError(f"{line}: an empty range.", "Write interval(LOW,HIGH), both above 0 where log is asked.")
        if whole:
            return IntDistribution(round(value.start), round(value.end), log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    texts = values_of(swept)
    if isinstance(value, RangeSweep) and all(text.lstrip("-").isdigit() for text in texts):
        return IntDistribution(int(texts[0]), int(texts[-1]), step=abs(int(value.step)))
    return CategoricalDistribution(texts)


class Search:
    """Trials of a study as jobs; those of earlier sessions stand in ``jobs`` first.

    Args:
        folder: of the sweep.
        words: what every job has in common.
        space: swept keys and what is drawn for them.
        first: an example of a job, composed with the sweep's own words.
        what: the search in one text; a folder holds one search.

    Raises:
        UserError: the folder holds another search.
    """

    def __init__(
        self, folder: Path, words: list[str], space: dict[str, BaseDistribution], first: Composed, what: str
    ) -> None:
        import optuna
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.spec: SweepConfig = first.config.sweep
        self.seed = first.config.seed
        self.words, self.space = words, space
        self.task = find_task(first.config.task)
        headline = self.task.headline
        self.names = [*self.spec.maximize, *self.spec.minimize] or [f"val_{headline.key}"]
        up = len(self.spec.maximize) if self.spec.maximize or self.spec.minimize else int(headline.higher)
        self.study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name=folder.name,
            directions=[StudyDirection.MAXIMIZE] * up + [StudyDirection.MINIMIZE] * (len(self.names) - up),
            pruner=self._pruner(),
            load_if_exists=True,
        )
        if self.study.user_attrs.get("what", what) != what:
            raise UserError(
                f"{folder} holds another search: {shlex.join(json.loads(self.study.user_attrs['what']))}.",
                "Give this one another sweep.name.",
            )
        self.study.set_user_attr("what", what)
        self.study.set_metric_names(self.names)
        self.total = self.spec.trials
        self.mistake: UserError | None = None
        self.jobs: list[Job] = []
        self.trials: dict[int, optuna.trial.Trial] = {}  # at work, by number
        self.twins: dict[Path, list[tuple[optuna.trial.Trial, Job]]] = {}  # wait for a trial of the same run
        self.seen: dict[int, int] = {}  # trial: the step that was reported last
        self.continued: list[optuna.trial.FrozenTrial] = []
        self.drawn = 0  # trials that count: settled ones of earlier sessions, and whatever this session draws
        for one in self.study.get_trials(deepcopy=False):
            if one.state.is_finished():
                self.jobs.append(_told(one, self.names))
                self.drawn += one.state.name != "FAIL"
            else:
                self.continued.append(one)
                self.drawn += 1

    def _pruner(self) -> optuna.pruners.BasePruner:
        from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

        if self.spec.prune is None:
            return NopPruner()
        name = self.names[0]
        watched = f"val_{name}" if name in self.task.validated else name
        if watched == self.names[0] and not watched.startswith(("val_", "train_", "loss")):
            raise UserError(
                f"sweep.prune={self.spec.prune}: nothing tells early how {self.names[0]} will be.",
                "Give sweep.prune=null, or a metric of the record, such as val_top1, val_nll or loss.",
            )
        self.watched = watched
        if self.spec.prune == "halving":
            return SuccessiveHalvingPruner()
        return MedianPruner(n_startup_trials=self.spec.startup)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler whose random numbers follow from (seed, trial)."""
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self.spec.sampler == "random":
            return RandomSampler(seed=seed)
        if self.spec.sampler == "nsga2":
            return NSGAIISampler(population_size=max(2, self.spec.startup), seed=seed)
        return TPESampler(n_startup_trials=self.spec.startup, seed=seed)

    # -- a queue of jobs ---------------------------------------------------------------------------------------------

    def next(self) -> tuple[Job, Composed] | None:
        import optuna

        while self.mistake is None:
            if self.continued:
                frozen = self.continued.pop(0)
                trial = optuna.trial.Trial(self.study, frozen._trial_id)
                self.seen[frozen.number + 1] = max(frozen.intermediate_values, default=-1)
            elif self.drawn < self.spec.trials:
                self.drawn += 1
                self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
                trial = self.study.ask(self.space)
            else:
                return None
            found = self._job(trial)
            if found is not None:
                return found
        return None

    def look(self, job: Job) -> bool:
        """Report what the record says since, and ask whether that is bad enough to stop."""
        if self.spec.prune is None:
            return False
        trial, bad = self.trials[job.number], False
        for row in self._rows(job):
            step, value = row["step"], row.get(self.watched)
            if not isinstance(value, float) or not isinstance(step, int) or step <= self.seen.get(job.number, -1):
                continue
            self.seen[job.number] = step
            trial.report(value, step)
            bad = bad or trial.should_prune()
        return bad

    def ended(self, job: Job) -> None:
        trial = self.trials.pop(job.number)
        self._settle(trial, job)
        for twin, other in self.twins.pop(job.run, []):
            other.state, other.reason = job.state, f"the same run as {job.number}"
            self._settle(twin, other)

    # -- one trial ---------------------------------------------------------------------------------------------------

    def _job(self, trial: optuna.trial.Trial) -> tuple[Job, Composed] | None:
        """The job of a trial; None where none is needed: its run is known, or cannot be."""
        drawn = {key: _text(trial.params[key]) for key in self.space}
        shown = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in trial.params.items()}
        job = Job(trial.number + 1, [*self.words, *(f"{k}={v}" for k, v in drawn.items())], shown, Path())
        self.jobs.append(job)
        self.jobs.sort(key=lambda one: one.number)
        try:
            composed = load(job.words)
            job.run = find_run(composed).folder
        except UserError as error:
            job.state, job.reason = "failed", str(error)
            print_line(job, self.total, f"failed {job.reason}")
            self._settle(trial, job)
            return None
        self.stage = result_of(find_method(composed.config.method.name).stages(composed.config)).name
        same = next((one for one in self.jobs if one is not job and one.run == job.run), None)
        if same is not None and same.state == "waiting":
            self.twins.setdefault(job.run, []).append((trial, job))
            return None
        if find_run(composed).state == "finished" or (same is not None and same.state == "pruned"):
            job.state = "finished" if same is None else same.state
            job.reason = "" if same is None else f"the same run as {same.number}"
            print_line(job, self.total, f"{job.state} before")
            self._settle(trial, job)
            return None
        self.trials[job.number] = trial
        return job, composed

    def _settle(self, trial: optuna.trial.Trial, job: Job) -> None:
        """Tell the study how a trial ended; one that was stopped stays open and is continued."""
        from optuna.trial import TrialState

        if job.state == "stopped":
            return
        known = {**self._last(job), **results(job)} if job.state == "finished" else {}
        job.extra = {name: known[name] for name in self.names if name in known}
        if job.state == "finished" and len(job.extra) < len(self.names):
            missing = next(name for name in self.names if name not in known)
            job.state, job.reason = "failed", f"it has no {missing}"
            self.mistake = UserError(
                f"{job.run} says nothing of {missing}.", f"A search is for one of: {', '.join(sorted(known))}."
            )
        for key, value in (("words", job.words), ("run", str(job.run)), ("state", job.state), ("reason", job.reason)):
            trial.set_user_attr(key, value)
        if job.state == "finished":
            self.study.tell(trial, [job.extra[name] for name in self.names])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if job.state == "pruned" else TrialState.FAIL)

    def _rows(self, job: Job) -> list[Row]:
        """What the record of a job's run says of the stage whose model is the result."""
        return [row for row in read_rows(job.run / "metrics.jsonl") if row["stage"] == self.stage]

    def _last(self, job: Job) -> dict[str, float]:
        last: dict[str, float] = {}
        for row in self._rows(job):
            last |= {name: value for name, value in row.items() if isinstance(value, float) and name != "time"}
        return last


def _told(trial: optuna.trial.FrozenTrial, names: Sequence[str]) -> Job:
    """A settled trial of an earlier session as a job."""
    attrs = trial.user_attrs
    values = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in trial.params.items()}
    job = Job(trial.number + 1, list(attrs["words"]), values, Path(attrs["run"]), attrs["state"], attrs["reason"])
    if trial.values is not None and job.state == "finished":
        job.extra = dict(zip(names, trial.values, strict=False))
    return job


def _text(value: object) -> str:
    """A drawn value as it is typed."""
    return repr(value) if isinstance(value, float) else str(value)
