"""What an evaluation leaves: numbers, logits, the class table, pictures, and the figures in ``model.json``.

They lie in ``evaluation/`` of a run, or beside it for other images than the run's own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import DatasetConfig
from vitlab.config.words import dataset_title, describe_own_images
from vitlab.data.table import no_formula
from vitlab.files import atomic_write, write_json
from vitlab.modes.select_model import SelectedModel
from vitlab.run.environment import now

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from vitlab.data.batch import Batch
    from vitlab.data.datamodule import VisionData
    from vitlab.measure.record import Record
    from vitlab.report.data import DatasetInfo, Example
    from vitlab.tasks.base import Answers, Task

EXAMPLES = 24  # worst mistakes that are shown
THUMBNAIL = 160  # pixels of their longer side
ASIDE = ("root", "csv", "download", "embedded", "synthetic")
"""Keys of dataset. that do not decide by themselves which images are measured: data may have moved."""


@dataclass
class Measured:
    """One model's logits on the measured images, and what follows from them."""

    subject: SelectedModel
    evaluation: Record
    answers: Answers  # of the model's classes
    images: str  # fingerprint of the measured images and their labels
    data: VisionData

    @property
    def task(self) -> Task:
        """What the model predicts."""
        return self.subject.task


def folder_of(subject: SelectedModel, kind: str = "evaluation") -> Path:
    """Where files of this ``kind`` go: ``evaluation/`` of the run for its own images; for others a folder beside it,
    named by what is measured (the content of the images, and the keys of ``dataset.`` and ``debug.`` that differ)."""
    if subject.run is None:
        return subject.folder
    tree = subject.run.tree
    other: dict[str, object] = {}
    for group in ("dataset", "debug"):
        stored, wanted = tree[group], asdict(getattr(subject.config, group))
        assert isinstance(stored, dict)
        other |= {
            f"{group}.{key}": wanted[key] for key in stored if key not in ASIDE and wanted.get(key) != stored[key]
        }
    if not other and subject.is_own:
        return subject.folder / kind
    other["images"] = subject.content
    digest = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8]
    return subject.folder / f"{kind}-{subject.config.dataset.name}-{digest}"


def stem_of(subject: SelectedModel) -> str:
    """What the files of this model are called."""
    return subject.artifact.name if subject.run is not None and subject.artifact is not None else "model"


def evaluation_logits(network: torch.nn.Module, batch: Batch, device: torch.device) -> NDArray[np.float32]:
    """Logits [B, C] of a network in eval mode."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = network(batch.image.to(device, non_blocking=True))
    return logits.float().cpu().numpy()


def weights_of(subject: SelectedModel) -> str:
    """SHA-256 of a model's weights: what a measurement of it belongs to."""
    if subject.meta.sha256:
        return subject.meta.sha256
    digest = hashlib.sha256()
    for name, value in sorted(subject.network().state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write(one: Measured) -> None:
    """``<model>.json`` (the numbers), ``.npz`` (logits, label, index, key and, where there are groups, group: one entry
    for each image), ``-classes.csv`` and ``-predictions.csv``."""
    import numpy as np

    folder, stem = folder_of(one.subject), stem_of(one.subject)
    write_json(folder / f"{stem}.json", one.evaluation.to_dict())
    buffer = io.BytesIO()
    images = one.data.sources["test"]
    named = {"key": [images.keys[int(i)] for i in one.answers.index], "group": one.answers.group}
    text_arrays: dict[str, Any] = {
        name: np.asarray(values, dtype=np.str_) for name, values in named.items() if values is not None
    }
    answers = one.answers
    np.savez(buffer, logits=answers.logits, label=answers.label, index=answers.index, **text_arrays)
    atomic_write(folder / f"{stem}.npz", buffer.getvalue())
    text = io.StringIO()
    table = csv.writer(text)
    rows = one.task.class_table(one.evaluation)
    table.writerows([no_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    atomic_write(folder / f"{stem}-classes.csv", text.getvalue())
    atomic_write(folder / f"{stem}-predictions.csv", predictions_table(one))


def predictions_table(one: Measured) -> bytes:
    """CSV with a row for each image, the largest loss first: where labels are wrong, they stand at its top.

    ``probability`` is that of the prediction and ``loss`` what training minimises, both of the logits as they are: the
    mean of ``loss`` is the NLL. Names of files are any bytes, as they are on the disk.
    """
    import numpy as np

    keys, answers = one.data.sources["test"].keys, one.answers
    outcomes, losses = one.task.outcomes(answers, one.evaluation), one.task.losses(answers)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "predicted", "probability", "loss"])
    for row in np.argsort(-losses, kind="stable").tolist():
        label, predicted, probability = outcomes[row]
        cells = [keys[int(answers.index[row])], label, predicted]
        table.writerow([*map(no_formula, cells), f"{probability:.6f}", f"{losses[row]:.6f}"])
    return text.getvalue().encode("utf-8", "surrogateescape")


def note_in_model(one: Measured) -> None:
    """The figures into ``model.json`` of a run's model, if these are the run's own images. Weights and their hash, by
    which stored targets identify a teacher, stay as they are."""
    from vitlab.models.artifact import write_metrics

    subject = one.subject
    if subject.run is None or subject.artifact is None or folder_of(subject) != subject.run.folder / "evaluation":
        return
    about = {
        "dataset": subject.config.dataset.name,
        "split": one.data.split_names["test"],
        "images": one.evaluation.n,
        "synthetic": one.data.synthetic,
        "date": now(),
    }
    subject.meta.metrics = about | one.evaluation.metrics()
    subject.meta.fitted = one.task.stored_with_model(one.evaluation)
    write_metrics(subject.artifact, subject.meta.metrics, subject.meta.fitted)


def write_report_inputs(one: Measured, folder: Path) -> None:
    """What a report needs beside the numbers: the worst mistakes of this model, and the data in words."""
    write_json(folder / "mistakes.json", [asdict(each) for each in worst_mistakes(one)])
    write_json(folder / "dataset.json", asdict(describe_dataset(one)))


def draw(one: Measured) -> None:
    """The task's figures (reliability diagram, confusion matrix, ...) and the worst mistakes as PNG."""
    from vitlab.report import plots, style

    folder, stem, theme = folder_of(one.subject), stem_of(one.subject), style.LIGHT
    with style.themed(theme):
        pictures = one.task.pictures(one.subject.title, one.evaluation, theme)
        for name, figure in (pictures | {"mistakes": plots.mistakes(worst_mistakes(one), theme)}).items():
            if figure is not None:
                if one.data.synthetic:
                    style.mark_synthetic(figure, theme)
                atomic_write(folder / f"{stem}-{name}.png", style.png(figure))


def describe_dataset(one: Measured) -> DatasetInfo:
    """The data that every number speaks about."""
    from vitlab.data.sources import fingerprint
    from vitlab.report.data import DatasetInfo

    config, data = one.subject.config, one.data
    description, origin = dataset_words(config.dataset)
    return DatasetInfo(
        name=dataset_title(config.dataset.name, config.dataset.root, config.dataset.csv),
        description=description,
        origin=origin,
        train=data.sizes["train"] or trained_on(one.subject),
        test=data.sizes["test"],
        split=data.split_names["test"],
        classes=list(data.classes),
        size=data.eval_view.size,
        synthetic=data.synthetic,
        fingerprint=data.fingerprint,
        val=data.sizes["val"] if fingerprint(data.sources["val"]) != one.images else 0,
    )


def dataset_words(cfg: DatasetConfig) -> tuple[str, str]:
    """What the data are, and where they come from: the head of their YAML; of a user's own images there is no more to
    know than their place."""
    from vitlab.config.catalogue import conf_dir, head, origin

    if cfg.name == "folder":
        return describe_own_images(cfg), ""
    path = conf_dir() / "dataset" / f"{cfg.name}.yaml"
    if not path.is_file():
        return "", ""
    made_by = origin(path)
    return head(path), f"Origin: {made_by}" if made_by else ""


def trained_on(subject: SelectedModel) -> int:
    """How many images a run's model was trained on, as its stage noted; 0 where that is not known."""
    if subject.run is None or subject.stage is None:
        return 0
    return int(str(subject.run.read_done(subject.stage.name).get("images", 0)))


def worst_mistakes(one: Measured) -> list[Example]:
    """The images that are most confidently wrong, worst first."""
    import numpy as np

    source = one.data.sources["test"]

    def picture(position: int) -> tuple[NDArray[np.uint8], str]:
        image, _ = source[position]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return np.asarray(image.convert("RGB")), str(source.keys[position])

    return one.task.worst_mistakes(one.answers, one.evaluation, picture, EXAMPLES)
