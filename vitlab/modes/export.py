"""``mode=export``: a model as files for others. A training ends with the same code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.catalogue import conf_dir, head, origin
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.modes.find_runs import writing
from vitlab.modes.predict import view_of
from vitlab.modes.select_model import SelectedModel, find_subject

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
    folder = subject.folder / "export" if subject.run is not None else subject.folder
    with writing(subject.run, composed):
        record = export_subject(subject, folder)
        if subject.run is not None and is_result(subject):
            subject.run.mark_done("export", {"files": merged(subject.run.folder, record["files"])})
    print(table(record["files"]))
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

    if subject.run is not None and not is_result(subject):
        folder = folder / subject.name.rpartition("/")[2]
    spec = subject.config.export
    test = (lambda: _labelled(subject)) if subject.on_data else None
    network, meta = subject.network(), subject.meta
    files = export(
        network, meta, folder, spec.formats, sample_of(subject), spec.tolerance, subject.task, test, facts_of(subject)
    )
    return {"files": files}


def is_result(subject: SelectedModel) -> bool:
    """Whether the subject is what its run is about."""
    from vitlab.modes.find_runs import models_of, result_of

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
        facts.dataset, facts.synthetic = subject.config.dataset.name, subject.data.synthetic
        described = conf_dir() / "dataset" / f"{facts.dataset}.yaml"
        facts.described = head(described).rstrip(".") if described.is_file() else ""
        facts.origin = f"Origin: {made}" if described.is_file() and (made := origin(described)) else ""
    if subject.run is None or subject.artifact is None:
        return facts
    facts.title = f"{subject.run.name}: {subject.title}"
    measured = subject.run.folder / "evaluation" / f"{subject.artifact.name}.json"
    if measured.is_file():
        found = subject.task.read_evaluation(read_json(measured))
        facts.images, facts.split = found.n, subject.data.split_names["test"]
        facts.metrics, facts.intervals = found.metrics(), found.intervals
        facts.extra = tuple(subject.task.card_sentences(found))
    return facts


def merged(folder: Path, files: list[Exported]) -> list[Any]:
    """The record of what a run has exported, with ``files`` in place of older ones of their format."""
    done = folder / "export" / "done.json"
    before = read_json(done).get("files", []) if done.is_file() else []
    new = {one["format"] for one in files}
    return [one for one in before if one["format"] not in new] + list(files)


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
