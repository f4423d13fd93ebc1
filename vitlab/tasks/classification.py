"""``task=classification``: one label for each image; softmax over the classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitlab.config import EvaluationConfig, RecipeConfig
from vitlab.errors import UserError
from vitlab.measure.bootstrap import Comparison, bootstrap_intervals, compare_models
from vitlab.measure.classification import Evaluation, evaluate_scores, score_images
from vitlab.measure.record import Record
from vitlab.measure.temperature import Temperature, fit_temperature
from vitlab.report.compare import Column
from vitlab.report.data import Example, ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Headline, Shown, Tile
from vitlab.tasks.base import Answers, Task, Top, Validation
from vitlab.tasks.parts import classification_figures, classification_pages

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torchmetrics
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vitlab.data.batch import Batch
    from vitlab.data.sources import Source
    from vitlab.report.style import Theme

CERTAIN = 30.0
"""Logit of a class whose probability is 1 to within float32."""


class Classification(Task):
    """One class number [B] for each image; mixed labels are rows [B, C] that sum to 1."""

    name: ClassVar[str] = "classification"
    headline: ClassVar[Headline] = Headline("top1", "top-1", "Top-1 accuracy")
    metrics: ClassVar[tuple[Shown, ...]] = (
        Shown("top1", "Top-1 %", lambda value: f"{100 * value:.2f}", 100.0, 2),
        Shown("paper_top1", "Paper's top-1 %", lambda value: f"{100 * value:.1f}", 100.0, 1),
        Shown("nll", "NLL", lambda value: f"{value:.3f}", 1.0, 3),
        Shown("ece", "ECE %", lambda value: f"{100 * value:.2f}", 100.0, 2),
    )
    validated: ClassVar[tuple[str, ...]] = ("top1", "nll")
    pooled: ClassVar[tuple[str, ...]] = ("top1", "nll", "ece")
    card_metrics: ClassVar[Mapping[str, tuple[str, float]]] = {
        "top1": ("Top-1 %", 100.0),
        "top5": ("Top-5 %", 100.0),
        "balanced": ("Mean recall %", 100.0),
        "nll": ("Negative log-likelihood, nats", 1.0),
        "ece": ("Expected calibration error %", 100.0),
        "brier": ("Brier score", 1.0),
    }
    robustness: ClassVar[bool] = True
    templates: ClassVar[Path] = Path(__file__).parent / "templates" / "classification"

    # ----------------------------------------------------------------------------------------------------- targets

    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """Class numbers [B] int64."""
        import torch

        return torch.tensor(targets, dtype=torch.int64)

    def check_source(self, source: Source, name: str) -> None:
        if source.labels is not None and source.labels.ndim != 1:
            raise UserError(
                f"task=classification gives each image one label, and those of dataset={name} have several.",
                "Give task=multilabel.",
            )

    def label_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        return [classes[int(target)]]

    # ---------------------------------------------------------------------------------------------------- training

    def objective(self, recipe: RecipeConfig, train: Source) -> Any:
        """Cross-entropy against the (smoothed, mixed) labels."""
        from vitlab.tasks.parts.losses import label_cross_entropy

        return partial(label_cross_entropy, smoothing=recipe.label_smoothing)

    def step_metrics(self, output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        from vitlab.tasks.parts.losses import accuracy

        return {"accuracy": accuracy(output, batch.label)}

    def validation_metrics(self, classes: int) -> torchmetrics.MetricCollection:
        """Top-1 and negative log-likelihood in nats, float64."""
        from torchmetrics import MetricCollection

        from vitlab.tasks.parts.metrics import NegativeLogLikelihood, Top1

        return MetricCollection({"top1": Top1(), "nll": NegativeLogLikelihood()}, compute_groups=False)

    def describe_validation(self, values: Mapping[str, float]) -> str:
        return f"top-1 {values['val_top1']:.2%}  nll {values['val_nll']:.4f}"

    def perfect(self, label: torch.Tensor, classes: int) -> torch.Tensor:
        """Logits whose softmax is the label: ids [B] or rows [B, C]."""
        import torch

        if label.ndim == 1:
            return torch.nn.functional.one_hot(label, classes) * CERTAIN
        return label.float().clamp_min(1e-12).log()

    # -------------------------------------------------------------------------------------------------- evaluation

    def match_classes(self, label: NDArray[Any], data: Sequence[str], model: Sequence[str], title: str) -> NDArray[Any]:
        """Predictions range over all classes of the model, also where the data have fewer."""
        matched: NDArray[np.int64] = class_numbers(data, model, title)[label]
        return matched

    def needs_validation(self, spec: EvaluationConfig) -> bool:
        return spec.temperature

    def measure(
        self, test: Answers, validation: Validation | None, classes: Sequence[str], spec: EvaluationConfig
    ) -> Evaluation:
        """Accuracy, calibration and confusion; a temperature fitted on the validation images (temperature scaling)."""
        scores = score_images(test.logits, test.label)
        found = evaluate_scores(scores, test.label, classes, spec.bins)
        if spec.resamples:
            drawn = bootstrap_intervals(scores, spec.bins, spec.resamples, groups=test.group)
            found.intervals = {name: list(ends) for name, ends in drawn.items()}
        if validation is None:
            return found
        found.no_temperature = validation.missing
        if validation.answers is not None:
            value = fit_temperature(validation.answers.logits, validation.answers.label)
            after = evaluate_scores(score_images(test.logits / value, test.label), test.label, classes, spec.bins)
            found.temperature = Temperature(value, validation.images, after.ece, after.max_ece, after.nll, after.brier)
        return found

    def read_evaluation(self, value: dict[str, Any]) -> Evaluation:
        return Evaluation.from_dict(value)

    def class_table(self, found: Record) -> list[list[object]]:
        head: list[object] = ["class", "images", "predicted", "recall", "precision", "f1", "most often taken for"]
        rows: list[list[object]] = [
            [c.name, c.n, c.predicted, c.recall, c.precision, c.f1, c.confused_with] for c in _of(found).per_class
        ]
        return [head, *rows]

    def pictures(self, title: str, found: Record, theme: Theme) -> dict[str, Figure | None]:
        return {
            "reliability": classification_figures.reliability(title, _of(found), theme, 0),
            "confusion": classification_figures.confusion(_of(found), theme),
        }

    def tables(self, found: Record) -> dict[str, tuple[list[str], list[list[Any]]]]:
        names, one = found.classes, _of(found)
        confusion: list[list[Any]] = [[names[label], names[predicted], count] for label, predicted, count in one.counts]
        bins: list[list[Any]] = [[b.lo, b.hi, b.n, b.confidence, b.accuracy] for b in one.reliability if b.n]
        return {
            "confusion": (["label", "predicted", "images"], confusion),
            "reliability": (["from", "to", "images", "confidence", "accuracy"], bins),
        }

    def outcomes(self, answers: Answers, found: Record) -> list[tuple[str, str, float]]:
        prob, classes = _softmax(answers.logits), found.classes
        best = prob.argmax(1)
        return [
            (classes[own], classes[one], float(prob[row, one]))
            for row, (own, one) in enumerate(zip(answers.label.tolist(), best.tolist(), strict=True))
        ]

    def losses(self, answers: Answers) -> NDArray[np.float64]:
        return score_images(answers.logits, answers.label).nll

    def worst_mistakes(
        self, answers: Answers, found: Record, picture: Callable[[int], tuple[NDArray[np.uint8], str]], count: int
    ) -> list[Example]:
        """Wrong predictions, the most confident first."""
        import numpy as np

        logits, label, classes = answers.logits, answers.label, found.classes
        prob = _softmax(logits)
        predicted = logits.argmax(1)
        wrong = np.flatnonzero(predicted != label)
        wrong = wrong[np.argsort(-prob[wrong, predicted[wrong]], kind="stable")][:count]
        examples = []
        for row in wrong:
            pixels, key = picture(int(answers.index[row]))
            own, other = float(prob[row, predicted[row]]), float(prob[row, label[row]])
            examples.append(Example.of(pixels, classes[label[row]], classes[predicted[row]], own, other, key))
        return examples

    def compare(
        self, first: str, second: str, a: Answers, b: Answers, found: tuple[Record, Record], spec: EvaluationConfig
    ) -> Comparison:
        """McNemar's test on top-1, paired bootstrap of top-1, NLL, Brier score and ECE."""
        one, other = score_images(a.logits, a.label), score_images(b.logits, b.label)
        resamples = max(spec.resamples, 1)
        return compare_models(first, second, one, other, spec.bins, resamples, groups=a.group)

    def summary_table(self, rows: Sequence[tuple[str, Record]]) -> list[list[str]]:
        return classification_pages.summary_table([(title, _of(one)) for title, one in rows])

    def summary_notes(self, rows: Sequence[tuple[str, Record]], main: tuple[str, Record]) -> list[str]:
        every = [(title, _of(one)) for title, one in rows]
        return classification_pages.summary_notes(every, (main[0], _of(main[1])))

    def warnings(self, found: Record) -> list[str]:
        return classification_pages.warnings(_of(found))

    def describe_comparison(self, one: Comparison) -> str:
        return classification_pages.describe_comparison(one)

    # ------------------------------------------------------------------------------------------------------- pages

    def columns(self, rows: Sequence[ModelRow | PaperRow]) -> list[Column]:
        return classification_pages.columns(rows)

    def figures(self, data: ReportData, slots: Mapping[str, int]) -> list[Drawing]:
        return classification_pages.drawings(data, slots)

    def tiles(self, row: ModelRow) -> list[Tile]:
        return classification_pages.tiles(row)

    def findings(self, data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]:
        return classification_pages.findings(data, shares)

    def page_values(self, data: ReportData) -> dict[str, Any]:
        return classification_pages.page_values(data)

    def card_sentences(self, found: Record) -> list[str]:
        """What a temperature does, and the weakest class."""
        one, out = _of(found), []
        if (fitted := one.temperature) is not None:
            out.append(
                f"Its probabilities are calibrated by dividing the logits by {fitted.value:.3g} (fitted on the "
                f"{fitted.fitted_on})."
            )
        weak = min((c for c in one.per_class if c.recall is not None), key=lambda c: c.recall or 0.0)
        if weak.recall is not None and weak.recall < one.top1:
            out.append(f"Its weakest class is {weak.name}: {weak.recall:.1%} of {weak.n} images are found.")
        return out

    def card_purpose(self, classes: int) -> str:
        return f"that sorts images into {classes} classes"

    def card_limits(self) -> list[str]:
        return ["It names one of its classes for any image, also for one that shows none of them."]

    # ------------------------------------------------------------------------------------------------- predictions

    def fitted(self, evaluated: Mapping[str, Any]) -> dict[str, Any]:
        """The temperature, under ``temperature``."""
        found = evaluated.get("temperature")
        return {"temperature": float(found["value"])} if found else {}

    def stored_with_model(self, found: Record) -> dict[str, Any]:
        temperature = _of(found).temperature
        return {"temperature": temperature.value} if temperature is not None else {}

    def describe_fitted(self, evaluated: Mapping[str, Any], used: bool) -> str:
        found = self.fitted(evaluated) if used else {}
        if found:
            images = evaluated["temperature"].get("fitted_on")
            suffix = f", fitted on the {images}" if images else ""
            return f"calibrated: logits divided by {found['temperature']:.3g}{suffix}"
        if not used:
            return "as the network gives them"
        why = evaluated.get("no_temperature") or ("mode=evaluate fits one" if not evaluated else "")
        return "as the network gives them" + (f"; no temperature was fitted: {why}" if why else "")

    def probabilities(self, logits: torch.Tensor, fitted: Mapping[str, Any]) -> torch.Tensor:
        """softmax(logits / temperature)."""
        return (logits.double() / fitted.get("temperature", 1.0)).softmax(1)

    def predict(self, logits: torch.Tensor, names: Sequence[str], topk: int, fitted: Mapping[str, Any]) -> list[Top]:
        """The most probable classes."""
        prob = self.probabilities(logits, fitted).cpu()
        best, which = prob.topk(min(topk, prob.shape[1]), dim=1)
        pairs = zip(which.tolist(), best.tolist(), strict=True)
        return [[(names[c], p) for c, p in zip(row, values, strict=True)] for row, values in pairs]

    def prediction_record(self, top: Top) -> dict[str, object]:
        name, probability = top[0]
        ranked = [{"class": one, "probability": round(p, 6)} for one, p in top]
        return {"class": name, "probability": round(probability, 6), "top": ranked}

    def prediction_columns(self, topk: int) -> list[str]:
        more = ([f"class_{n}", f"probability_{n}"] for n in range(2, topk + 1))
        return ["class", "probability", *itertools.chain(*more)]

    def prediction_cells(self, top: Top, topk: int) -> list[str]:
        cells = [value for name, p in top for value in (name, f"{p:.6f}")]
        return [*cells, *[""] * (2 * topk - len(cells))]

    def prediction_lines(self, tops: Sequence[Top]) -> list[str]:
        width = max([0, *(len(top[0][0]) for top in tops)])
        lines = []
        for (name, p), *others in tops:
            rest = "  ".join(f"{other} {100 * q:.1f}" for other, q in others if q >= 0.0005)
            lines.append(f"{name:<{width}}  {100 * p:5.1f} %   {rest}".rstrip())
        return lines

    # ----------------------------------------------------------------------------------------------------- exports

    def export_metadata(self, fitted: Mapping[str, Any]) -> dict[str, str]:
        """``temperature``, by which the logits are divided before the softmax, where one was fitted."""
        return {"temperature": repr(float(fitted["temperature"]))} if "temperature" in fitted else {}

    def activation_code(self, fitted: Mapping[str, Any]) -> str:
        temperature = f" / {float(fitted['temperature'])!r}" if "temperature" in fitted else ""
        return f"(logits.double(){temperature}).softmax(0)"

    def agreement(
        self,
        exported: Callable[[torch.Tensor], torch.Tensor],
        model: torch.nn.Module,
        test: Iterable[tuple[torch.Tensor, torch.Tensor]],
        fitted: Mapping[str, Any],
    ) -> str:
        """Top-1 of both, and on how many images their predictions are the same.

        Raises:
            ValueError: there are no images.
        """
        right = [0, 0]
        n = same = 0
        for image, label in test:
            mine, theirs = model(image).argmax(1), exported(image).argmax(1)
            right[0] += int((theirs == label).sum())
            right[1] += int((mine == label).sum())
            same += int((mine == theirs).sum())
            n += len(label)
        if n == 0:
            raise ValueError("no images to measure on")
        return (
            f"top-1 {100 * right[0] / n:.2f} % instead of {100 * right[1] / n:.2f} %, the same answer on "
            f"{100 * same / n:.2f} % of {n:,} test images"
        )


def _of(found: Record) -> Evaluation:
    assert isinstance(found, Evaluation)
    return found


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, C] float32."""
    import numpy as np

    shifted = np.exp(logits - logits.max(1, keepdims=True))
    prob: NDArray[np.float32] = shifted / shifted.sum(1, keepdims=True)
    return prob


def class_numbers(data: Sequence[str], model: Sequence[str], title: str) -> NDArray[np.int64]:
    """For each class of the data its number among the logits. The data may have fewer classes, or in another order.

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
