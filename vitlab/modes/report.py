"""mode=report: the page of a run written anew from its files, or several runs side by side.

    python -m vitlab mode=report run=outputs/tinyvit/digits-...
    python -m vitlab mode=report run=[RUN_A,RUN_B]

Nothing is measured here, so neither torch nor the data are needed; after mode=evaluate or mode=benchmark of a run this
brings its page up to date.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.modes.find_runs import (
    command_of,
    config_of,
    find_runs,
    matches_several,
    models_of,
    result_of,
    writing,
)
from vitlab.report.card import write_card
from vitlab.report.collect import collect, training_command
from vitlab.report.compare import compare
from vitlab.report.data import ReportData
from vitlab.report.write import write_report
from vitlab.run.run import Run
from vitlab.tasks.base import find_task

MEANING = "the page of a run written anew, or several side by side: run=[A,B]"
READS = ("run", "report")


def answer(composed: Composed) -> int:
    """Write and print; the exit code."""
    found = find_runs(composed)
    if not found:
        raise UserError("mode=report needs a run.", "Give run=FOLDER, or several: run=[A,B].")
    card, figures = None, composed.config.report.figures
    runs = list({run.folder: run for run, _ in found}.values())
    reports = _reports(runs, composed)
    runs = [run for run in runs if str(run.folder) in {one.run for one in reports}]
    if len({one.task for one in reports}) > 1:
        raise UserError(
            f"The runs have different tasks: {', '.join(sorted({one.task for one in reports}))}.",
            "Give runs of one task.",
        )
    task = find_task(reports[0].task)
    if len(runs) == 1:
        with writing(runs[0], composed):
            data, folder = reports[0], runs[0].folder
            paths = write_report(folder, data, task, figures)
            card = write_card(folder, data, task)
    else:
        from vitlab.report.compare_runs import side_by_side

        names = short_names(runs)
        data = side_by_side(reports, names, command_of(composed), max(1, composed.config.evaluation.resamples), task)
        digest = hashlib.sha256("|".join(str(run.folder) for run in runs).encode()).hexdigest()[:8]
        folder = Path(composed.config.output) / "report" / f"{len(runs)}-runs-{digest}"
        paths = write_report(folder, data, task, figures)
    print(compare(data.rows, task.columns, data.paper_rows, data.primary, data.dataset.synthetic).text())
    print(f"\nreport   {paths.html}\n         {paths.markdown}, {len(paths.figures)} figures")
    if card is not None:
        print(f"card     {card}")
    return 0


def _reports(runs: Sequence[Run], composed: Composed) -> list[ReportData]:
    """The data of every run; of a glob's runs, those that have no results yet are skipped.

    Raises:
        UserError: a run without results that is named, or none with results.
    """
    reports: list[ReportData] = []
    for run in runs:
        try:
            reports.append(of_run(run, composed))
        except UserError as error:
            if not matches_several(composed) or (run is runs[-1] and not reports):
                raise
            print(f"skipped  {error.what}", file=sys.stderr)
    return reports


def of_run(run: Run, composed: Composed) -> ReportData:
    """The data of one run's report.

    Raises:
        UserError: the run has no model yet, or was not evaluated or benchmarked.
    """
    config = config_of(run, composed)
    stages = models_of(run, config)
    if not stages:
        raise UserError(
            f"{run.folder} has no finished model yet.", "Let its training finish: the same command goes on."
        )
    for step, mode in (("evaluation", "evaluate"), ("benchmark", "benchmark")):
        if not run.is_done(step):
            raise UserError(f"{run.folder} has no {step} yet.", f"Do that first: mode={mode} run={run.folder}.")
    from vitlab.methods.base import find_method, suggestions

    method = find_method(config.method.name)
    every = method.stages(config)
    done = [stage for stage in every if run.is_done(stage.name)]
    notes = [
        f"The {stage.title} was loaded, not trained here, and is not in the table."
        for stage in done
        if stage.makes == "model" and stage not in stages
    ]
    if run.state != "finished":
        left = [stage.name for stage in every if stage not in done]
        notes.append(f"The run is not finished: {', '.join(left) or 'its exports and report'} are still to come.")
    command = training_command(run)
    advice = suggestions(config, command)
    return collect(run, find_task(config.task), method.__name__, done, result_of(stages), command, notes, advice)


def short_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: without the hash where they differ without it, else with the method."""
    bare = [run.name.rpartition("-")[0] or run.name for run in runs]
    if len(set(bare)) == len(runs):
        return bare
    with_method = [f"{run.folder.parent.name} {name}" for run, name in zip(runs, bare, strict=True)]
    if len(set(with_method)) == len(runs):
        return with_method
    full = [run.name for run in runs]
    return full if len(set(full)) == len(runs) else [f"{run.folder.parent.name}/{run.name}" for run in runs]
