"""What a report is made of: plain numbers and words that survive JSON, so that a page can be rebuilt at any time.

Shares (accuracy, ece) lie in [0, 1], times are in seconds or, where the name has _ms, milliseconds, sizes in bytes.
Paths are relative to the run folder, so that a report does not depend on the machine it was made on.
A value that was not measured is left out or None; it is shown as a dash, never as a zero.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitlab.files import read_json, write_json
from vitlab.measure.bootstrap import Comparison, Difference
from vitlab.measure.cost_record import Cost
from vitlab.measure.record import Record
from vitlab.measure.robustness import Robustness, Shifted
from vitlab.measure.timing import Timing

CLASSIFICATION = "classification"
"""The task of a report that names none."""


class EvaluationReader(Protocol):
    """A task, as far as reading a report needs it."""

    def read_evaluation(self, value: dict[str, Any]) -> Record:
        """The inverse of :meth:`Record.to_dict`."""


@dataclass
class DatasetInfo:
    """The data that every number of the report speaks about."""

    name: str
    description: str  # one sentence a stranger understands
    train: int  # images trained on
    test: int  # images evaluated on
    split: str  # name of the evaluated split: test or val
    classes: list[str]
    size: int | list[int]  # side of the view in pixels, or [height, width]
    synthetic: bool = False  # made up by a program: marked wherever a number is shown
    origin: str = ""  # where the data come from, and their licence
    fingerprint: str = ""
    val: int = 0  # images in a validation split of its own; 0: there is none


@dataclass
class ModelRow:
    """One compared model. ``metrics`` is filled from ``evaluation`` when that is given."""

    name: str  # unique within the report, e.g. "student, stored labels"
    stage: str  # the stage that made it
    role: str  # teacher | student | baseline
    metrics: dict[str, float] = field(default_factory=dict)  # keys of Record.metrics()
    evaluation: Record | None = None
    cost: Cost = field(default_factory=Cost)
    folder: str = ""  # model artifact
    architecture: str = ""  # timm name, and what of it was changed
    steps: int | None = None  # optimiser steps it was trained for
    robust: Robustness | None = None  # under corruptions made on the fly
    shifted: Shifted | None = None  # on the shifted ImageNet sets

    def __post_init__(self) -> None:
        if self.evaluation is not None:
            self.metrics = {**self.metrics, **self.evaluation.metrics()}


@dataclass
class PaperRow:
    """Published numbers to stand beside a row, with their place in the paper."""

    name: str  # e.g. "TinyViT-21M, ImageNet-1k"
    source: str  # e.g. "Wu et al. 2022, Table 5"
    beside: str  # the name of the ModelRow it belongs under
    metrics: dict[str, float] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


@dataclass
class StageRow:
    """One stage of the method."""

    name: str
    title: str
    seconds: float | None = None  # None: not finished
    artifact: str = ""  # its folder
    summary: str = ""  # e.g. "3.1M records, 1.2 GB"


@dataclass
class Curve:
    """The life of one training, from ``metrics.jsonl``: points are ``{"step": 20, "loss": 1.9, "lr": 1e-3, ...}``.

    Drawn are ``loss``, ``lr`` and the task's headline metric (``val_top1``); other values are kept and not drawn.
    """

    stage: str
    title: str
    points: list[dict[str, float]]


@dataclass
class Example:
    """One image whose prediction is wrong (or, with ``label == predicted``, right); several labels are one text."""

    png: str  # base64
    label: str
    predicted: str
    confidence: float  # of the prediction
    label_confidence: float  # what the true class was given
    key: str = ""  # name of the image in its data set

    @classmethod
    def of(
        cls,
        image: NDArray[np.uint8],
        label: str,
        predicted: str,
        confidence: float,
        label_confidence: float,
        key: str = "",
    ) -> Example:
        """From pixels [H, W, 3] uint8.

        Raises:
            ValueError: for pixels of another shape or type.
        """
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an example image must be [H, W, 3] uint8, not {image.shape} {image.dtype}")
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        text = base64.b64encode(buffer.getvalue()).decode()
        return cls(text, label, predicted, float(confidence), float(label_confidence), key)

    @property
    def small(self) -> bool:
        """Whether its pixels should be shown as squares instead of being smoothed."""
        return max(self.pixels().shape[:2]) < 96

    def pixels(self) -> NDArray[np.uint8]:
        """[H, W, 3] uint8."""
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(base64.b64decode(self.png))).convert("RGB"))


@dataclass
class ExportFile:
    """One exported file of the primary model."""

    format: str
    path: str
    bytes: int
    max_diff: float | None = None  # largest |exported - torch| of a logit; None: not compared
    note: str = ""  # what else was measured, or what there is to know


@dataclass
class ReportData:
    """Everything that stands in a report."""

    title: str  # e.g. "TinyViT on digits"
    summary: str  # what was done, in one sentence
    command: str  # exactly what was typed
    run: str  # the run folder as one types it, e.g. outputs/tinyvit/digits-tiny_vit-1a2b3c4d
    created: str  # ISO 8601 time
    dataset: DatasetInfo
    rows: list[ModelRow]
    primary: str  # name of the row this run is about
    paper_rows: list[PaperRow] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)  # worst mistakes of the primary row, worst first
    exports: list[ExportFile] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)  # nested dicts are shown as groups
    config: str = ""  # YAML
    notes: list[str] = field(default_factory=list)  # decisions and limits worth knowing, a sentence each
    comparisons: list[Comparison] = field(default_factory=list)  # of pairs of rows, on the same images
    timings: list[Timing] = field(default_factory=list)  # of mode=benchmark: models (rows' names) in several backends
    load_code: str = ""  # Python that uses the primary model; "": made from run and the primary row's folder
    task: str = CLASSIFICATION  # what the models predict: the name of a task
    advice: list[str] = field(default_factory=list)  # what is known to make the method pay, with its command
    predictions: str = ""  # CSV with the prediction for every measured image; "": there is none

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"rows of a report must have different names, not {names}")
        if self.primary not in names:
            raise ValueError(f"primary row '{self.primary}' is not one of {names}")
        strangers = [row.beside for row in self.paper_rows if row.beside not in names]
        if strangers:
            raise ValueError(f"paper rows stand beside {strangers}, which are not among {names}")

    @property
    def main(self) -> ModelRow:
        """The row this run is about."""
        return next(row for row in self.rows if row.name == self.primary)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        plain = asdict(self)
        for kind in ("rows", "paper_rows"):
            for shown, row in zip(plain[kind], getattr(self, kind), strict=True):
                shown["cost"] = row.cost.to_dict()
        if self.task == CLASSIFICATION:  # absent means classification: reports of before there were tasks
            del plain["task"]
        write_json(path, plain)

    @classmethod
    def load(cls, path: Path, find_task: Callable[[str], EvaluationReader]) -> ReportData:
        """The inverse of :meth:`save`; ``find_task`` gives the task of a name (:func:`vitlab.tasks.base.find_task`)."""
        value = read_json(path)
        return cls.from_dict(value, find_task(value.get("task", CLASSIFICATION)))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], task: EvaluationReader) -> ReportData:
        """The inverse of :func:`dataclasses.asdict`; ``task`` reads the evaluations."""
        plain = dict(value)
        plain["dataset"] = DatasetInfo(**value["dataset"])
        plain["rows"] = [
            ModelRow(
                **{
                    **row,
                    "cost": Cost.from_dict(row["cost"]),
                    "evaluation": None if row["evaluation"] is None else task.read_evaluation(row["evaluation"]),
                    "robust": Robustness.from_dict(row["robust"]) if row.get("robust") else None,
                    "shifted": Shifted.from_dict(row["shifted"]) if row.get("shifted") else None,
                }
            )
            for row in value["rows"]
        ]
        plain["paper_rows"] = [PaperRow(**{**row, "cost": Cost.from_dict(row["cost"])}) for row in value["paper_rows"]]
        plain["stages"] = [StageRow(**row) for row in value["stages"]]
        plain["curves"] = [Curve(**row) for row in value["curves"]]
        plain["examples"] = [Example(**row) for row in value["examples"]]
        plain["exports"] = [ExportFile(**row) for row in value["exports"]]
        plain["comparisons"] = [comparison(row) for row in value.get("comparisons", [])]
        plain["timings"] = [Timing(**row) for row in value.get("timings", [])]
        return cls(**plain)


def comparison(value: Mapping[str, Any]) -> Comparison:
    """The inverse of :func:`dataclasses.asdict`."""
    found = {name: Difference(**each) for name, each in value["differences"].items()}
    return Comparison(**{**value, "differences": found})


def curves_of(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> list[Curve]:
    """Group rows of ``metrics.jsonl`` (each with ``stage`` and ``step``) by stage, in order of appearance.

    Values that are not numbers (a diverged loss is stored as the word ``nan``) and rows without a step are left out:
    they have no place on a plot; the record itself keeps them.
    """
    curves: dict[str, Curve] = {}
    for row in rows:
        if "step" not in row or "stage" not in row:
            continue
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        stage = str(row["stage"])
        curve = curves.setdefault(stage, Curve(stage, (titles or {}).get(stage, stage), []))
        curve.points.append(numbers)
    return list(curves.values())
