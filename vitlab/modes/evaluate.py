"""mode=evaluate: how good and how well calibrated models are, and whether one is better than another.

    python -m vitlab mode=evaluate run=outputs/tinyvit/digits-...          every model of a run
    python -m vitlab mode=evaluate run=[RUN_A,RUN_B]                       the results of runs, on the same images
    python -m vitlab mode=evaluate model=deit_small model.pretrained=true dataset=imagenet dataset.root=/data/in1k

Logits of the test split are kept; all numbers follow from the files alone. The same code ends a training, on all of
its ranks.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.composed import Composed
from vitlab.config.words import dataset_title
from vitlab.errors import OVERFLOW, UserError
from vitlab.files import atomic_write, write_json
from vitlab.modes.evaluation_files import (
    Measured,
    draw,
    folder_of,
    note_in_model,
    stem_of,
    write,
    write_report_inputs,
)
from vitlab.modes.find_runs import models_of, result_of, writing
from vitlab.modes.robustness import measure_robustness
from vitlab.modes.select_model import SelectedModel, find_subjects
from vitlab.run.environment import now
from vitlab.tasks.base import Answers, Validation

if TYPE_CHECKING:
    from vitlab.data.datamodule import VisionData
    from vitlab.measure.bootstrap import Comparison

MEANING = "accuracy, calibration, intervals of a run, or of model= on dataset=; run=[A,B]"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation")
ONE_DEVICE = True


def answer(composed: Composed) -> int:
    """Measure, write and print; the exit code."""
    subjects = find_subjects(composed)
    for subject in subjects:
        if not subject.on_data:
            raise UserError(
                f"mode=evaluate needs images with labels, and {subject.title} belongs to no data set.",
                "Choose one: dataset=NAME (mode=list group=dataset).",
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
    for one in dict.fromkeys(one.run for one in subjects if one.run is not None):
        if all(folder_of(each) != one.folder / "evaluation" for each in subjects if each.run is one):
            print(
                f"\nThese are not the images of {one.name}'s own result, which stays as it is: {one.folder}/evaluation"
            )
    print(
        "\n" + "\n".join(f"written  {one}" for one in dict.fromkeys([*(folder_of(m.subject) for m in found), folder]))
    )
    return 0


def evaluate(subjects: Sequence[SelectedModel], pictures: bool = False) -> list[Measured]:
    """Logits of every model on the test split, and what follows from them, in the subjects' evaluation folders.

    Every rank calls this; all measure, and rank 0 writes.

    Args:
        subjects: models of one run, or one that no run made.
        pictures: also draw the reliability diagram, the confusion matrix and the worst mistakes.
    """
    from vitlab.training.distributed import rank
    from vitlab.training.progress import print_line

    if rank() == 0:
        print_line(f"evaluation: {', '.join(subject.name for subject in subjects)}")
    found = [measure(subject) for subject in subjects]
    if rank() > 0:
        return found
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
        before = run.read_done("evaluation").get("metrics") if run.is_done("evaluation") else None
        metrics = dict(before) if isinstance(before, dict) else {}
        metrics |= {one.subject.artifact.name: one.evaluation.metrics() for one in found if one.subject.artifact}
        if all(stage.name in metrics for stage in stages):
            record = {"metrics": metrics, "result": result_of(stages).name, "content": subjects[0].content}
            run.mark_done("evaluation", record)
    else:
        folder = folder_of(subjects[0])
        write_report_inputs(found[-1], folder)
        if run is not None:
            where = {"root": subjects[0].config.dataset.root, "csv": subjects[0].config.dataset.csv}
            titles = {stem_of(one.subject): one.subject.title for one in found}
            write_json(folder / "about.json", {"time": now(), "images": where, "models": titles})
    return found


def measure(subject: SelectedModel) -> Measured:
    """Run one network over the test split; where the task fits something after training, over validation images too.

    Every rank calls this and computes its share of the batches; every rank gets the full result.

    Raises:
        UserError: the classes of the model are not those of the data.
    """
    from vitlab.data.sources import fingerprint

    data, meta, spec, task = subject.data, subject.meta, subject.config.evaluation, subject.task
    task.check_source(data.sources["test"], subject.config.dataset.name)
    network = subject.network().to(subject.device)
    answers = _answers(subject, network, f"evaluate {subject.name}", "test")
    images = fingerprint(data.sources["test"])
    validation = None
    if task.needs_validation(spec):
        validation = Validation(missing=why_no_validation(subject, images))
        if not validation.missing:
            validation.answers = _answers(subject, network, f"validate {subject.name}", "val")
            validation.images = _validation_images(data)
    found = task.measure(answers, validation, meta.classes, spec)
    found.view = str(data.eval_view)
    return Measured(subject, found, answers, images, data)


def _answers(subject: SelectedModel, network: Any, title: str, split: str) -> Answers:
    """Logits and labels of a split in the order of its images, labels in the numbering of the model's classes."""
    import numpy as np

    from vitlab.data.sources import groups_at
    from vitlab.tasks.parts.answers import gather_logits
    from vitlab.training.distributed import rank, world_size
    from vitlab.training.progress import Progress

    data = subject.data
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    # The bar counts the images of this rank; the others have as many, but for a batch.
    with Progress(title, data.sizes[split] // world_size(), unit="image", quiet=rank() > 0) as progress:
        answers = gather_logits(network, loader, subject.device, progress.update)
    if bad := int((~np.isfinite(answers.logits).all(axis=1)).sum()):
        raise UserError(
            f"{subject.title}: the logits of {bad} of {len(answers.logits)} images of {split} are not finite.", OVERFLOW
        )
    answers.group = groups_at(data.sources[split], answers.index)
    answers.label = subject.task.match_classes(answers.label, data.classes, subject.meta.classes, subject.title)
    return answers


def _validation_images(data: VisionData) -> str:
    count = data.sizes["val"]
    if getattr(data.sources["val"], "held_out", False):
        return f"{count:,} images held out of train"
    return f"{data.split_names['val']} split, {count:,} images"


def why_no_validation(one: SelectedModel, images: str) -> str:
    """Why there are no images to fit a temperature or thresholds on, neither measured nor trained on; "" if there are.

    Args:
        images: fingerprint of the measured images.
    """
    from vitlab.data.sources import fingerprint

    val, name, run = one.data.sources["val"], one.config.dataset.name, one.run
    if fingerprint(val) == images:
        cure = "a training with dataset.val_fraction=0.1 keeps one"
        if name == "folder" or run is None:
            cure = "data with both a val and a test split have one"
        shown = dataset_title(name, one.config.dataset.root, one.config.dataset.csv)
        return f"{shown} has no validation split beside the measured one ({cure})"
    if not getattr(val, "held_out", False):
        return ""
    if run is None:
        return f"the validation images are held out of train, and {one.title} may have been trained on them"
    if folder_of(one) == run.folder / "evaluation" and one.stage is not None:
        trained = run.read_done(one.stage.name).get("images", one.data.sizes["train"])
        if trained != one.data.sizes["train"]:
            return f"{one.title} was trained on {trained:,} images, not on the {one.data.sizes['train']:,} left"
    return ""


# --------------------------------------------------------------------------------------------------------- comparison


def same_images(found: Sequence[Measured]) -> None:
    """Refuse to compare models that were measured on different images.

    Raises:
        UserError: naming the two.
    """
    for one in found[1:]:
        if one.images != found[0].images or one.evaluation.classes != found[0].evaluation.classes:
            a, b = (
                f"{x.subject.title} ({x.subject.config.dataset.name}, {x.evaluation.n:,} images)"
                for x in (found[0], one)
            )
            raise UserError(
                f"{a} and {b} were not measured on the same images, so they do not compare.",
                "Each was evaluated; to compare them choose the images: dataset=NAME.",
            )


def main_of(found: Sequence[Measured]) -> Measured:
    """What is talked about: of one run its last student, of several the first run's result."""
    students = [one for one in found if one.subject.role == "student"]
    return found[0] if _several(found) else (students or list(found))[-1]


def _several(found: Sequence[Measured]) -> bool:
    return len({one.subject.run.folder for one in found if one.subject.run is not None}) > 1


def compare(found: Sequence[Measured]) -> list[Comparison]:
    """The result of a run against its other models, or the first run's result against the others'."""
    if len(found) < 2:
        return []
    main, several = main_of(found), _several(found)
    spec = main.subject.config.evaluation
    out = []
    for one in found:
        if one is not main:
            a, b = (main, one) if several else (one, main)
            pair = (a.evaluation, b.evaluation)
            out.append(main.task.compare(a.subject.title, b.subject.title, a.answers, b.answers, pair, spec))
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


def measured_whole(subject: SelectedModel) -> list[str]:
    """Of a folder without splits that is not the one of the training: that all of it is measured, and how many images
    have the names of training images."""
    data = subject.data
    if subject.config.dataset.name != "folder" or data.sizes["train"] or data.split_names["test"] != "test":
        return []
    lines = ["images   all of the folder; dataset.val_fraction=0.2 measures a part held out of it"]
    splits = subject.run.folder / "splits.csv" if subject.run is not None else None
    if splits is not None and splits.is_file():
        with open(splits, newline="", encoding="utf-8", errors="surrogateescape") as file:
            trained = {row["path"] for row in csv.DictReader(file) if row["split"] == "train"}
        if known := len(trained.intersection(data.sources["test"].keys)):
            lines.append(f"images   {known:,} have the names of images that the run was trained on")
    return lines


def summary(found: Sequence[Measured], comparisons: Sequence[Comparison]) -> str:
    """What stands at the prompt when the measuring is done."""
    from vitlab.data.sources import groups_of
    from vitlab.report.compare import SYNTHETIC
    from vitlab.report.text_tables import text_table

    first = found[0]
    split = first.data.split_names["test"]
    dataset = first.subject.config.dataset
    title = dataset_title(dataset.name, dataset.root, dataset.csv)
    lines = [f"data     {title}, {split} split, {first.evaluation.n:,} images"]
    lines += measured_whole(first.subject)
    if (groups := groups_of(first.data.sources["test"])) is not None:
        lines.append(f"groups   {len(set(groups)):,}; intervals are of a bootstrap over them")
    for view in dict.fromkeys(one.evaluation.view for one in found):
        lines.append(f"view     {view}")
    if first.data.synthetic:
        lines.append(SYNTHETIC)
    main = main_of(found)
    rows = [(one.subject.title, one.evaluation) for one in found]
    lines += ["", text_table(main.task.summary_table(rows))]
    lines += main.task.summary_notes(rows, (main.subject.title, main.evaluation))
    lines += ["", *(main.task.describe_comparison(one) for one in comparisons)] if comparisons else []
    return "\n".join(lines)
