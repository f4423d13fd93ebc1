"""mode=evaluate: how good and how honest models are, and whether one is better than another.

    python -m vitlab mode=evaluate run=outputs/tinyvit/digits-...          every model of a run
    python -m vitlab mode=evaluate run=[RUN_A,RUN_B]                       the results of runs, on the same images
    python -m vitlab mode=evaluate model=deit_small model.pretrained=true dataset=imagenet dataset.root=/data/in1k

Logits of the test split are kept; what is said about them follows from the files alone. The same code closes a
training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.files import atomic_write, write_json
from vitlab.modes.evaluation_files import Measured, draw, folder_of, note_in_model, write, write_report_inputs
from vitlab.modes.find_runs import models_of, result_of, writing
from vitlab.modes.robustness import measure_robustness
from vitlab.modes.select_model import SelectedModel, find_subjects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitlab.measure.bootstrap import Comparison
    from vitlab.measure.temperature import Temperature

MEANING = "accuracy, calibration, intervals of a run, or of model= on dataset=; run=[A,B]"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation")
ONE_DEVICE = True


def answer(composed: Composed) -> int:
    """Measure, write and tell; the exit code."""
    subjects = find_subjects(composed)
    for subject in subjects:
        if not subject.on_data:
            raise UserError(
                f"mode=evaluate needs images with labels, and {subject.title} belongs to no data set.",
                "Say on which: dataset=NAME (mode=list group=dataset).",
            )
    from vitlab.training.distributed import configure_torch

    configure_torch(composed.config)
    found: list[Measured] = []
    probed: list[str] = []
    for run, models in groupby(subjects, key=lambda one: one.run):
        group = list(models)
        with writing(run, composed):
            found += evaluate(group, pictures=True)
            probed.append(measure_robustness(group))
    same_images(found)
    comparisons = compare(found)
    print("\n\n".join(filter(None, [summary(found, comparisons), *probed])))
    folder = write_comparison(found, comparisons, Path(composed.config.output))
    print(
        "\n" + "\n".join(f"written  {one}" for one in dict.fromkeys([*(folder_of(m.subject) for m in found), folder]))
    )
    return 0


def evaluate(subjects: Sequence[SelectedModel], pictures: bool = False) -> list[Measured]:
    """Logits of every model on the test split, and what follows from them, in the subjects' evaluation folders.

    Args:
        subjects: models of one run, or one that no run made.
        pictures: also draw the reliability diagram, the confusion matrix and the worst mistakes.
    """
    found = [measure(subject) for subject in subjects]
    for one in found:
        write(one)
        note_in_model(one)
        if pictures:
            draw(one)
    run = subjects[0].run
    if run is not None and folder_of(subjects[0]) == run.folder / "evaluation":
        stages = models_of(run, subjects[0].config)
        primary = next((one for one in found if one.subject.stage == result_of(stages)), None)
        if primary is not None:
            write_report_inputs(primary, run.folder / "evaluation")
        told = run.read_done("evaluation").get("metrics") if run.is_done("evaluation") else None
        metrics = dict(told) if isinstance(told, dict) else {}
        metrics |= {one.subject.artifact.name: one.evaluation.metrics() for one in found if one.subject.artifact}
        if all(stage.name in metrics for stage in stages):
            run.mark_done("evaluation", {"metrics": metrics, "result": result_of(stages).name})
    else:
        write_report_inputs(found[-1], folder_of(subjects[0]))
    return found


def measure(subject: SelectedModel) -> Measured:
    """Run one network over the test split.

    Raises:
        UserError: the classes of the model are not those of the data.
    """
    from vitlab.data.sources import fingerprint, groups_at
    from vitlab.measure.bootstrap import bootstrap
    from vitlab.measure.classification import evaluate_scores, predict, score
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
        groups = groups_at(data.sources["test"], index)
        found.intervals = {k: list(v) for k, v in bootstrap(scores, spec.bins, spec.resamples, groups=groups).items()}
    one = Measured(subject, found, logits, label, fingerprint(data.sources["test"]), data, index)
    if spec.temperature:
        found.no_temperature = why_no_temperature(one)
        if not found.no_temperature:
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


def why_no_temperature(one: Measured) -> str:
    """Why there are no images to fit a temperature on, neither measured nor trained on; "" if there are."""
    from vitlab.data.sources import fingerprint

    val, name, run = one.data.sources["val"], one.subject.config.dataset.name, one.subject.run
    if fingerprint(val) == one.images:
        cure = "a training with dataset.val_fraction=0.1 keeps one"
        if name == "folder" or run is None:
            cure = "data with both a val and a test split have one"
        return f"{name} has no validation split beside the measured one ({cure})"
    if not getattr(val, "held_out", False):
        return ""
    if run is None:
        return f"the validation images are held out of train, and {one.subject.title} may have been trained on them"
    if folder_of(one.subject) == run.folder / "evaluation" and one.subject.stage is not None:
        images = run.read_done(one.subject.stage.name).get("images", one.data.sizes["train"])
        if images != one.data.sizes["train"]:
            return f"{one.subject.title} was trained on {images:,} images, not on the {one.data.sizes['train']:,} left"
    return ""


def _temperature(one: Measured, network: Any, number: NDArray[np.int64]) -> Temperature:
    """Fitted on the validation split."""
    from vitlab.measure.classification import evaluate_scores, predict, score
    from vitlab.measure.temperature import Temperature, fit_temperature
    from vitlab.training.progress import Progress

    data, spec = one.data, one.subject.config.evaluation
    with Progress(f"temperature of {one.subject.name}", data.sizes["val"], unit="image") as progress:
        tensors = predict(network, data.val_dataloader(), one.subject.device, progress.update)
    logits, label, _ = (x.numpy() for x in tensors)
    value = fit_temperature(logits, number[label])
    after = evaluate_scores(score(one.logits / value, one.label), one.label, one.evaluation.classes, spec.bins)
    told = f"{data.split_names['val']} split, {len(label):,} images"
    if getattr(data.sources["val"], "held_out", False):
        told = f"{len(label):,} images held out of train"
    return Temperature(value, told, after.ece, after.max_ece, after.nll, after.brier)


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


def main_of(found: Sequence[Measured]) -> Measured:
    """What is talked about: of one run its last student, of several the first run's result."""
    students = [one for one in found if one.subject.role == "student"]
    return found[0] if _several(found) else (students or list(found))[-1]


def _several(found: Sequence[Measured]) -> bool:
    return len({one.subject.run.folder for one in found if one.subject.run is not None}) > 1


def compare(found: Sequence[Measured]) -> list[Comparison]:
    """The result of a run against its other models, or the first run's result against the others'."""
    from vitlab.data.sources import groups_at
    from vitlab.measure.bootstrap import compare_models
    from vitlab.measure.classification import score

    if len(found) < 2:
        return []
    main, several = main_of(found), _several(found)
    spec = main.subject.config.evaluation
    mine = score(main.logits, main.label)
    groups, resamples = groups_at(main.data.sources["test"], main.index), max(spec.resamples, 1)
    out = []
    for one in found:
        if one is not main:
            other = score(one.logits, one.label)
            a, b = (main, one) if several else (one, main)
            x, y = (mine, other) if several else (other, mine)
            names = a.subject.title, b.subject.title
            out.append(compare_models(*names, x, y, spec.bins, resamples, groups=groups))
    return out


def write_comparison(found: Sequence[Measured], comparisons: Sequence[Comparison], output: Path) -> Path:
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
    from vitlab.data.sources import groups_of
    from vitlab.report.compare import SYNTHETIC, percent
    from vitlab.report.page import confused_pairs, weakest
    from vitlab.report.text_tables import describe_comparison, span, text_table

    first = found[0]
    split = first.data.split_names["test"]
    lines = [f"data     {first.subject.config.dataset.name}, {split} split, {len(first.label):,} images"]
    if (groups := groups_of(first.data.sources["test"])) is not None:
        lines.append(f"groups   {len(set(groups)):,}; intervals are of a bootstrap over them")
    for view in dict.fromkeys(one.evaluation.view for one in found):
        lines.append(f"view     {view}")
    if first.data.synthetic:
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
    fitted = [(one, t) for one in found if (t := one.evaluation.temperature) is not None]
    if fitted:
        rows = [["with its temperature", "logits /", f"ECE{first.evaluation.bins} %", "NLL", "Brier"]]
        for one, t in fitted:
            rows.append([one.subject.title, f"{t.value:.3g}", percent(t.ece), f"{t.nll:.3f}", f"{t.brier:.3f}"])
        lines += ["", text_table(rows)]
        lines += [f"fitted on the {told_on}" for told_on in dict.fromkeys(t.fitted_on for _, t in fitted)]
    for why in dict.fromkeys(one.evaluation.no_temperature for one in found if one.evaluation.no_temperature):
        lines.append(f"no temperature is fitted: {why}")
    main = main_of(found)
    weak = [
        f"{c.name} {percent(c.recall, 1)} %"
        for c in weakest(main.evaluation)[:5]
        if c.recall is not None and c.recall < 1
    ]
    lines += ["", f"weakest classes of {main.subject.title}: {', '.join(weak) or 'none, all images are right'}"]
    pairs = [f"{a} taken for {b} ({count})" for a, b, count, _ in confused_pairs(main.evaluation)[:5]]
    lines += [f"most frequent mistakes: {', '.join(pairs)}"] if pairs else []
    lines += ["", *(describe_comparison(one) for one in comparisons)] if comparisons else []
    return "\n".join(lines)
