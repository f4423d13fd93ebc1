"""What was measured of a run's models, for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitlab.config import Config
from vitlab.files import atomic_write
from vitlab.measure.record import Record
from vitlab.modes.select_model import SelectedModel
from vitlab.report import style
from vitlab.report.data import ModelRow
from vitlab.run.run import Run
from vitlab.tasks.base import Answers
from vitlab.training.wandb_logger import Prediction, model_job

THUMBNAIL = 160  # pixels


def log_models(run: Run, config: Config, subjects: Sequence[SelectedModel], rows: Sequence[ModelRow]) -> None:
    """One job of W&B for each model that a run evaluated; nothing under another logger."""
    if "wandb" not in config.logger.names:
        return
    known = {row.stage: row for row in rows}
    for subject in subjects:
        row = known.get(subject.name)
        if row is None or row.evaluation is None:
            continue
        folder = run.folder / "evaluation"
        pictures = {}
        with style.themed(style.LIGHT):
            for name, figure in subject.task.pictures(row.name, row.evaluation, style.LIGHT).items():
                if figure is not None:
                    pictures[name] = folder / f"{subject.name}-{name}.png"
                    atomic_write(pictures[name], style.png(figure))
        views = run.folder / subject.name / "views.png"
        if views.exists():
            pictures["views"] = views
        model_job(
            config,
            run,
            subject.name,
            subject.role,
            subject.task.tables(row.evaluation),
            summary(row),
            predictions(run, subject, row.evaluation),
            pictures,
        )


def summary(row: ModelRow) -> Mapping[str, float]:
    """The single numbers of a model: metrics, sizes, and ``latency_ms_<batch>``."""
    costs = {name: getattr(row.cost, name) for name in ("params", "macs", "bytes")}
    times = {f"latency_ms_{one.batch}": one.median_ms for one in row.cost.latency}
    return {**row.metrics, **{name: float(value) for name, value in costs.items() if value is not None}, **times}


def predictions(run: Run, subject: SelectedModel, evaluation: Record) -> list[Prediction]:
    """The first ``logger.predictions`` test images and the predictions of the model."""
    count, source = subject.config.logger.predictions, subject.data.sources["test"]
    with np.load(run.folder / "evaluation" / f"{subject.name}.npz", allow_pickle=False) as kept:
        answers = Answers(kept["logits"][:count], kept["label"][:count], kept["index"][:count])
    found = []
    for position, outcome in zip(answers.index.tolist(), subject.task.outcomes(answers, evaluation), strict=True):
        image, _ = source[position]
        image = image.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        found.append(Prediction(str(source.keys[position]), image, *outcome))
    return found
