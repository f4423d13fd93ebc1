"""The seam between the frame and what a network predicts.

A :class:`Task` owns everything that depends on it: the head of the network, what a target is, the default objective,
the metrics and the one that models are compared by, evaluation, columns and figures of reports, how a prediction is
written, names of exported outputs. ``modes/``, ``report/``, ``sweep/`` and ``training/`` use the task through this
class and name none. A task comes in as one file ``vitlab/tasks/<name>.py`` and ``conf/task/<name>.yaml``.

Importing a task costs no torch: a report is rebuilt, and a plan printed, without it.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitlab.config import EvaluationConfig, RecipeConfig, TaskConfig
from vitlab.errors import UserError, nearest
from vitlab.measure.bootstrap import Comparison
from vitlab.measure.record import Record
from vitlab.report.compare import Column
from vitlab.report.data import Example, ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Headline, Shown, Tile
from vitlab.report.snippets import LOAD_CODE

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torchmetrics
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vitlab.data.batch import Batch
    from vitlab.data.sources import Source
    from vitlab.distill.draw import Draw
    from vitlab.report.style import Theme

Top = list[tuple[str, float]]
"""What is predicted for one image: names with their probabilities, the most probable first."""


@dataclass
class Answers:
    """A network's logits on a set of images, in the order of the images."""

    logits: NDArray[np.float32]  # [N, C]
    label: NDArray[Any]  # [N] class numbers, or [N, C] rows of 0 and 1, in the order of the logits
    index: NDArray[np.int64]  # [N] into the measured split
    group: list[str] | None = None  # [N] name of each image's group, where images come in groups


@dataclass
class Validation:
    """Images on which a temperature or thresholds may be fitted after training: neither measured nor trained on.

    Attributes:
        answers: the network's logits on them; None where there are no such images.
        images: in words: "val split, 450 images".
        missing: why there are none, and what helps; empty where there are.
    """

    answers: Answers | None = None
    images: str = ""
    missing: str = ""


class Task(ABC):
    """What a network predicts. One subclass a module, named by ``config.task.name``."""

    name: ClassVar[str]
    headline: ClassVar[Headline]
    metrics: ClassVar[tuple[Shown, ...]]
    """Metrics in the tables of sweeps, in this order."""
    validated: ClassVar[tuple[str, ...]]
    """Keys of :meth:`validation_metrics`, in the order of the record. A search for an evaluation's metric watches the
    one of the same name during training."""
    pooled: ClassVar[tuple[str, ...]]
    """Metrics that out-of-fold predictions are pooled for: those that need nothing fitted."""
    card_metrics: ClassVar[Mapping[str, tuple[str, float]]]
    """Metrics of a model card: key to heading and factor."""
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    """Names of the tensors that an exported file gives."""
    pipeline: ClassVar[str] = "image-classification"
    """The Hugging Face hub's word for the task."""
    robustness: ClassVar[bool] = False
    """Whether corruptions and shifted sets can be measured."""
    one_label: ClassVar[bool] = True
    """Whether a target names exactly one class."""
    templates: ClassVar[Path]
    """Folder of the parts of a report's page that are this task's."""

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.config = config or TaskConfig(name=self.name)

    # ------------------------------------------------------------------------------------------- network and targets

    def head(self, classes: Sequence[str]) -> dict[str, Any]:
        """Arguments of the network that depend on what it predicts."""
        return {"num_classes": len(classes)}

    def move(self, target: Any, drawn: Draw, width: int, height: int) -> Any:
        """The target of the view that ``drawn`` makes of an image of ``width`` x ``height`` pixels. Identity unless the
        target has places in it: boxes, masks and points follow the pixels."""
        return target

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """The labels of a batch from the targets of its images, [B, ...]."""

    @abstractmethod
    def check_source(self, source: Source, name: str) -> None:
        """Refuse a data set whose targets are of another kind.

        Raises:
            UserError: naming the data set and a task that fits.
        """

    @abstractmethod
    def label_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        """The classes that a target names."""

    def label_text(self, target: Any, classes: Sequence[str]) -> str:
        """A target in words."""
        return ", ".join(self.label_names(target, classes))

    # ------------------------------------------------------------------------------------------------------ training

    @abstractmethod
    def objective(self, recipe: RecipeConfig, train: Source) -> Any:
        """The default :class:`~vitlab.training.objectives.Objective` on the labels of ``train``."""

    @abstractmethod
    def step_metrics(self, output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Scalars of one training step, recorded as ``train_<name>``."""

    @abstractmethod
    def validation_metrics(self, classes: int) -> torchmetrics.MetricCollection:
        """Metrics of validation during training, updated with (logits, label), synchronised over ranks by torchmetrics;
        ``val_<key>`` in the record. The headline metric is one of them."""

    @abstractmethod
    def describe_validation(self, values: Mapping[str, float]) -> str:
        """A line about one validation; ``values`` by the names of the record."""

    @abstractmethod
    def perfect(self, label: torch.Tensor, classes: int) -> torch.Tensor:
        """Logits [B, C] at which the objective on the labels is as small as it can be."""

    # ---------------------------------------------------------------------------------------------------- evaluation

    @abstractmethod
    def match_classes(self, label: NDArray[Any], data: Sequence[str], model: Sequence[str], title: str) -> NDArray[Any]:
        """Labels of a data set with the classes ``data`` in the numbering of a model with the classes ``model``.

        Raises:
            UserError: a class of the data that the model does not know.
        """

    def needs_validation(self, spec: EvaluationConfig) -> bool:
        """Whether an evaluation fits something on validation images."""
        return False

    @abstractmethod
    def measure(
        self, test: Answers, validation: Validation | None, classes: Sequence[str], spec: EvaluationConfig
    ) -> Record:
        """Everything measured of one model, float64, from its logits on the measured images.

        Args:
            validation: None where :meth:`needs_validation` is False.
        """

    @abstractmethod
    def read_evaluation(self, value: dict[str, Any]) -> Record:
        """The inverse of :meth:`Record.to_dict`."""

    @abstractmethod
    def class_table(self, found: Record) -> list[list[object]]:
        """A row for each class, under a heading: ``<model>-classes.csv``."""

    @abstractmethod
    def pictures(self, title: str, found: Record, theme: Theme) -> dict[str, Figure | None]:
        """Figures of one model that mode=evaluate writes and W&B shows, by name."""

    @abstractmethod
    def tables(self, found: Record) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Tables of one model for W&B: name to heading and rows."""

    @abstractmethod
    def outcomes(self, answers: Answers, found: Record) -> list[tuple[str, str, float]]:
        """Label, prediction and confidence of each image, as text."""

    @abstractmethod
    def losses(self, answers: Answers) -> NDArray[np.float64]:
        """[N] the loss of each image in nats; its mean is the evaluation's ``nll``."""

    @abstractmethod
    def worst_mistakes(
        self, answers: Answers, found: Record, picture: Callable[[int], tuple[NDArray[np.uint8], str]], count: int
    ) -> list[Example]:
        """The images that are most confidently wrong, worst first.

        Args:
            picture: from a position in the measured split to pixels [H, W, 3] and the image's key.
            count: at most so many.
        """

    @abstractmethod
    def compare(
        self, first: str, second: str, a: Answers, b: Answers, found: tuple[Record, Record], spec: EvaluationConfig
    ) -> Comparison:
        """Two models on the same images in the same order; ``found``: their evaluations."""

    @abstractmethod
    def summary_table(self, rows: Sequence[tuple[str, Record]]) -> list[list[str]]:
        """Models side by side for the prompt, under a heading."""

    @abstractmethod
    def summary_notes(self, rows: Sequence[tuple[str, Record]], main: tuple[str, Record]) -> list[str]:
        """Lines below that table: what was fitted, the weakest classes of ``main``."""

    def warnings(self, found: Record) -> list[str]:
        """Sentences about a result that is none: one prediction for all images, or no better than chance."""
        return []

    @abstractmethod
    def describe_comparison(self, one: Comparison) -> str:
        """One sentence that claims no more than the comparison shows."""

    # --------------------------------------------------------------------------------------------------------- pages

    @abstractmethod
    def columns(self, rows: Sequence[ModelRow | PaperRow]) -> list[Column]:
        """Columns of the comparison with the metrics; cost follows."""

    @abstractmethod
    def figures(self, data: ReportData, slots: Mapping[str, int]) -> list[Drawing]:
        """Figures of a report beside those of training and cost; ``slots``: colour of each model."""

    @abstractmethod
    def tiles(self, row: ModelRow) -> list[Tile]:
        """Headline numbers of the primary model."""

    @abstractmethod
    def findings(self, data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]:
        """Sentences about the primary model; ``shares`` puts its size beside a teacher's."""

    @abstractmethod
    def page_values(self, data: ReportData) -> dict[str, Any]:
        """Values for the templates of this task, and ``class_word``: what the page calls its classes."""

    def load_code(self, folder: str) -> str:
        """Python that predicts one picture with the model in ``folder``."""
        return LOAD_CODE.format(folder=folder.replace("\\", "\\\\").replace('"', '\\"'))

    @abstractmethod
    def card_sentences(self, found: Record) -> list[str]:
        """Sentences of a model card about this evaluation."""

    @abstractmethod
    def card_purpose(self, classes: int) -> str:
        """What the model does, as a clause: "that sorts images into 10 classes"."""

    @abstractmethod
    def card_limits(self) -> list[str]:
        """What a reader of the card must know that follows from the task."""

    # --------------------------------------------------------------------------------------------------- predictions

    @abstractmethod
    def fitted(self, evaluated: Mapping[str, Any]) -> dict[str, Any]:
        """What an evaluation (its JSON) fitted and predictions use; empty where it fitted nothing."""

    def stored_with_model(self, found: Record) -> dict[str, Any]:
        """What of it stands in ``model.json``, for users and exports of the model alone."""
        return {}

    @abstractmethod
    def describe_fitted(self, evaluated: Mapping[str, Any], used: bool) -> str:
        """In words what :meth:`fitted` gives, or why there is nothing; ``used``: whether predictions use it."""

    @abstractmethod
    def probabilities(self, logits: torch.Tensor, fitted: Mapping[str, Any]) -> torch.Tensor:
        """[B, C] float64."""

    @abstractmethod
    def predict(self, logits: torch.Tensor, names: Sequence[str], topk: int, fitted: Mapping[str, Any]) -> list[Top]:
        """What is predicted for each row of ``logits`` [B, C]; at most ``topk`` names."""

    @abstractmethod
    def prediction_record(self, top: Top) -> dict[str, object]:
        """A prediction as JSON takes it."""

    @abstractmethod
    def prediction_columns(self, topk: int) -> list[str]:
        """Heading of a CSV of predictions, between path and error."""

    @abstractmethod
    def prediction_cells(self, top: Top, topk: int) -> list[str]:
        """The cells below that heading; empty strings for a file that could not be read."""

    @abstractmethod
    def prediction_lines(self, tops: Sequence[Top]) -> list[str]:
        """Predictions of a batch as lines of a table at the prompt."""

    # ------------------------------------------------------------------------------------------------------- exports

    def export_metadata(self, fitted: Mapping[str, Any]) -> dict[str, str]:
        """What a runtime must know of the outputs, beside the classes."""
        return {}

    @abstractmethod
    def activation_code(self, fitted: Mapping[str, Any]) -> str:
        """A torch expression of ``logits`` [C]: the probabilities [C] of :meth:`probabilities`."""

    @abstractmethod
    def agreement(
        self,
        exported: Callable[[torch.Tensor], torch.Tensor],
        model: torch.nn.Module,
        test: Iterable[tuple[torch.Tensor, torch.Tensor]],
        fitted: Mapping[str, Any],
    ) -> str:
        """An inexact export beside the network in memory on labelled images, in words."""

    def compare_logits(
        self, first: str, second: str, a: Mapping[str, Any], b: Mapping[str, Any], found: Record, resamples: int
    ) -> Comparison:
        """:meth:`compare` from the files of two evaluations (``logits``, ``label``, ``index``), ordered by image."""
        one, other = (_ordered(each) for each in (a, b))
        spec = EvaluationConfig(bins=getattr(found, "bins", 15), resamples=resamples)
        return self.compare(first, second, one, other, (found, found), spec)


def _ordered(kept: Mapping[str, Any]) -> Answers:
    import numpy as np

    order = np.argsort(kept["index"], kind="stable")
    group = kept["group"][order].tolist() if "group" in kept else None
    return Answers(kept["logits"][order], kept["label"][order], kept["index"][order], group)


def task_names() -> list[str]:
    """The tasks that there are: the files beside this one."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))


def find_task(config: TaskConfig | str) -> Task:
    """The one :class:`Task` of ``vitlab/tasks/<name>.py``.

    Raises:
        UserError: if there is no such file.
    """
    config = TaskConfig(name=config) if isinstance(config, str) else config
    if config.name not in task_names():
        near = nearest(config.name, task_names())
        hint = f"Did you mean {near}?" if near else f"There are: {', '.join(task_names())}."
        raise UserError(f"There is no task '{config.name}'.", hint)
    module = importlib.import_module(f"vitlab.tasks.{config.name}")
    found = [
        one
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Task) and one.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RuntimeError(f"{module.__name__} must define exactly one Task, it defines {len(found)}")
    task: Task = found[0](config)
    return task
