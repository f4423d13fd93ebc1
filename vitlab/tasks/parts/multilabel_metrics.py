"""Metrics of several labels an image: torchmetrics on the logits of all images, and while a training validates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_precision_recall_curve,
    multilabel_recall,
)

from vitlab.config import EvaluationConfig
from vitlab.errors import OVERFLOW, UserError
from vitlab.measure.classification import calibration_error
from vitlab.measure.multilabel import (
    DEFAULT_THRESHOLD,
    LabelScore,
    MultilabelEvaluation,
    binary_nll,
    bootstrap_metrics,
    choose_thresholds,
    percentile_interval,
    sigmoid,
)
from vitlab.tasks.base import Answers, Validation
from vitlab.tasks.parts.metrics import MeanOverImages

POINTS = 60  # of a precision-recall curve that are kept


class BinaryNll(MeanOverImages):
    """Mean over images and labels of the binary cross-entropy, nats."""

    higher_is_better = False

    def batch_sum(self, logits: Tensor, label: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
        return losses.double().mean(1).sum()


class MeanAveragePrecision(MultilabelAveragePrecision):
    """torchmetrics' mean over labels of average precision, from logits [B, K] and rows [B, K] of 0 and 1.

    Its states hold the scores of all images; a rank without a batch begins with none, of the right shape.
    """

    def __init__(self, labels: int) -> None:
        super().__init__(num_labels=labels, average="macro", validate_args=False)
        self.preds.append(torch.zeros(0, labels))
        self.target.append(torch.zeros(0, labels, dtype=torch.int64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, on the CPU, where the states are kept."""
        super().update(preds.float().sigmoid().cpu(), target.round().long().cpu())

    def compute(self) -> Tensor:  # type: ignore[override]  # as torchmetrics' own class
        with _without_warnings():
            return super().compute()


def evaluate(
    test: Answers, validation: Validation | None, classes: Sequence[str], spec: EvaluationConfig
) -> MultilabelEvaluation:
    """Everything measured of one model; thresholds are chosen on the validation images alone.

    Raises:
        UserError: logits that are not finite.
        ValueError: their shape does not fit the labels.
    """
    if test.logits.shape != test.label.shape or test.logits.shape[1] != len(classes):
        raise ValueError(f"logits {test.logits.shape} and label {test.label.shape} must be [N, {len(classes)}]")
    if not np.isfinite(test.logits).all():
        bad = int((~np.isfinite(test.logits).all(axis=1)).sum())
        raise UserError(f"The model's logits of {bad} images are not finite.", OVERFLOW)
    label = np.rint(test.label).astype(np.int64)
    prob = sigmoid(test.logits)
    thresholds, unseen = _thresholds(validation, len(classes))
    decided = prob >= thresholds
    scores = _label_scores(prob, decided, thresholds, label, classes, spec.bins)
    known = [one for one in scores if one.n]
    pooled_ece = calibration_error(np.minimum(prob.ravel(), 1.0), label.ravel().astype(bool), spec.bins)
    found = MultilabelEvaluation(
        n=len(label),
        classes=list(classes),
        map=_mean([one.ap for one in known]),
        auroc=_mean([one.auroc for one in known]),
        f1=_mean([one.f1 for one in known]),
        micro_f1=float(multilabel_f1_score(*_tensors(decided, label), len(classes), average="micro")),
        subset_accuracy=float((decided == label.astype(bool)).all(1).mean()),
        nll=float(binary_nll(test.logits, label).mean()),
        brier=float(np.mean([one.brier for one in scores])),
        ece=float(np.mean([one.ece for one in scores])),
        max_ece=float(max(one.ece for one in scores)),
        bins=spec.bins,
        cardinality=float(label.sum(1).mean()),
        labels=scores,
        reliability=pooled_ece[2],
    )
    if validation is not None:
        found.thresholds_from, found.no_thresholds = validation.images, validation.missing
        found.default_thresholds = [classes[k] for k in unseen] if validation.answers is not None else []
    if spec.resamples:
        (drawn,) = bootstrap_metrics([(prob, decided)], [test.logits], label, spec.resamples, groups=test.group)
        found.intervals = {name: list(percentile_interval(values)) for name, values in drawn.items()}
    return found


def _thresholds(validation: Validation | None, labels: int) -> tuple[NDArray[np.float64], list[int]]:
    """[K], and the labels that no validation image has."""
    if validation is None or validation.answers is None:
        return np.full(labels, DEFAULT_THRESHOLD), []
    chosen = choose_thresholds(sigmoid(validation.answers.logits), np.rint(validation.answers.label))
    unseen = np.flatnonzero(np.isnan(chosen)).tolist()
    return np.where(np.isnan(chosen), DEFAULT_THRESHOLD, chosen), unseen


def _label_scores(
    prob: NDArray[np.float64],
    decided: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    label: NDArray[np.int64],
    classes: Sequence[str],
    bins: int,
) -> list[LabelScore]:
    size = len(classes)
    p, y = torch.from_numpy(prob), torch.from_numpy(label)
    d, _ = _tensors(decided, label)
    with _without_warnings():
        ap = multilabel_average_precision(p, y, size, average=None)
        auroc = multilabel_auroc(p, y, size, average=None)
        precision, recall, f1 = (
            metric(d, y, size, average=None)
            for metric in (multilabel_precision, multilabel_recall, multilabel_f1_score)
        )
        curves = multilabel_precision_recall_curve(p, y, size)
        ece = [float(binary_calibration_error(p[:, k], y[:, k], n_bins=bins)) for k in range(size)]
    assert isinstance(curves[0], list) and isinstance(curves[1], list)
    out = []
    for k, name in enumerate(classes):
        n, predicted = int(label[:, k].sum()), int(decided[:, k].sum())
        both = 0 < n < len(label)
        out.append(
            LabelScore(
                name=name,
                n=n,
                predicted=predicted,
                threshold=float(thresholds[k]),
                ap=float(ap[k]) if n else None,
                auroc=float(auroc[k]) if both else None,
                precision=float(precision[k]) if predicted else None,
                recall=float(recall[k]) if n else None,
                f1=float(f1[k]) if n + predicted else None,
                brier=float(((prob[:, k] - label[:, k]) ** 2).mean()),
                ece=ece[k],
                curve=_points(curves[0][k], curves[1][k]) if n else [],
            )
        )
    return out


def subset_accuracy(decided: NDArray[np.bool_], label: NDArray[np.int64]) -> float:
    """torchmetrics' exact match: share of images all of whose labels are decided right."""
    return float(multilabel_exact_match(*_tensors(decided, label), decided.shape[1]))


def mean_average_precision(logits: Tensor, label: Tensor) -> float:
    """Mean over the labels that some image has; logits and label [N, K]."""
    with _without_warnings():
        found = multilabel_average_precision(logits.double().sigmoid(), label.round().long(), logits.shape[1], None)
    return _mean([float(one) for one, n in zip(found, label.sum(0), strict=True) if n > 0])


def _points(precision: Tensor, recall: Tensor) -> list[list[float]]:
    """A curve thinned out to POINTS, its ends kept."""
    at = np.unique(np.linspace(0, len(precision) - 1, min(POINTS, len(precision))).round().astype(int))
    return [[round(float(recall[i]), 5), round(float(precision[i]), 5)] for i in at]


def _tensors(decided: NDArray[np.bool_], label: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(decided.astype(np.int64)), torch.from_numpy(label)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def _without_warnings() -> warnings.catch_warnings:
    """torchmetrics warns of labels without images; they are left out and shown as dashes."""
    quiet = warnings.catch_warnings(action="ignore")
    return quiet
