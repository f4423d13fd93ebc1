"""Cross-validation: the runs of all folds, their out-of-fold predictions pooled into one measurement.

Every image is tested in one fold, by a model that was not trained on it. The pooled metrics are those of all images
together, with a bootstrap interval over images (over groups if there are groups). The mean and standard deviation over
folds show how much the result varies with training and test images; the training sets of the folds overlap, so the
folds are not independent repetitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.files import read_json
from vitlab.run.run import Run
from vitlab.tasks.base import Task, find_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLD = "dataset.fold"


@dataclass
class Pooled:
    """Metrics of runs that differ only in the fold."""

    values: dict[str, str]  # the other swept keys
    folds: int
    reason: str = ""  # why nothing is pooled
    images: int = 0
    groups: int | None = None
    metrics: dict[str, float] | None = None  # of all images together
    intervals: dict[str, list[float]] | None = None  # 95 %, bootstrap over images or groups
    mean: dict[str, float] | None = None  # of the folds' own metrics
    spread: dict[str, float] | None = None  # their sample standard deviation


def pool_folds(finished: Iterable[tuple[dict[str, str], Path]]) -> list[Pooled]:
    """One entry per setting of the other swept keys, in their order; [] if no fold is swept.

    Args:
        finished: the swept keys with their values, and the folder, of every finished run.
    """
    by_values: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for values, folder in finished:
        if FOLD in values:
            key = tuple((name, value) for name, value in values.items() if name != FOLD)
            by_values.setdefault(key, []).append(Run.at(folder))
    return [_pool(dict(key), runs) for key, runs in by_values.items()]


def _pool(values: dict[str, str], runs: Sequence[Run]) -> Pooled:
    import numpy as np

    from vitlab.config import EvaluationConfig
    from vitlab.tasks.base import Answers

    dataset, spec = _part(runs[0], "dataset"), _part(runs[0], "evaluation")
    count = int(dataset["folds"])
    by_fold = {int(_part(run, "dataset")["fold"]): run for run in runs}
    pooled = Pooled(values, count)
    if missing := [str(fold) for fold in range(count) if fold not in by_fold]:
        pooled.reason = f"fold {', '.join(missing)} of {count} is missing"
        return pooled
    if unnamed := [fold for fold in range(count) if not _keyed(by_fold[fold])]:
        pooled.reason = (
            f"the predictions of fold {unnamed[0]} have no image keys: mode=evaluate run={by_fold[unnamed[0]].folder}"
        )
        return pooled
    parts = [_predictions(by_fold[fold]) for fold in range(count)]
    classes = parts[0].classes
    keys = np.concatenate([one.key for one in parts])
    if any(one.classes != classes for one in parts) or len(np.unique(keys)) < len(keys):
        pooled.reason = "the folds differ in their classes or share test images, so they are not of one data set"
        return pooled
    groups = np.concatenate([one.group for one in parts]) if all(one.group is not None for one in parts) else None
    together = Answers(
        np.concatenate([one.logits for one in parts]),
        np.concatenate([one.label for one in parts]),
        np.arange(len(keys)),
        None if groups is None else groups.tolist(),
    )
    task, bins = task_of(runs[0]), int(spec["bins"])
    pooled.images, pooled.groups = len(keys), None if groups is None else len(np.unique(groups))
    record = task.measure(together, None, classes, EvaluationConfig(bins=bins, resamples=int(spec["resamples"])))
    pooled.metrics, pooled.intervals = record.metrics(), record.intervals or None
    alone = EvaluationConfig(bins=bins, resamples=0)
    own = [task.measure(Answers(one.logits, one.label, np.arange(len(one.key))), None, classes, alone) for one in parts]
    rows = [one.metrics() for one in own]
    pooled.mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    pooled.spread = {name: float(np.std([row[name] for row in rows], ddof=1)) for name in rows[0]}
    return pooled


@dataclass
class _Predictions:
    """Outputs of a run's result for its test images."""

    logits: NDArray[np.float32]  # [N, C]
    label: NDArray[Any]  # [N], or rows [N, K]
    key: NDArray[np.str_]  # [N]
    group: NDArray[np.str_] | None  # [N]
    classes: list[str]


def _keyed(run: Run) -> bool:
    """Whether the predictions have the keys of their images; those of earlier versions have not."""
    import numpy as np

    with np.load(
        run.folder / "evaluation" / f"{run.read_done('evaluation')['result']}.npz", allow_pickle=False
    ) as kept:
        return "key" in kept


def _predictions(run: Run) -> _Predictions:
    import numpy as np

    stem = str(run.read_done("evaluation")["result"])
    folder = run.folder / "evaluation"
    with np.load(folder / f"{stem}.npz", allow_pickle=False) as kept:
        group = kept.get("group")
        classes = list(read_json(folder / f"{stem}.json")["classes"])
        return _Predictions(kept["logits"], kept["label"], kept["key"], group, classes)


def _part(run: Run, name: str) -> Mapping[str, Any]:
    part = run.tree[name]
    assert isinstance(part, dict)
    return part


def task_of(run: Run) -> Task:
    """What the run's models predict; runs of before there were several tasks classify."""
    stored = run.tree.get("task")
    return find_task(str(stored["name"]) if isinstance(stored, dict) else "classification")


def fold_table(entries: Sequence[Pooled], task: Task) -> tuple[list[list[str]], list[str]]:
    """Rows of a table, headings first, and sentences that explain it and name what is missing."""
    heading = ["Metric", "Folds", "Images", "Pooled", "95 %", "Mean ± sd over folds"]
    columns = [(one.key, one.title, one.unit, one.digits) for one in task.metrics if one.key in task.pooled]
    rows = [[*(entries[0].values if entries else {}), *heading]]
    lines = []
    for one in entries:
        name = " ".join(f"{key}={value}" for key, value in one.values.items())
        if one.metrics is None or one.mean is None or one.spread is None:
            lines.append(f"{name + ': ' if name else ''}nothing is pooled, {one.reason}.")
            continue
        for key, title, unit, digits in columns:
            ends = (one.intervals or {}).get(key)
            rows.append(
                [
                    *one.values.values(),
                    *(title, str(one.folds), f"{one.images:,}", f"{unit * one.metrics[key]:.{digits}f}"),
                    "–" if ends is None else f"{unit * ends[0]:.{digits}f} to {unit * ends[1]:.{digits}f}",
                    f"{unit * one.mean[key]:.{digits}f} ± {unit * one.spread[key]:.{digits}f}",
                ]
            )
    measured = [one for one in entries if one.metrics is not None]
    if measured:
        drawn = "images" if measured[0].groups is None else f"{measured[0].groups:,} groups"
        lines.append(
            "Pooled: every image once, by the model that was not trained on it; 95 % interval of a bootstrap over "
            f"{drawn}. The folds' training sets overlap: ± over folds is not the error of independent repetitions."
        )
    return rows, lines
