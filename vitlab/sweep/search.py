"""``-m sweep=optuna``: trials sampled by Optuna instead of all combinations, pruned early, stored in SQLite.

    python -m vitlab -m sweep=optuna 'recipe.lr=tag(log,interval(1e-4,1e-2))' recipe.optimizer=adamw,lamb
    python -m vitlab -m sweep=optuna ... sweep.maximize=[val_top1] sweep.minimize=[latency_ms_1] sweep.prune=null

The space is written in Hydra's syntax: ``a,b`` and ``choice(a,b)`` are categories, ``range(8,65,8)`` integers with a
step, ``interval(a,b)`` a range (of integers if the key takes integers), ``tag(log,...)`` a logarithmic range. Both ends
are composed, so a space with invalid values is refused before anything runs.

The study is stored in ``OUTPUT/sweeps/NAME/study.db``. Each trial is drawn by a sampler seeded by (seed, trial), so a
search that was stopped continues with the same trials; a trial that was running is continued under its number.
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
from vitlab.run.folder_lock import locked
from vitlab.run.recorder import Row, read_rows
from vitlab.sweep.jobs import SignalForwarder, print_line, run_jobs
from vitlab.sweep.table import Job, results, write_comparison
from vitlab.sweep.words import LOCKED_CURE, example, is_sweep_key, sweep_folder, values_of
from vitlab.tasks.base import find_task

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

CHANGEABLE = ("sweep.jobs", "sweep.trials", "sweep.name")
"""Keys that may differ when a search continues."""


def search(plain: list[str], swept: list[Override], first: Composed, command: str) -> int:
    """Run trials until there are ``sweep.trials``; 0 if all of them finished or were pruned, else 1.

    Raises:
        UserError: an invalid space or metric; the folder contains another search.
        Interrupted: Ctrl-C or SIGTERM; the running jobs have saved and stopped.
    """
    spec = first.config.sweep
    common = [word for word in plain if not is_sweep_key(word)]
    space = {one.get_key_element(): distribution(one, first) for one in swept}
    for override in swept:
        others = [example(other) for other in swept if other is not override]
        for value in values_of(override):
            load([*common, *others, f"{override.get_key_element()}={value}"])
    kept = [word for word in plain if not word.startswith(CHANGEABLE)] + [str(one.input_line) for one in swept]
    definition = json.dumps(sorted(kept))
    name = spec.name or "search-" + hashlib.sha256(definition.encode()).hexdigest()[:8]
    folder = sweep_folder(first, name)
    with locked(folder, LOCKED_CURE), SignalForwarder() as signals:
        print(f"search   {folder}  ({spec.trials} trials, {spec.jobs} in parallel)", flush=True)
        queue = Search(folder, common, space, first, definition)
        run_jobs(queue, folder, spec.jobs, signals)
        from vitlab.sweep.report import write_search_report

        about, summary = write_search_report(queue.study, folder, queue.jobs)
        table = write_comparison(folder, queue.jobs, command, about=about, show=queue.names)
    print(f"\n{table}\n\n{summary}\n\ncompared {folder / 'comparison.md'}")
    if queue.mistake is not None:
        raise queue.mistake
    if signals.times:
        raise Interrupted("Stopped; finished work is saved. The same command continues.")
    return 0 if all(job.state in ("finished", "pruned") for job in queue.jobs) else 1


def distribution(swept: Override, first: Composed) -> BaseDistribution:
    """Optuna's distribution for a swept key.

    Raises:
        UserError: the range is empty, or the logarithm of its lower end is not defined.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, line = swept.value(), swept.input_line
    key = swept.get_key_element()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        field = find(key, fields(find_method(first.config.method.name).Options))
        # By the type of the key, or by Hydra's cast: int(interval(1,5)).
        integers = (field is not None and field.kind == "a whole number") or isinstance(value.start, int)
        log = "log" in value.tags
        if not value.start < value.end or (log and value.start <= 0):
            raise UserError(f"{line}: an empty range.", "Write interval(LOW,HIGH), both above 0 for log.")
        if integers:
            return IntDistribution(round(value.start), round(value.end), log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    texts = values_of(swept)
    if isinstance(value, RangeSweep) and all(text.lstrip("-").isdigit() for text in texts):
        return IntDistribution(int(texts[0]), int(texts[-1]), step=abs(int(value.step)))
    return CategoricalDistribution(texts)


class Search:
    """Trials of a study as jobs; ``jobs`` starts with those of earlier sessions.

    Args:
        folder: of the sweep.
        words: overrides of every job.
        space: distribution of every swept key.
        first: a job, composed with the keys of the sweep.
        definition: of the search, as text; a folder contains one search.

    Raises:
        UserError: the folder contains another search.
    """

    def __init__(
        self, folder: Path, words: list[str], space: dict[str, BaseDistribution], first: Composed, definition: str
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
        if self.study.user_attrs.get("what", definition) != definition:
            raise UserError(
                f"{folder} contains another search: {shlex.join(json.loads(self.study.user_attrs['what']))}.",
                "Give another sweep.name.",
            )
        self.study.set_user_attr("what", definition)
        self.study.set_metric_names(self.names)
        self.total = self.spec.trials
        self.mistake: UserError | None = None
        self.jobs: list[Job] = []
        self.trials: dict[int, optuna.trial.Trial] = {}  # running, by number
        self.duplicates: dict[Path, list[tuple[optuna.trial.Trial, Job]]] = {}  # wait for a trial of the same run
        self.reported: dict[int, int] = {}  # trial: the step that was reported last
        self.continued: list[optuna.trial.FrozenTrial] = []
        self.drawn = 0  # trials that count towards sweep.trials: all but the failed ones of earlier sessions
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                self.jobs.append(_finished_job(trial, self.names))
                self.drawn += trial.state.name != "FAIL"
            else:
                self.continued.append(trial)
                self.drawn += 1

    def _pruner(self) -> optuna.pruners.BasePruner:
        from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

        if self.spec.prune is None:
            return NopPruner()
        name = self.names[0]
        metric = f"val_{name}" if name in self.task.validated else name
        if metric == name and not metric.startswith(("val_", "train_", "loss")):
            raise UserError(
                f"sweep.prune={self.spec.prune}: {self.names[0]} has no values before the end of a run.",
                "Give sweep.prune=null, or a metric of the record, such as val_top1, val_nll or loss.",
            )
        self.metric = metric
        if self.spec.prune == "halving":
            return SuccessiveHalvingPruner()
        return MedianPruner(n_startup_trials=self.spec.startup)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler seeded by (seed, trial)."""
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
                self.reported[frozen.number + 1] = max(frozen.intermediate_values, default=-1)
            elif self.drawn < self.spec.trials:
                self.drawn += 1
                self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
                trial = self.study.ask(self.space)
            else:
                return None
            job = self._job(trial)
            if job is not None:
                return job
        return None

    def should_prune(self, job: Job) -> bool:
        """Report the validations since the last call to the pruner, and return its decision."""
        if self.spec.prune is None:
            return False
        trial, prune = self.trials[job.number], False
        for row in self._rows(job):
            step, value = row["step"], row.get(self.metric)
            if not isinstance(value, float) or not isinstance(step, int) or step <= self.reported.get(job.number, -1):
                continue
            self.reported[job.number] = step
            trial.report(value, step)
            prune = prune or trial.should_prune()
        return prune

    def on_end(self, job: Job) -> None:
        trial = self.trials.pop(job.number)
        self._record(trial, job)
        for duplicate, other in self.duplicates.pop(job.run, []):
            other.state, other.reason = job.state, f"the same run as {job.number}"
            self._record(duplicate, other)

    # -- one trial ---------------------------------------------------------------------------------------------------

    def _job(self, trial: optuna.trial.Trial) -> tuple[Job, Composed] | None:
        """The job of a trial; None if it is not started: its run exists already, or its values are invalid."""
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
            self._record(trial, job)
            return None
        self.stage = result_of(find_method(composed.config.method.name).stages(composed.config)).name
        same = next((one for one in self.jobs if one is not job and one.run == job.run), None)
        if same is not None and same.state == "waiting":
            self.duplicates.setdefault(job.run, []).append((trial, job))
            return None
        if find_run(composed).state == "finished" or (same is not None and same.state == "pruned"):
            job.state = "finished" if same is None else same.state
            job.reason = "" if same is None else f"the same run as {same.number}"
            print_line(job, self.total, f"{job.state} before")
            self._record(trial, job)
            return None
        self.trials[job.number] = trial
        return job, composed

    def _record(self, trial: optuna.trial.Trial, job: Job) -> None:
        """Record the result of a trial in the study; a stopped trial stays open and is continued."""
        from optuna.trial import TrialState

        if job.state == "stopped":
            return
        known = {**self._last(job), **results(job)} if job.state == "finished" else {}
        job.extra = {name: known[name] for name in self.names if name in known}
        if job.state == "finished" and len(job.extra) < len(self.names):
            missing = next(name for name in self.names if name not in known)
            job.state, job.reason = "failed", f"it has no {missing}"
            self.mistake = UserError(
                f"{job.run} has no metric {missing}.", f"Its metrics are: {', '.join(sorted(known))}."
            )
        for key, value in (("words", job.words), ("run", str(job.run)), ("state", job.state), ("reason", job.reason)):
            trial.set_user_attr(key, value)
        if job.state == "finished":
            self.study.tell(trial, [job.extra[name] for name in self.names])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if job.state == "pruned" else TrialState.FAIL)

    def _rows(self, job: Job) -> list[Row]:
        """Rows of the record of a job's run, of the stage whose model is the result."""
        return [row for row in read_rows(job.run / "metrics.jsonl") if row["stage"] == self.stage]

    def _last(self, job: Job) -> dict[str, float]:
        last: dict[str, float] = {}
        for row in self._rows(job):
            last |= {name: value for name, value in row.items() if isinstance(value, float) and name != "time"}
        return last


def _finished_job(trial: optuna.trial.FrozenTrial, names: Sequence[str]) -> Job:
    """A finished trial of an earlier session as a job."""
    attrs = trial.user_attrs
    values = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in trial.params.items()}
    job = Job(trial.number + 1, list(attrs["words"]), values, Path(attrs["run"]), attrs["state"], attrs["reason"])
    if trial.values is not None and job.state == "finished":
        job.extra = dict(zip(names, trial.values, strict=False))
    return job


def _text(value: object) -> str:
    """A drawn value as text for an override."""
    return repr(value) if isinstance(value, float) else str(value)
