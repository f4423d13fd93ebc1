"""What was measured of a run's models, for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitlab.config import Config
from vitlab.files import atomic_write
from vitlab.modes.select_model import SelectedModel
from vitlab.report import plots, style
from vitlab.report.data import ModelRow
from vitlab.run.run import Run
from vitlab.training.wandb_logger import Prediction, model_job

THUMBNAIL = 160  # pixels


def log_models(run: Run, config: Config, subjects: Sequence[SelectedModel], rows: Sequence[ModelRow]) -> None:
    """One job of W&B for each model that a run evaluated; nothing under another logger."""
    if config.logger.name != "wandb":
        return
    known = {row.stage: row for row in rows}
    for subject in subjects:
        row = known.get(subject.name)
        if row is None or row.evaluation is None:
            continue
        folder = run.folder / "evaluation"
        pictures = {}
        with style.themed(style.LIGHT):
            for name, figure in (
                ("reliability", plots.reliability(row.name, row.evaluation, style.LIGHT, 0)),
                ("confusion", plots.confusion(row.evaluation, style.LIGHT)),
            ):
                if figure is not None:
                    pictures[name] = folder / f"{subject.name}-{name}.png"
                    atomic_write(pictures[name], style.png(figure))
        views = run.folder / subject.name / "views.png"
        if views.exists():
            pictures["views"] = views
        model_job(
            config, run, subject.name, subject.role, row.evaluation, summary(row), predictions(run, subject), pictures
        )


def summary(row: ModelRow) -> Mapping[str, float]:
    """The single numbers of a model: metrics, sizes, and ``latency_ms_<batch>``."""
    costs = {name: getattr(row.cost, name) for name in ("params", "macs", "bytes")}
    times = {f"latency_ms_{one.batch}": one.median_ms for one in row.cost.latency}
    return {**row.metrics, **{name: float(value) for name, value in costs.items() if value is not None}, **times}


def predictions(run: Run, subject: SelectedModel) -> list[Prediction]:
    """The first ``logger.predictions`` test images and what the model says of them."""
    count, source = subject.config.logger.predictions, subject.data.sources["test"]
    with np.load(run.folder / "evaluation" / f"{subject.name}.npz", allow_pickle=False) as kept:
        logits, label, index = kept["logits"][:count], kept["label"][:count], kept["index"][:count]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    share = shifted / shifted.sum(1, keepdims=True)
    classes, found = subject.meta.classes, []
    for row, position in enumerate(index.tolist()):
        image, _ = source[position]
        image = image.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        best = int(share[row].argmax())
        found.append(
            Prediction(
                str(source.keys[position]), image, classes[int(label[row])], classes[best], float(share[row, best])
            )
        )
    return found
