"""``mode=predict``: what a model predicts for these pictures."""

from __future__ import annotations

import csv
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vitlab.config import PredictConfig
from vitlab.config.composed import Composed
from vitlab.data.table import no_formula
from vitlab.errors import OVERFLOW, UserError, printable
from vitlab.files import check_file, check_folder, read_as, readable_json
from vitlab.modes.input_images import expand, read_all
from vitlab.modes.select_model import SelectedModel, find_subject
from vitlab.report.collect import AGAIN
from vitlab.tasks.base import Task, Top

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from vitlab.distill.views import EvalView
    from vitlab.models.artifact import ModelMeta

MEANING = "name what is on pictures: run=FOLDER input=cat.jpg"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation", "input", "predict")
ONE_DEVICE = True

PATH_WIDTH = 60  # columns of the table that a path gets at most


@dataclass
class Prediction:
    """What the network predicts for one file, or why there is nothing to predict."""

    path: str
    top: Top  # (name, probability), the most probable first
    error: str = ""


def answer(composed: Composed) -> int:
    """Predict the pictures of ``input=``: table, JSON lines or CSV; 2 where some could not be read.

    Raises:
        UserError: no model, no pictures, or an unknown format.
    """
    config = composed.config
    if config.predict.output is not None:
        check_file(Path(config.predict.output).expanduser(), "predict.output")
    if config.predict.pictures is not None:
        check_folder(Path(config.predict.pictures).expanduser(), "predict.pictures")
    subject = find_subject(composed)
    names = expand(config.input)
    paths = itertools.chain([next(names)], names)  # the first mistake is answered before anything heavy is loaded
    from vitlab.training.distributed import configure_torch

    configure_torch(config)
    fitted = fitted_of(subject) if config.predict.calibrated else {}
    print(f"model          {subject.artifact or subject.title}", file=sys.stderr)
    calibrated = config.predict.calibrated and subject.run is not None
    described = subject.task.describe_fitted(_evaluated(subject), calibrated)
    if subject.run is None and fitted:
        described = f"with the {' and '.join(fitted)} in {subject.artifact}/model.json"
    print(f"probabilities  {described}", file=sys.stderr)
    total = bad = 0
    used: set[Path] = set()  # a second picture called cat becomes cat-17.png
    with _target(config.predict) as file:
        writer = Writer(config.predict, file, len(subject.meta.classes), subject.task)
        for batch in predictions(subject, paths, fitted):
            writer.write([one for one, _ in batch])
            for one, image in batch:
                total += 1
                if image is None:
                    bad += 1
                    print(printable(f"{one.path}: {one.error}"), file=sys.stderr)
                elif config.predict.pictures is not None:
                    path = Path(config.predict.pictures).expanduser() / f"{Path(one.path).stem}.png"
                    path = path.with_stem(f"{path.stem}-{total}") if path in used else path
                    used.add(path)
                    annotate(image, one, path)
    if bad:
        print(f"{bad:,} of {total:,} files could not be read", file=sys.stderr)
    for what in (config.predict.output, config.predict.pictures):
        if what is not None:
            print(f"written  {what}", file=sys.stderr)
    return 2 if bad else 0


def fitted_of(subject: SelectedModel) -> dict[str, Any]:
    """What the evaluation of its run fitted for this model (a temperature, thresholds); of a model folder alone, what
    stands in its description."""
    return subject.task.fitted(_evaluated(subject)) or (subject.meta.fitted if subject.artifact is not None else {})


def _evaluated(subject: SelectedModel) -> dict[str, Any]:
    """What the evaluation of its run wrote of this model; nothing for one without."""
    if subject.run is None or subject.artifact is None:
        return {}
    path = subject.run.folder / "evaluation" / f"{subject.artifact.name}.json"
    return read_as(path, partial(_usable, subject), AGAIN) if path.is_file() else {}


def _usable(subject: SelectedModel, evaluated: dict[str, Any]) -> dict[str, Any]:
    """``evaluated``, once what it fitted has been read from it."""
    subject.task.describe_fitted(evaluated, bool(subject.task.fitted(evaluated)))
    return evaluated


def view_of(meta: ModelMeta) -> EvalView:
    """The view that the model was measured with."""
    from vitlab.distill.views import EvalView

    return EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)


def prepare(picture: str | Path | Image.Image, view: EvalView) -> Tensor:
    """A picture [3, H, W] as the network sees it: upright RGB of 8 bits, then ``view``. Whatever predicts prepares a
    picture here.

    Raises:
        UserError: naming the file, if it is missing or does not decode.
        ValueError: an image of Pillow whose pixels have no stated range.
    """
    from vitlab.data.decode import read_rgb, to_rgb

    return view(read_rgb(Path(picture)) if isinstance(picture, (str, Path)) else to_rgb(picture))


def predictions(
    subject: SelectedModel, paths: Iterator[str], fitted: dict[str, Any]
) -> Iterator[list[tuple[Prediction, Image.Image | None]]]:
    """Predictions in the order of ``paths``, a batch at a time, each with its picture; None for one that is bad."""
    network = subject.network().to(subject.device).eval()
    view = view_of(subject.meta)
    size, names = subject.config.evaluation.batch_size, readable(subject.meta.classes)
    read = read_all(paths, subject.config.hardware.workers or subject.config.hardware.threads, max(2 * size, 16))
    while batch := list(itertools.islice(read, size)):
        good = [image for _, image in batch if not isinstance(image, UserError)]
        top = iter(_top(network, subject, [prepare(image, view) for image in good], fitted, names))
        yield [
            (Prediction(path, [], _reason(image, path)), None)
            if isinstance(image, UserError)
            else (Prediction(path, next(top)), image)
            for path, image in batch
        ]


def _top(
    network: nn.Module, subject: SelectedModel, views: Sequence[object], fitted: dict[str, Any], names: Sequence[str]
) -> list[Top]:
    """What the task predicts for each view [3, S, S]."""
    if not views:
        return []
    import torch

    with torch.inference_mode():
        image = torch.stack(list(views)).to(subject.device)  # type: ignore[arg-type]  # torch is not imported above
        logits = network(image)
        if not bool(torch.isfinite(logits).all()):
            raise UserError(f"{subject.title}: the logits of a picture are not finite.", OVERFLOW)
        return subject.task.predict(logits, names, subject.config.predict.topk, fitted)


def _reason(error: UserError, path: str) -> str:
    return error.what.removeprefix(f"{path} cannot be read as an image (").removesuffix(").")


def readable(classes: Sequence[str]) -> list[str]:
    """Class names for people: ImageNet's WordNet ids with their meaning, others as they are."""
    if not all(name.startswith("n") and name[1:].isdecimal() and len(name) == 9 for name in classes):
        return list(classes)
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-22k")
    described = {name: text for name, text in zip(known.label_names(), known.label_descriptions(), strict=True) if text}
    return [f"{described[name].split(',')[0]} ({name})" if name in described else name for name in classes]


# ------------------------------------------------------------------------------------------------------------ output


@contextmanager
def _target(spec: PredictConfig) -> Iterator[TextIO]:
    """The screen, or a file that is written atomically."""
    if spec.output is None:
        yield sys.stdout
        return
    path = Path(spec.output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Writer:
    """Predictions as lines, batch by batch, so that a pipe gets them as they come."""

    def __init__(self, spec: PredictConfig, file: TextIO, classes: int, task: Task) -> None:
        self.format, self.file, self.task = spec.format, file, task
        self.topk = min(spec.topk, classes)
        self.width = 0
        if self.format == "csv":
            self._csv([["path", *map(no_formula, task.prediction_columns(self.topk)), "error"]])

    def write(self, batch: Sequence[Prediction]) -> None:
        """Append a batch."""
        match self.format:
            case "jsonl":
                self.file.write("".join(readable_json(self._record(one)) + "\n" for one in batch))
            case "csv":
                self._csv([self._row(one) for one in batch])
            case _:
                self._table([one for one in batch if not one.error])
        self.file.flush()

    def _record(self, one: Prediction) -> dict[str, object]:
        """As JSON takes it."""
        if one.error:
            return {"path": one.path, "error": one.error}
        return {"path": one.path, **self.task.prediction_record(one.top)}

    def _row(self, one: Prediction) -> list[str]:
        path = one.path.encode("utf-8", "backslashreplace").decode()
        cells = self.task.prediction_cells(one.top, self.topk)
        return [*map(no_formula, [path, *([""] * len(cells) if one.error else cells), one.error])]

    def _csv(self, rows: Sequence[Sequence[str]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        self.file.write(buffer.getvalue())

    def _table(self, batch: Sequence[Prediction]) -> None:
        shown = [_shortened(printable(one.path)) for one in batch]
        self.width = max([self.width, *map(len, shown)])
        lines = self.task.prediction_lines([one.top for one in batch])
        for path, line in zip(shown, lines, strict=True):
            self.file.write(f"{path:<{self.width}}  {printable(line)}".rstrip() + "\n")


def _shortened(path: str) -> str:
    return path if len(path) <= PATH_WIDTH else f"...{path[3 - PATH_WIDTH :]}"


# ---------------------------------------------------------------------------------------------------------- pictures

LEAST, MOST = 240, 900  # pixels of the longer side of an annotated picture
LINE = 24  # pixels of one line of the legend
BAR, INK, QUIET, PAPER = "#0072b2", "#1d2329", "#5f6b76", "#ffffff"


def annotate(image: Image.Image, one: Prediction, path: Path) -> None:
    """Write the picture as the PNG ``path`` with its classes below, a bar for each probability."""
    from matplotlib import font_manager
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    from vitlab.files import atomic_write

    longer = max(image.size)
    scale = min(MOST / longer, 1) if longer > LEAST else LEAST / longer
    resampling = Pillow.Resampling.NEAREST if longer < 64 else Pillow.Resampling.LANCZOS
    picture = image.resize([max(1, round(side * scale)) for side in image.size], resampling)
    width = max(picture.width, LEAST)
    page = Pillow.new("RGB", (width, picture.height + LINE * len(one.top) + 12), PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    for row, (name, probability) in enumerate(one.top):
        top = picture.height + 8 + row * LINE
        share = f"{100 * probability:.1f} %"
        room = width - 24 - draw.textlength(share, font)
        while name and draw.textlength(name, font) > room - 8:
            name = name[:-2].rstrip("…") + "…" if len(name) > 2 else ""
        colour = INK if row == 0 else QUIET
        draw.text((8, top), name, colour, font)
        draw.text((width - 8 - draw.textlength(share, font), top), share, colour, font)
        draw.rectangle((8, top + 17, 8 + (width - 16) * probability, top + 19), BAR if row == 0 else "#9fb8c8")
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())
