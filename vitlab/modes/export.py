"""``mode=export``: a model as files for others. A training ends with the same code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.composed import Composed
from vitlab.config.words import dataset_title
from vitlab.errors import UserError
from vitlab.files import read_as
from vitlab.modes.evaluation_files import dataset_words, folder_of
from vitlab.modes.find_runs import models_of, result_of, writing
from vitlab.modes.predict import view_of
from vitlab.modes.select_model import SelectedModel, find_subject
from vitlab.report.collect import AGAIN

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.report.export_card import Facts
    from vitlab.report.export_check import Exported

MEANING = "a model as files for others: run=FOLDER export.formats=[onnx]"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation", "export")
ONE_DEVICE = True

SAMPLE = 3  # images on which the logits of every format are compared with torch's


def answer(composed: Composed) -> int:
    """Write the model in each of ``export.formats``, compare each with torch, and upload it with ``export.push``.

    Raises:
        UserError: no model, a format that this model or machine does not allow, logits that differ.
    """
    config = composed.config
    if not config.export.formats:
        raise UserError("export.formats names no format.", "Give some: export.formats=[onnx,timm].")
    subject = find_subject(composed)
    from vitlab.training.distributed import configure_torch

    configure_torch(config)
    folder = folder_of(subject, "export")
    with writing(subject.run, composed):
        record = export_subject(subject, folder)
        if subject.run is not None and is_result(subject) and folder == subject.folder / "export":
            subject.run.mark_done("export", {"files": merged(subject.run.folder, record["files"])})
    print(table(record["files"]))
    if subject.run is not None:
        print(f"model    {describe_held(subject)}")
        if folder != subject.folder / "export":
            print(
                f"These were compared on other images than those of {subject.run.name}'s own result; its exports stay "
                f"as they are: {subject.folder}/export"
            )
    if config.export.push is not None:
        from vitlab.report.export_timm import HUB_FOLDER, push

        home = Path(next(one["path"] for one in record["files"] if one["format"] == HUB_FOLDER)).parent
        print(f"uploaded {push(home, config.export.push)}")
    return 0


def export_subject(subject: SelectedModel, folder: Path) -> dict[str, Any]:
    """The subject's network in each of ``export.formats``, checked on real images; ``{"files": [...]}``.

    Of a model that is not its run's result the files go into a folder of its name: neither overwrites the other.
    """
    from vitlab.report.export import export  # ONNX takes seconds to import
    from vitlab.training.progress import print_line

    print_line(f"export: {subject.name} as {', '.join(subject.config.export.formats)}")

    if subject.run is not None and not is_result(subject):
        folder = folder / subject.name.rpartition("/")[2]
    spec = subject.config.export
    test = (lambda: _labelled(subject)) if subject.on_data else None
    network, meta = subject.network(), subject.meta
    facts = facts_of(subject)
    facts.params = sum(parameter.numel() for parameter in network.parameters())
    files = export(network, meta, folder, spec.formats, sample_of(subject), spec.tolerance, subject.task, test, facts)
    return {"files": files}


def describe_held(subject: SelectedModel) -> str:
    """Which model of its run this is and why, and which other one of the run is better, in a sentence or two."""
    run, task = subject.run, subject.task
    assert run is not None and subject.stage is not None
    stages = models_of(run, subject.config)
    result = result_of(stages)
    text = f"This is the model of stage {subject.stage.name} ({subject.title}), "
    text += "the run's result." if subject.stage == result else f"not the run's result, which is {result.name}."
    key, sign = task.headline.key, 1 if task.headline.higher else -1
    found = {stage: value for stage in stages if (value := _headline(run.folder, stage.name, key)) is not None}
    rivals = [stage for stage in found if stage.role != "teacher" and stage != subject.stage]
    best = max(rivals, key=lambda stage: sign * found[stage], default=None)
    if best is not None and subject.stage in found and sign * found[best] > sign * found[subject.stage]:
        values = f"{100 * found[best]:.2f} % {task.headline.name} against {100 * found[subject.stage]:.2f} %"
        text += f" {best.name} ({best.title}) has {values} here: mode=export run={run.name}/{best.name} exports that."
    return text


def _headline(folder: Path, stage: str, key: str) -> float | None:
    """A metric of a model as its run's own evaluation measured it."""
    path = folder / "evaluation" / f"{stage}.json"
    return read_as(path, lambda value: float(value[key]), AGAIN) if path.is_file() else None


def is_result(subject: SelectedModel) -> bool:
    """Whether the subject is what its run is about."""
    assert subject.run is not None
    return subject.stage == result_of(models_of(subject.run, subject.config))


def sample_of(subject: SelectedModel) -> Tensor:
    """[3, 3, S, S] real images: of the test split, or without a data set scikit-learn's two photographs, and one of
    them turned."""
    import torch

    if subject.on_data:
        images = next(iter(subject.data.test_dataloader())).image
        return torch.cat([images] * -(-SAMPLE // len(images)))[:SAMPLE]
    from PIL import Image
    from sklearn.datasets import load_sample_images

    first, second = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    view = view_of(subject.meta)
    return torch.stack([view(first), view(second), view(first.transpose(Image.Transpose.ROTATE_90))])


def _labelled(subject: SelectedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images and their labels in the order of the logits."""
    import torch

    data, meta, task = subject.data, subject.meta, subject.task
    for batch in data.test_dataloader():
        label = task.match_classes(batch.label.numpy(), data.classes, meta.classes, subject.title)
        yield batch.image, torch.from_numpy(label)


def facts_of(subject: SelectedModel) -> Facts:
    """What is known for the model card: of a run, what its evaluation wrote."""
    from vitlab.report.export_card import Facts

    facts = Facts(title=subject.title, repository=subject.config.export.push or "USER/NAME")
    if subject.on_data:
        dataset = subject.config.dataset
        facts.dataset = dataset_title(dataset.name, dataset.root, dataset.csv)
        facts.synthetic = subject.data.synthetic
        facts.described, facts.origin = dataset_words(dataset)
    if subject.run is None or subject.artifact is None:
        return facts
    facts.title = f"{subject.run.name}: {subject.title}"
    facts.held = describe_held(subject)
    measured = folder_of(subject) / f"{subject.artifact.name}.json"
    if measured.is_file():
        found = read_as(measured, subject.task.read_evaluation, AGAIN)
        facts.images, facts.split = found.n, subject.data.split_names["test"]
        facts.metrics, facts.intervals = found.metrics(), found.intervals
        facts.extra = tuple(subject.task.card_sentences(found))
    return facts


def merged(folder: Path, files: list[Exported]) -> list[Any]:
    """The record of what a run has exported, with ``files`` in place of older ones of their format."""
    done = folder / "export" / "done.json"
    new = {one["format"] for one in files}

    def kept(record: dict[str, Any]) -> list[Any]:
        return [one for one in record.get("files", []) if one["format"] not in new]

    cure = "Delete it; this command writes it again."
    return (read_as(done, kept, cure) if done.is_file() else []) + list(files)


def table(files: list[Exported]) -> str:
    """What was written, for the screen."""
    width = max(len(one["format"]) for one in files)
    lines = []
    for one in files:
        lines.append(
            f"{one['format']:<{width}}  {one['path']}  {one['bytes'] / 1e6:.2f} MB, largest difference of a logit "
            f"{one['max_diff']:.1e}"
        )
        if "note" in one:
            lines.append(f"{'':<{width}}  {one['note']}")
    return "\n".join(lines)
