"""The last steps of every run: evaluation, benchmark, export of the result, report."""

from __future__ import annotations

from dataclasses import asdict

from vitlab.config import Config
from vitlab.data.build import write_splits
from vitlab.files import read_json, write_json
from vitlab.methods.base import Stage, find_method, suggestions
from vitlab.modes import benchmark, evaluate, export
from vitlab.modes.find_runs import result_of
from vitlab.modes.log_to_wandb import log_models
from vitlab.modes.robustness import measure_robustness
from vitlab.modes.select_model import select_models
from vitlab.report.card import write_card
from vitlab.report.collect import collect
from vitlab.report.compare import compare
from vitlab.report.verdict import is_worse, verdict
from vitlab.report.write import write_report
from vitlab.run.run import Run
from vitlab.tasks.base import find_task
from vitlab.training.distributed import rank
from vitlab.training.interrupt import stop_if_requested
from vitlab.training.progress import print_line


def models_made(run: Run, stages: list[Stage]) -> list[Stage]:
    """The stages whose artifact is a model."""
    return [stage for stage in stages if (run.folder / stage.name / "model.json").exists()]


def evaluate_models(run: Run, config: Config, stages: list[Stage]) -> None:
    """Evaluate every model of a run, unless that is done; all ranks call this, and rank 0 writes."""
    measured = models_made(run, stages)
    last = run.folder / "evaluation" / "comparisons.json"  # written after the marker: a kill may come between the two
    if not measured or (run.is_done("evaluation") and last.exists()):
        return
    evaluations = evaluate.evaluate(select_models(run, config, measured))
    if rank() == 0:
        write_splits(run.folder / "splits.csv", config.dataset, config.seed)
        comparisons = [asdict(comparison) for comparison in evaluate.compare(evaluations)]
        write_json(last, comparisons)


def finish_run(run: Run, config: Config, stages: list[Stage], command: str) -> None:
    """Evaluate, benchmark, export and report; each is skipped if an earlier session finished it."""
    measured = models_made(run, stages)
    notes = [
        f"The {stage.title} was loaded, not trained here, and is not in the table."
        for stage in stages
        if stage.makes == "model" and stage not in measured
    ]
    if not measured:
        lines = [f"{stage.makes:<12} {run.folder / stage.name}" for stage in stages]
        run.finish({"table": "\n".join(lines)})
        print("\n" + "\n".join(lines))
        return
    primary = result_of(measured)
    evaluate_models(run, config, stages)
    subjects, task = select_models(run, config, measured), find_task(config.task)
    stop_if_requested()
    robustness = measure_robustness(subjects)
    if not run.is_done("benchmark"):
        run.mark_done("benchmark", {"costs": benchmark.costs(subjects)})
        stop_if_requested()
    result = next(subject for subject in subjects if subject.stage is primary)
    if config.export.formats and not run.is_done("export"):
        run.mark_done("export", export.export_subject(result, run.stage_folder("export")))
        stop_if_requested()
    print_line("report: tables and figures" if config.report.figures else "report: tables")
    method = find_method(config.method.name).__name__
    if not config.report.figures:
        notes.append(f"Figures were left out (report.figures=false); mode=report run={run.folder} draws them.")
    data = collect(run, task, method, stages, primary, command, notes, suggestions(config, command))
    paths = write_report(run.folder, data, task, config.report.figures)
    write_card(run.folder, data, task)
    log_models(run, config, subjects, data.rows)
    table = compare(data.rows, task.columns, data.paper_rows, data.primary, data.dataset.synthetic).text()
    against = [
        f"{row.name}: {one}" for row in data.rows if row.evaluation is not None for one in task.warnings(row.evaluation)
    ]
    verdicts = verdict(data, task)
    lines = [*against, *(verdicts if is_worse(data, task) else []), ""] if against or is_worse(data, task) else []
    lines += [table, ""] + ([robustness, ""] if robustness else [])
    lines += [*verdicts, ""] if verdicts and not is_worse(data, task) else []
    lines += [f"report   {paths.html}", f"model    {run.folder / primary.name}"]
    if data.exports:
        lines.append(f"exports  {export.describe_held(result)}")
    lines += [f"{file.format:<8} {run.folder / file.path}" for file in data.exports if file.format != "safetensors"]
    for stage in stages:  # debug=overfit
        if (path := run.folder / stage.name / "overfit.json").exists():
            lines += ["", f"{stage.name}: {read_json(path)['verdict']}"]
    run.finish({"table": "\n".join(lines)})
    print("\n" + "\n".join(lines))
