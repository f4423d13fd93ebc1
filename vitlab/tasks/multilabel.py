"""``task=multilabel``: any number of labels for each image, each decided by itself; sigmoid and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitlab.config import EvaluationConfig, RecipeConfig
from vitlab.errors import UserError
from vitlab.measure import multilabel as measured
from vitlab.measure.bootstrap import Comparison
from vitlab.measure.multilabel import DEFAULT_THRESHOLD, MultilabelEvaluation
from vitlab.measure.record import Record
from vitlab.report.compare import Column
from vitlab.report.data import Example, ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Headline, Shown, Tile
from vitlab.tasks.base import Answers, Task, Top, Validation
from vitlab.tasks.parts import multilabel_figures, multilabel_pages

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torchmetrics
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vitlab.data.batch import Batch
    from vitlab.data.sources import Source
    from vitlab.report.style import Theme

NONE = "none"
"""How an image without labels is written."""

CERTAIN = 30.0
"""Logit of a label whose probability is 1 to within float32."""


class Multilabel(Task):
    """A row [B, K] of 0 and 1 for each image; mixed images have rows in between."""

    name: ClassVar[str] = "multilabel"
    headline: ClassVar[Headline] = Headline("map", "mAP", "Mean average precision")
    metrics: ClassVar[tuple[Shown, ...]] = (
        Shown("map", "mAP %", lambda value: f"{100 * value:.2f}", 100.0, 2),
        Shown("paper_map", "Paper's mAP %", lambda value: f"{100 * value:.1f}", 100.0, 1),
        Shown("subset_accuracy", "Subset %", lambda value: f"{100 * value:.2f}", 100.0, 2),
        Shown("nll", "NLL", lambda value: f"{value:.3f}", 1.0, 3),
        Shown("ece", "ECE %", lambda value: f"{100 * value:.2f}", 100.0, 2),
    )
    validated: ClassVar[tuple[str, ...]] = ("map", "nll")
    pooled: ClassVar[tuple[str, ...]] = ("map", "nll", "ece")
    card_metrics: ClassVar[Mapping[str, tuple[str, float]]] = {
        "map": ("Mean average precision %", 100.0),
        "auroc": ("Mean AUROC %", 100.0),
        "f1": ("Mean F1 at the thresholds %", 100.0),
        "subset_accuracy": ("All labels right %", 100.0),
        "nll": ("Binary cross-entropy of a label, nats", 1.0),
        "ece": ("Expected calibration error of a label %", 100.0),
        "brier": ("Brier score of a label", 1.0),
    }
    one_label: ClassVar[bool] = False
    templates: ClassVar[Path] = Path(__file__).parent / "templates" / "multilabel"

    # ----------------------------------------------------------------------------------------------------- targets

    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """Rows [B, K] float32."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([np.asarray(one) for one in targets]).astype(np.float32))

    def check_source(self, source: Source, name: str) -> None:
        if source.labels is None or source.labels.ndim != 2:
            raise UserError(
                f"task=multilabel needs rows of labels, and the images of dataset={name} have one label each.",
                "Give task=classification, or a CSV with a column labels or with a column of 0 and 1 for each label.",
            )

    def label_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        return [name for name, own in zip(classes, target, strict=True) if own > DEFAULT_THRESHOLD]

    # ---------------------------------------------------------------------------------------------------- training

    def objective(self, recipe: RecipeConfig, train: Source) -> Any:
        """Binary cross-entropy of every label, positives weighted by ``task.pos_weight``."""
        from vitlab.tasks.parts.losses import binary_cross_entropy

        return partial(binary_cross_entropy, pos_weight=self._pos_weight(train), smoothing=recipe.label_smoothing)

    def _pos_weight(self, train: Source) -> torch.Tensor | None:
        """[K]: as given, or with ``balanced`` the images without a label for each that has it."""
        import torch

        given, size = self.config.pos_weight, len(train.classes)
        if given is None:
            return None
        if given == "balanced":
            assert train.labels is not None
            counts = torch.from_numpy(train.labels.sum(0).astype("float64"))
            return ((len(train) - counts) / counts.clamp_min(1)).float()
        weights = [float(one) for one in given] if isinstance(given, (list, tuple)) else [float(given)] * size
        if len(weights) != size:
            raise UserError(
                f"task.pos_weight has {len(weights)} numbers for {size} labels.",
                f"Give one for each of {', '.join(train.classes[:5])}{', ...' if size > 5 else ''}, one for all, or "
                "balanced.",
            )
        return torch.tensor(weights)

    def step_metrics(self, output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Share of the labels that are decided right at 1/2."""
        from vitlab.tasks.parts.losses import label_accuracy

        return {"accuracy": label_accuracy(output, batch.label)}

    def validation_metrics(self, classes: int) -> torchmetrics.MetricCollection:
        """Mean average precision, and binary cross-entropy of a label in nats."""
        from torchmetrics import MetricCollection

        from vitlab.tasks.parts.multilabel_metrics import BinaryNll, MeanAveragePrecision

        return MetricCollection({"map": MeanAveragePrecision(classes), "nll": BinaryNll()}, compute_groups=False)

    def describe_validation(self, values: Mapping[str, float]) -> str:
        return f"mAP {values['val_map']:.2%}  nll {values['val_nll']:.4f}"

    def perfect(self, label: torch.Tensor, classes: int) -> torch.Tensor:
        """Logits whose sigmoid is the row."""
        return label.float().logit(eps=1e-12).clamp(-CERTAIN, CERTAIN)

    # -------------------------------------------------------------------------------------------------- evaluation

    def match_classes(self, label: NDArray[Any], data: Sequence[str], model: Sequence[str], title: str) -> NDArray[Any]:
        """Columns in the order of the model's labels, which must be those of the data: whether an image shows a label
        that its data set does not name is not known."""
        if set(data) != set(model):
            strange = sorted(set(data) ^ set(model))
            raise UserError(
                f"The labels of {title} and of the data differ in {len(strange)}, the first is '{strange[0]}'.",
                "Choose data with its labels.",
            )
        place = {name: number for number, name in enumerate(data)}
        matched: NDArray[Any] = label[:, [place[name] for name in model]]
        return matched

    def needs_validation(self, spec: EvaluationConfig) -> bool:
        """Always: thresholds are chosen on validation images."""
        return True

    def measure(
        self, test: Answers, validation: Validation | None, classes: Sequence[str], spec: EvaluationConfig
    ) -> MultilabelEvaluation:
        from vitlab.tasks.parts.multilabel_metrics import evaluate

        return evaluate(test, validation, classes, spec)

    def read_evaluation(self, value: dict[str, Any]) -> MultilabelEvaluation:
        return MultilabelEvaluation.from_dict(value)

    def class_table(self, found: Record) -> list[list[object]]:
        names = ("name", "n", "predicted", "threshold", "ap", "auroc", "precision", "recall", "f1", "brier", "ece")
        rows: list[list[object]] = [[getattr(one, name) for name in names] for one in _of(found).labels]
        return [["label", "images", *names[2:]], *rows]

    def pictures(self, title: str, found: Record, theme: Theme) -> dict[str, Figure | None]:
        return {
            "reliability": multilabel_figures.reliability(title, _of(found), theme, 0),
            "precision-recall": multilabel_figures.precision_recall(_of(found), theme),
            "average-precision": multilabel_figures.average_precisions(_of(found), theme),
        }

    def tables(self, found: Record) -> dict[str, tuple[list[str], list[list[Any]]]]:
        head, *rows = self.class_table(found)
        bins: list[list[Any]] = [[b.lo, b.hi, b.n, b.confidence, b.accuracy] for b in _of(found).reliability if b.n]
        return {
            "labels": ([str(name) for name in head], [list(row) for row in rows]),
            "reliability": (["from", "to", "pairs", "probability", "share"], bins),
        }

    def outcomes(self, answers: Answers, found: Record) -> list[tuple[str, str, float]]:
        """Confidence is that of the least certain label."""
        import numpy as np

        prob, thresholds = measured.sigmoid(answers.logits), np.array(_of(found).thresholds)
        out = []
        for own, p in zip(answers.label, prob, strict=True):
            decided = p >= thresholds
            certainty = np.where(decided, p, 1 - p).min()
            out.append((self._text(own, found.classes), self._text(decided, found.classes), float(certainty)))
        return out

    def _text(self, row: Any, classes: Sequence[str]) -> str:
        return self.label_text(row, classes) or NONE

    def losses(self, answers: Answers) -> NDArray[np.float64]:
        """Mean over the labels."""
        found: NDArray[np.float64] = measured.binary_nll(answers.logits, answers.label).mean(1)
        return found

    def worst_mistakes(
        self, answers: Answers, found: Record, picture: Callable[[int], tuple[NDArray[np.uint8], str]], count: int
    ) -> list[Example]:
        """Images with a wrong label, the most confident wrong decision first."""
        import numpy as np

        prob, thresholds = measured.sigmoid(answers.logits), np.array(_of(found).thresholds)
        decided, label = prob >= thresholds, answers.label > DEFAULT_THRESHOLD
        sure = np.where(decided != label, np.where(decided, prob, 1 - prob), -1.0).max(1)
        order = np.argsort(-sure, kind="stable")
        examples = []
        for row in order[: min(count, int((sure >= 0).sum()))]:
            pixels, key = picture(int(answers.index[row]))
            texts = self._text(label[row], found.classes), self._text(decided[row], found.classes)
            examples.append(Example.of(pixels, *texts, float(sure[row]), float(1 - sure[row]), key))
        return examples

    def compare(
        self, first: str, second: str, a: Answers, b: Answers, found: tuple[Record, Record], spec: EvaluationConfig
    ) -> Comparison:
        """McNemar's test on images all of whose labels are right, paired bootstrap of mAP, subset accuracy, NLL and
        Brier score."""
        import numpy as np

        one, other = (np.array(_of(each).thresholds) for each in found)
        models = (a.logits, one), (b.logits, other)
        resamples = max(spec.resamples, 1)
        return measured.compare_multilabel(first, second, *models, np.rint(a.label), resamples, groups=a.group)

    def summary_table(self, rows: Sequence[tuple[str, Record]]) -> list[list[str]]:
        return multilabel_pages.summary_table([(title, _of(one)) for title, one in rows])

    def summary_notes(self, rows: Sequence[tuple[str, Record]], main: tuple[str, Record]) -> list[str]:
        every = [(title, _of(one)) for title, one in rows]
        return multilabel_pages.summary_notes(every, (main[0], _of(main[1])))

    def warnings(self, found: Record) -> list[str]:
        return multilabel_pages.warnings(_of(found))

    def describe_comparison(self, one: Comparison) -> str:
        return multilabel_pages.describe_comparison(one)

    # ------------------------------------------------------------------------------------------------------- pages

    def columns(self, rows: Sequence[ModelRow | PaperRow]) -> list[Column]:
        return multilabel_pages.columns(rows)

    def figures(self, data: ReportData, slots: Mapping[str, int]) -> list[Drawing]:
        return multilabel_pages.drawings(data, slots)

    def tiles(self, row: ModelRow) -> list[Tile]:
        return multilabel_pages.tiles(row)

    def findings(self, data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]:
        return multilabel_pages.findings(data, shares)

    def page_values(self, data: ReportData) -> dict[str, Any]:
        return multilabel_pages.page_values(data)

    def card_sentences(self, found: Record) -> list[str]:
        """Where thresholds come from, and the weakest label."""
        one = _of(found)
        out = [multilabel_pages.describe_thresholds(one).capitalize()]
        weak = multilabel_pages.weakest(one)[0]
        if weak.ap is not None:
            out.append(f"Its weakest label is {weak.name}: average precision {weak.ap:.1%} on {weak.n} images.")
        return out

    def card_purpose(self, classes: int) -> str:
        return f"that finds which of {classes} labels an image has"

    def card_limits(self) -> list[str]:
        return ["It decides each label by itself, and knows no others; an image may get none."]

    # ------------------------------------------------------------------------------------------------- predictions

    def fitted(self, evaluated: Mapping[str, Any]) -> dict[str, Any]:
        """The thresholds in the order of the logits, under ``thresholds``."""
        if not evaluated.get("thresholds_from"):
            return {}
        return {"thresholds": [float(one["threshold"]) for one in evaluated["labels"]]}

    def stored_with_model(self, found: Record) -> dict[str, Any]:
        return {"thresholds": _of(found).thresholds} if _of(found).thresholds_from else {}

    def describe_fitted(self, evaluated: Mapping[str, Any], used: bool) -> str:
        found = self.fitted(evaluated) if used else {}
        if found:
            return f"sigmoid; labels from thresholds that maximise F1 on the {evaluated['thresholds_from']}"
        why = evaluated.get("no_thresholds") or ("mode=evaluate chooses thresholds" if used and not evaluated else "")
        return "sigmoid; labels from a probability of 1/2 on" + (f": {why}" if why else "")

    def probabilities(self, logits: torch.Tensor, fitted: Mapping[str, Any]) -> torch.Tensor:
        return logits.double().sigmoid()

    def predict(self, logits: torch.Tensor, names: Sequence[str], topk: int, fitted: Mapping[str, Any]) -> list[Top]:
        """Every label at or above its threshold, however many they are."""
        prob = self.probabilities(logits, fitted).cpu().tolist()
        thresholds = fitted.get("thresholds") or [DEFAULT_THRESHOLD] * len(names)
        out = []
        for row in prob:
            above = [(n, p) for n, p, t in zip(names, row, thresholds, strict=True) if p >= t]
            out.append(sorted(above, key=lambda pair: -pair[1]))
        return out

    def prediction_record(self, top: Top) -> dict[str, object]:
        return {"labels": [{"label": name, "probability": round(p, 6)} for name, p in top]}

    def prediction_columns(self, topk: int) -> list[str]:
        return ["labels", "probabilities"]

    def prediction_cells(self, top: Top, topk: int) -> list[str]:
        return [";".join(name for name, _ in top), ";".join(f"{p:.6f}" for _, p in top)]

    def prediction_lines(self, tops: Sequence[Top]) -> list[str]:
        return ["  ".join(f"{name} {100 * p:.1f} %" for name, p in top) or NONE for top in tops]

    # ----------------------------------------------------------------------------------------------------- exports

    def activation_code(self, fitted: Mapping[str, Any]) -> str:
        return "logits.double().sigmoid()"

    def export_metadata(self, fitted: Mapping[str, Any]) -> dict[str, str]:
        """``activation`` and, where they were chosen, ``thresholds`` in the order of the logits (JSON)."""
        import json

        found = {"task": self.name, "activation": "sigmoid"}
        return found | ({"thresholds": json.dumps(fitted["thresholds"])} if fitted.get("thresholds") else {})

    def agreement(
        self,
        exported: Callable[[torch.Tensor], torch.Tensor],
        model: torch.nn.Module,
        test: Iterable[tuple[torch.Tensor, torch.Tensor]],
        fitted: Mapping[str, Any],
    ) -> str:
        """mAP of both, and on how many (image, label) pairs their decisions are the same."""
        import torch

        from vitlab.tasks.parts.multilabel_metrics import mean_average_precision

        batches = [(exported(image), model(image), label) for image, label in test]
        if not batches:
            raise ValueError("no images to measure on")
        theirs, mine, label = (torch.cat(list(one)) for one in zip(*batches, strict=True))
        cut = torch.tensor(fitted.get("thresholds") or DEFAULT_THRESHOLD, dtype=torch.float64).logit()
        same = float(((theirs.double() >= cut) == (mine.double() >= cut)).double().mean())
        own, other = (100 * mean_average_precision(one, label) for one in (theirs, mine))
        return (
            f"mAP {own:.2f} % instead of {other:.2f} %, the same decision on {100 * same:.2f} % of the labels of "
            f"{len(label):,} test images"
        )


def _of(found: Record) -> MultilabelEvaluation:
    assert isinstance(found, MultilabelEvaluation)
    return found
