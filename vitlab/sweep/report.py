"""Report of a search: the best trials with the commands that run them again, and Optuna's plots."""

from __future__ import annotations

import io
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.files import atomic_write
from vitlab.sweep.table import Job

if TYPE_CHECKING:
    import optuna

SELECTION_NOTE = "The best of many trials is biased by its selection: confirm it by runs with other seeds."


def write_search_report(study: optuna.Study, folder: Path, jobs: Sequence[Job]) -> tuple[str, str]:
    """The report in Markdown, with plots written into ``folder``, and as text for the terminal."""
    states = [job.state for job in jobs]
    counts = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
    names = study.metric_names or []
    goal = ", ".join(f"{way.name.lower()} {name}" for way, name in zip(study.directions, names, strict=True))
    best = sorted(study.best_trials, key=lambda trial: trial.values or []) if "finished" in states else []
    words = {job.number: job.words for job in jobs}
    lines = [f"{goal}: {len(jobs)} trials ({counts})"]
    page = [f"To {goal}: {len(jobs)} trials ({counts})."]
    label = "on the Pareto front" if len(names) > 1 else "best"
    for trial in best[:12]:
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values or [], strict=True))
        command = shlex.join(["python", "-m", "vitlab", *words[trial.number + 1]])
        lines.append(f"{label}: run {trial.number + 1}, {values}\n  {command}")
        page.append(f"- {label}: run {trial.number + 1}, {values}: `{command}`")
    if best:
        lines.append(SELECTION_NOTE)
        page.append(SELECTION_NOTE)
    text = "\n".join(page[:1]) + "\n\n" + "\n".join(page[1:])
    plots = _plots(study)
    for name, drawing in plots.items():
        atomic_write(folder / f"{name}.png", drawing)
    if plots:
        text += "\n\nThe plots are Optuna's, which counts trials from 0: its trial 0 is run 1."
    return text.strip() + "".join(f"\n\n![{name}]({name}.png)" for name in plots), "\n".join(lines)


def _plots(study: optuna.Study) -> dict[str, bytes]:
    """Optuna's plots that are possible for this study, as PNG by name."""
    import matplotlib

    matplotlib.use("Agg", force=True)  # Optuna draws with pyplot, which may need a display
    import optuna.visualization.matplotlib as draw
    from matplotlib import pyplot
    from optuna.trial import TrialState

    from vitlab.report.style import DPI, LIGHT, themed

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 2:
        return {}
    names = study.metric_names or []
    functions: dict[str, Callable[[], Any]] = {}
    if len(names) == 1:
        functions["history"] = lambda: draw.plot_optimization_history(study, target_name=names[0])
        functions["slices"] = lambda: draw.plot_slice(study, target_name=names[0])
        if any(one.intermediate_values for one in study.get_trials(deepcopy=False)):
            functions["intermediate_values"] = lambda: draw.plot_intermediate_values(study)
        spread = len({one.value for one in done}) > 1
        if len(done) >= 4 and spread:
            functions["importance"] = lambda: draw.plot_param_importances(study, target_name=names[0])
    elif len(names) == 2:
        functions["pareto"] = lambda: draw.plot_pareto_front(study, target_names=list(names))
    images: dict[str, bytes] = {}
    for name, plot in functions.items():
        with themed(LIGHT), warnings.catch_warnings(), pyplot.style.context("default"):
            warnings.simplefilter("ignore")
            axes = plot()
            drawing = (axes.flat[0] if hasattr(axes, "flat") else axes).get_figure()
            buffer = io.BytesIO()
            drawing.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")  # do not cut long keys
            images[name] = buffer.getvalue()
            pyplot.close(drawing)
    return images
