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

from vitlab.files import atomic_write, write_json
from vitlab.modes.select_model import SelectedModel
from vitlab.run.environment import now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitlab.data.datamodule import VisionData
    from vitlab.measure.classification import Evaluation
    from vitlab.report.data import DatasetInfo, Example

EXAMPLES = 24  # worst mistakes that are shown
ASIDE = ("root", "download", "embedded", "synthetic")  # keys of dataset. that do not change the images


@dataclass
class Measured:
    """One model's answers on the measured images."""

    subject: SelectedModel
    evaluation: Evaluation
    logits: NDArray[np.float32]  # [N, C]
    label: NDArray[np.int64]  # [N], numbers of the model's classes
    images: str  # fingerprint of the measured images and their labels
    data: VisionData
    index: NDArray[np.int64]  # [N] into the test split


def folder_of(subject: SelectedModel) -> Path:
    """Where the files go: ``evaluation/`` of the run, or beside it when the prompt asks for other images."""
    if subject.run is None:
        return subject.folder
    tree = subject.run.tree
    other: dict[str, object] = {}
    for group in ("dataset", "debug"):
        stored, asked = tree[group], asdict(getattr(subject.config, group))
        assert isinstance(stored, dict)
        other |= {f"{group}.{key}": asked[key] for key in stored if key not in ASIDE and asked.get(key) != stored[key]}
    if not other:
        return subject.folder / "evaluation"
    digest = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8]
    return subject.folder / f"evaluation-{subject.config.dataset.name}-{digest}"


def stem_of(subject: SelectedModel) -> str:
    """What the files of this model are called."""
    return subject.artifact.name if subject.run is not None and subject.artifact is not None else "model"


def write(one: Measured) -> None:
    """``<model>.json`` (the numbers), ``.npz`` (logits, label, index, key and, where there are groups, group: one entry
    for each image) and ``-classes.csv``."""
    import numpy as np

    from vitlab.data.sources import groups_at

    folder, stem = folder_of(one.subject), stem_of(one.subject)
    write_json(folder / f"{stem}.json", one.evaluation.to_dict())
    buffer = io.BytesIO()
    images = one.data.sources["test"]
    named = {"key": [images.keys[int(i)] for i in one.index], "group": groups_at(images, one.index)}
    text_arrays: dict[str, Any] = {
        name: np.asarray(values, dtype=np.str_) for name, values in named.items() if values is not None
    }
    np.savez(buffer, logits=one.logits, label=one.label, index=one.index, **text_arrays)
    atomic_write(folder / f"{stem}.npz", buffer.getvalue())
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["class", "images", "predicted", "recall", "precision", "f1", "most often taken for"])
    for c in one.evaluation.per_class:
        table.writerow([c.name, c.n, c.predicted, c.recall, c.precision, c.f1, c.confused_with])
    atomic_write(folder / f"{stem}-classes.csv", text.getvalue())


def note_in_model(one: Measured) -> None:
    """The figures into ``model.json`` of a run's model, if these are the run's own images. Weights and their hash, by
    which stored targets know a teacher, stay as they are."""
    from vitlab.models.artifact import note_metrics

    subject = one.subject
    if subject.run is None or subject.artifact is None or folder_of(subject) != subject.run.folder / "evaluation":
        return
    about = {
        "dataset": subject.config.dataset.name,
        "split": one.data.split_names["test"],
        "images": len(one.label),
        "synthetic": one.data.synthetic,
        "date": now(),
    }
    subject.meta.metrics = about | one.evaluation.metrics()
    note_metrics(subject.artifact, subject.meta.metrics)


def write_report_inputs(one: Measured, folder: Path) -> None:
    """What a report needs beside the numbers: the worst mistakes of this model, and the data in words."""
    write_json(folder / "mistakes.json", [asdict(each) for each in worst_mistakes(one)])
    write_json(folder / "dataset.json", asdict(describe_dataset(one)))


def draw(one: Measured) -> None:
    """The reliability diagram, the confusion matrix and the worst mistakes as PNG."""
    from vitlab.report import plots, style

    folder, stem, theme = folder_of(one.subject), stem_of(one.subject), style.LIGHT
    with style.themed(theme):
        for name, figure in (
            ("reliability", plots.reliability(one.subject.title, one.evaluation, theme, 0)),
            ("confusion", plots.confusion(one.evaluation, theme)),
            ("mistakes", plots.mistakes(worst_mistakes(one), theme)),
        ):
            if figure is not None:
                if one.data.synthetic:
                    style.mark_synthetic(figure, theme)
                atomic_write(folder / f"{stem}-{name}.png", style.png(figure))


def describe_dataset(one: Measured) -> DatasetInfo:
    """The data that every number speaks about."""
    from vitlab.config.catalogue import conf_dir, head, origin
    from vitlab.data.sources import fingerprint
    from vitlab.report.data import DatasetInfo

    config, data = one.subject.config, one.data
    path = conf_dir() / "dataset" / f"{config.dataset.name}.yaml"
    return DatasetInfo(
        name=config.dataset.name,
        description=head(path) if path.exists() else "",
        origin=f"Origin: {told}" if path.exists() and (told := origin(path)) else "",
        train=data.sizes["train"] or trained_on(one.subject),
        test=data.sizes["test"],
        split=data.split_names["test"],
        classes=list(data.classes),
        size=data.eval_view.size,
        synthetic=data.synthetic,
        fingerprint=data.fingerprint,
        val=data.sizes["val"] if fingerprint(data.sources["val"]) != one.images else 0,
    )


def trained_on(subject: SelectedModel) -> int:
    """How many images a run's model was trained on, as its stage noted; 0 where nobody knows."""
    if subject.run is None or subject.stage is None:
        return 0
    return int(str(subject.run.read_done(subject.stage.name).get("images", 0)))


def worst_mistakes(one: Measured) -> list[Example]:
    """The images that were called by a wrong name with the most confidence, worst first."""
    import numpy as np

    from vitlab.report.data import Example

    logits, label, source, classes = one.logits, one.label, one.data.sources["test"], one.evaluation.classes
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    prob = shifted / shifted.sum(1, keepdims=True)
    predicted = logits.argmax(1)
    wrong = np.flatnonzero(predicted != label)
    wrong = wrong[np.argsort(-prob[wrong, predicted[wrong]], kind="stable")][:EXAMPLES]
    examples = []
    for row in wrong:
        image, _ = source[int(one.index[row])]
        image.thumbnail((160, 160))
        examples.append(
            Example.of(
                np.asarray(image.convert("RGB")),
                classes[label[row]],
                classes[predicted[row]],
                float(prob[row, predicted[row]]),
                float(prob[row, label[row]]),
                str(source.keys[int(one.index[row])]),
            )
        )
    return examples
