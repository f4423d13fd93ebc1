"""mode=evaluate: how good and how honest models are, and whether one is better than another.

    python -m vitlab mode=evaluate run=outputs/tinyvit/digits-...          every model of a run
    python -m vitlab mode=evaluate run=[RUN_A,RUN_B]                       the results of runs, on the same images
    python -m vitlab mode=evaluate model=deit_small model.pretrained=true dataset=imagenet dataset.root=/data/in1k

Logits of the test split are kept; what is said about them follows from the files alone. The same code closes a
training.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.compose import Composed
from vitlab.errors import UserError
from vitlab.files import atomic_write, read_json, write_json
from vitlab.modes.named import models_of, result_of, writing
from vitlab.modes.subject import Subject, find_subjects
from vitlab.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitlab.data.module import VisionData
    from vitlab.measure.classification import Evaluation
    from vitlab.measure.resample import Comparison
    from vitlab.report.data import DatasetInfo, Example

EXAMPLES = 24  # worst mistakes that are shown
ASIDE = ("root", "download")  # keys of dataset. that do not change the images


@dataclass
class Measured:
    """One model's answers on the measured images."""

    subject: Subject
    evaluation: Evaluation
    logits: NDArray[np.float32]  # [N, C]
    label: NDArray[np.int64]  # [N], numbers of the model's classes
    images: str  # fingerprint of the measured images and their labels
    data: VisionData
    index: NDArray[np.int64]  # [N] into the test split


def answer(composed: Composed) -> int:
    """Measure, write and tell; the exit code."""
    subjects = find_subjects(composed)
    for subject in subjects:
        if not subject.on_data:
            raise UserError(
                f"mode=evaluate needs images with labels, and {subject.title} belongs to no data set.",
                "Say on which: dataset=NAME (mode=list group=dataset).",
            )
    from vitlab.training.devices import settle

    settle(composed.config)
    found: list[Measured] = []
    for run, group in groupby(subjects, key=lambda one: one.run):
        with writing(run, composed):
            found += evaluate(list(group), pictures=True)
    same_images(found)
    comparisons = compare(found)
    print(summary(found, comparisons))
    folder = keep(found, comparisons, Path(composed.config.output))
    print(
        "\n" + "\n".join(f"written  {one}" for one in dict.fromkeys([*(folder_of(m.subject) for m in found), folder]))
    )
    return 0


def evaluate(subjects: Sequence[Subject], pictures: bool = False) -> list[Measured]:
    """Logits of every model on the test split, and what follows from them, in the subjects' evaluation folders.

    Args:
        subjects: models of one run, or one that no run made.
        pictures: also draw the reliability diagram, the confusion matrix and the worst mistakes.
    """
    found = [measure(subject) for subject in subjects]
    for one in found:
        write(one)
        if pictures:
            draw(one)
    run = subjects[0].run
    if run is not None and folder_of(subjects[0]) == run.folder / "evaluation":
        stages = models_of(run, subjects[0].config)
        primary = next((one for one in found if one.subject.stage == result_of(stages)), None)
        if primary is not None:
            about(primary, run.folder / "evaluation")
        told = run.read_done("evaluation").get("metrics") if run.is_done("evaluation") else None
        metrics = dict(told) if isinstance(told, dict) else {}
        metrics |= {one.subject.artifact.name: one.evaluation.metrics() for one in found if one.subject.artifact}
        if all(stage.name in metrics for stage in stages):
            run.mark_done("evaluation", {"metrics": metrics, "result": result_of(stages).name})
    else:
        about(found[-1], folder_of(subjects[0]))
    return found


def measure(subject: Subject) -> Measured:
    """Run one network over the test split.

    Raises:
        UserError: the classes of the model are not those of the data.
    """
    from vitlab.data.sources import fingerprint
    from vitlab.measure.classification import evaluate_scores, predict, score
    from vitlab.measure.resample import bootstrap
    from vitlab.training.progress import Progress

    data, meta, spec = subject.data, subject.meta, subject.config.evaluation
    number = class_numbers(data.classes, meta.classes, subject.title)
    device = subject.device
    network = subject.network().to(device)
    with Progress(f"evaluate {subject.name}", data.sizes["test"], unit="image") as progress:
        tensors = predict(network, data.test_dataloader(), device, progress.update)
    logits, label, index = (one.numpy() for one in tensors)
    label = number[label]
    scores = score(logits, label)
    found = evaluate_scores(scores, label, meta.classes, spec.bins)
    found.view = str(data.eval_view)
    if spec.resamples:
        found.intervals = {k: list(v) for k, v in bootstrap(scores, spec.bins, spec.resamples).items()}
    one = Measured(subject, found, logits, label, fingerprint(data.sources["test"]), data, index)
    if spec.temperature:
        found.temperature = _temperature(one, network, number)
    return one


def class_numbers(data: Sequence[str], model: Sequence[str], title: str) -> NDArray[np.int64]:
    """For each class of the data its number among the logits. The data may have fewer classes, or in another order;
    predictions then still range over all that the model knows.

    Raises:
        UserError: a class of the data that the model does not know.
    """
    import numpy as np

    place = {name: number for number, name in enumerate(model)}
    strange = [name for name in data if name not in place]
    if strange:
        raise UserError(
            f"{title} does not know {len(strange)} of the {len(data)} classes of the data, the first is "
            f"'{strange[0]}'; it knows {', '.join(model[:5])}{', ...' if len(model) > 5 else ''}.",
            "Choose data with its classes.",
        )
    return np.array([place[name] for name in data], np.int64)


def _temperature(one: Measured, network: Any, number: NDArray[np.int64]) -> Any:
    """Fitted on the validation split where there is one beside the measured one; else on two halves, each for the
    other, and for later use on all."""
    from vitlab.measure.classification import evaluate_scores, predict, score
    from vitlab.measure.temperature import Temperature, cross_fitted, fit_temperature

    data, spec = one.data, one.subject.config.evaluation
    if data.split_names["val"] != data.split_names["test"]:
        logits, label, _ = (x.numpy() for x in predict(network, data.val_dataloader(), one.subject.device))
        value = fit_temperature(logits, number[label])
        scaled, told = one.logits / value, f"{data.split_names['val']} split, {len(label):,} images"
    elif len(one.label) < 2:
        return None
    else:
        value, scaled = fit_temperature(one.logits, one.label), cross_fitted(one.logits, one.label)
        told = f"halves of the {data.split_names['test']} split, each measured with the other's"
    after = evaluate_scores(score(scaled, one.label), one.label, one.evaluation.classes, spec.bins)
    return Temperature(value, told, after.ece, after.max_ece, after.nll, after.brier)


# -------------------------------------------------------------------------------------------------------------- files


def folder_of(subject: Subject) -> Path:
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


def _stem(subject: Subject) -> str:
    return subject.artifact.name if subject.run is not None and subject.artifact is not None else "model"


def write(one: Measured) -> None:
    """``<model>.json`` (the numbers), ``.npz`` (logits, label, index) and ``-classes.csv``."""
    import numpy as np

    folder, stem = folder_of(one.subject), _stem(one.subject)
    write_json(folder / f"{stem}.json", one.evaluation.to_dict())
    buffer = io.BytesIO()
    np.savez(buffer, logits=one.logits, label=one.label, index=one.index)
    atomic_write(folder / f"{stem}.npz", buffer.getvalue())
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["class", "images", "predicted", "recall", "precision", "f1", "most often taken for"])
    for c in one.evaluation.per_class:
        table.writerow([c.name, c.n, c.predicted, c.recall, c.precision, c.f1, c.confused_with])
    atomic_write(folder / f"{stem}-classes.csv", text.getvalue())


def about(one: Measured, folder: Path) -> None:
    """What a report needs beside the numbers: the worst mistakes of this model, and the data in words."""
    write_json(folder / "mistakes.json", [asdict(each) for each in worst_mistakes(one)])
    write_json(folder / "dataset.json", asdict(describe_dataset(one)))


def draw(one: Measured) -> None:
    """The reliability diagram, the confusion matrix and the worst mistakes as PNG."""
    from vitlab.report import plots, style

    folder, stem, theme = folder_of(one.subject), _stem(one.subject), style.LIGHT
    with style.themed(theme):
        for name, figure in (
            ("reliability", plots.reliability(one.subject.title, one.evaluation, theme, 0)),
            ("confusion", plots.confusion(one.evaluation, theme)),
            ("mistakes", plots.mistakes(worst_mistakes(one), theme)),
        ):
            if figure is not None:
                if one.subject.config.dataset.name == "fake":
                    style.mark_synthetic(figure, theme)
                atomic_write(folder / f"{stem}-{name}.png", style.png(figure))


def describe_dataset(one: Measured) -> DatasetInfo:
    """The data that every number speaks about."""
    from vitlab.help import conf_dir, head, origin
    from vitlab.report.data import DatasetInfo

    config, data = one.subject.config, one.data
    path = conf_dir() / "dataset" / f"{config.dataset.name}.yaml"
    return DatasetInfo(
        name=config.dataset.name,
        description=head(path) if path.exists() else "",
        origin=f"Origin: {told}" if path.exists() and (told := origin(path)) else "",
        train=data.sizes["train"],
        test=data.sizes["test"],
        split=data.split_names["test"],
        classes=list(data.classes),
        size=data.eval_view.size,
        synthetic=config.dataset.name == "fake",
        fingerprint=data.fingerprint,
    )


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


# --------------------------------------------------------------------------------------------------------- comparison


def same_images(found: Sequence[Measured]) -> None:
    """Refuse to compare models that were measured on different images.

    Raises:
        UserError: naming the two.
    """
    for one in found[1:]:
        if one.images != found[0].images or one.evaluation.classes != found[0].evaluation.classes:
            a, b = (
                f"{x.subject.title} ({x.subject.config.dataset.name}, {len(x.label):,} images)" for x in (found[0], one)
            )
            raise UserError(
                f"{a} and {b} were not measured on the same images, so they do not compare.",
                "Each was evaluated; to compare them say on which images: dataset=NAME.",
            )


def compare(found: Sequence[Measured]) -> list[Comparison]:
    """The result of a run against its other models, or the first run's result against the others'."""
    from vitlab.measure.classification import score
    from vitlab.measure.resample import compare_models

    if len(found) < 2:
        return []
    students = [one for one in found if one.subject.role == "student"]
    several = len({one.subject.run.folder for one in found if one.subject.run is not None}) > 1
    main = found[0] if several else (students or list(found))[-1]
    spec = main.subject.config.evaluation
    mine = score(main.logits, main.label)
    out = []
    for one in found:
        if one is not main:
            other = score(one.logits, one.label)
            a, b = (main, one) if several else (one, main)
            x, y = (mine, other) if several else (other, mine)
            out.append(compare_models(a.subject.title, b.subject.title, x, y, spec.bins, max(spec.resamples, 1)))
    return out


def keep(found: Sequence[Measured], comparisons: Sequence[Comparison], output: Path) -> Path:
    """``comparisons.json`` and ``evaluation.txt``, in the run's folder or, about several runs, in one of their own."""
    folders = list(dict.fromkeys(folder_of(one.subject) for one in found))
    folder = folders[0]
    if len(folders) > 1:
        names = sorted(str(one) for one in folders)
        folder = output / "evaluate" / f"{len(names)}-runs-{hashlib.sha256('|'.join(names).encode()).hexdigest()[:8]}"
    if len(found) > 1:
        write_json(folder / "comparisons.json", [asdict(one) for one in comparisons])
    atomic_write(folder / "evaluation.txt", summary(found, comparisons) + "\n")
    return folder


def summary(found: Sequence[Measured], comparisons: Sequence[Comparison]) -> str:
    """What stands at the prompt when the measuring is done."""
    from vitlab.report.compare import SYNTHETIC, percent
    from vitlab.report.page import confused_pairs, weakest
    from vitlab.report.plain import span, text_table, told

    first = found[0]
    split = first.data.split_names["test"]
    lines = [f"data     {first.subject.config.dataset.name}, {split} split, {len(first.label):,} images"]
    for view in dict.fromkeys(one.evaluation.view for one in found):
        lines.append(f"view     {view}")
    if first.subject.config.dataset.name == "fake":
        lines.append(SYNTHETIC)
    bins = [int(b) for b, *_ in first.evaluation.calibrations]
    rows = [["model", "Top-1 %", "95 %", f"Top-{first.evaluation.top_k} %", "NLL", "Brier"]]
    rows[0] += [f"ECE{b} %" for b in bins] + [f"max-ECE{first.evaluation.bins} %"]
    for one in found:
        e = one.evaluation
        interval = span(e.intervals["top1"]) if e.intervals else "–"
        row = [one.subject.title, percent(e.top1), interval, percent(e.top5), f"{e.nll:.3f}", f"{e.brier:.3f}"]
        rows.append([*row, *(percent(ece) for _, ece, _ in e.calibrations), percent(e.max_ece)])
    lines += ["", text_table(rows)]
    for one in found:
        t = one.evaluation.temperature
        if t is not None:
            lines.append(
                f"{one.subject.title}: at temperature {t.value:.3g} ECE {percent(t.ece)} %, NLL {t.nll:.3f}, Brier "
                f"{t.brier:.3f} (fitted on {t.fitted_on})"
            )
    main = found[-1] if len({one.subject.run for one in found}) == 1 else found[0]
    weak = [
        f"{c.name} {percent(c.recall, 1)} %"
        for c in weakest(main.evaluation)[:5]
        if c.recall is not None and c.recall < 1
    ]
    lines += ["", f"weakest classes of {main.subject.title}: {', '.join(weak) or 'none, all images are right'}"]
    pairs = [f"{a} taken for {b} ({count})" for a, b, count, _ in confused_pairs(main.evaluation)[:5]]
    lines += [f"most frequent mistakes: {', '.join(pairs)}"] if pairs else []
    lines += ["", *(told(one) for one in comparisons)] if comparisons else []
    return "\n".join(lines)


def stored_comparisons(run: Run) -> list[dict[str, Any]]:
    """What an earlier mode=evaluate of this run found; none where it was not asked."""
    path = run.folder / "evaluation" / "comparisons.json"
    return list(read_json(path)) if path.exists() else []
