"""Accuracy, calibration and confusion of a classifier, from its logits alone.

The formulas need numpy only, so that a report can be rebuilt without torch.

Definitions (Dataset Reinforcement, section "evaluation"; Guo et al., "On Calibration of Modern Neural Networks"):
confidence is the largest softmax probability, bins are of equal width and closed on the right, ``(lo, hi]``, and
nothing is scaled by a temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.errors import OVERFLOW, UserError
from vitlab.measure.temperature import Temperature

CALIBRATION_BINS = (10, 15, 20)
"""Numbers of bins with which papers state the expected calibration error."""

CHUNK = 4_000_000  # logits in float64 at a time (32 MB)


@dataclass
class Bin:
    """One bar of a reliability diagram: the images whose confidence lies in ``(lo, hi]``."""

    lo: float
    hi: float
    n: int
    accuracy: float  # share of them that is right; 0.0 where n is 0
    confidence: float  # mean of their confidences; 0.0 where n is 0


@dataclass
class ClassScore:
    """Metrics of one class."""

    name: str
    n: int  # images of this class
    predicted: int  # images for which this class was predicted
    recall: float | None  # share of its images that were found; None without images
    precision: float | None  # share of the images predicted as this class that are of it; None when never predicted
    f1: float | None  # 2·right / (n + predicted); None when both are 0
    confused_with: str | None  # the class most often predicted for its misclassified images


@dataclass
class Evaluation:
    """Everything measured from one set of logits. Shares lie in [0, 1], nll is in nats."""

    n: int
    classes: list[str]
    top1: float
    top5: float  # share of images whose label is among the top_k largest logits
    top_k: int  # min(5, number of classes): with fewer than five classes top5 is 1 by definition
    balanced: float  # mean recall over the classes that have images
    nll: float  # mean of -log p(label)
    brier: float  # mean over images of sum over classes of (p - onehot)^2, in [0, 2]
    ece: float  # sum over bins of n_b/N |accuracy_b - confidence_b|
    max_ece: float  # the largest |accuracy_b - confidence_b| of a bin that has images
    bins: int
    mean_confidence: float
    reliability: list[Bin]
    per_class: list[ClassScore]
    counts: list[list[int]]  # non-zero entries of the confusion matrix: [label, predicted, images]
    calibrations: list[list[float]] = field(default_factory=list)  # [bins, ece, max_ece] for CALIBRATION_BINS
    intervals: dict[str, list[float]] = field(default_factory=dict)  # metric: [lo, hi] of the bootstrap, 95 %
    temperature: Temperature | None = None  # fitted on validation images, with the metrics of these images after it
    no_temperature: str = ""  # why none could be fitted, and the cure
    view: str = ""  # description of resizing and crop

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix [C, C]: row = label, column = prediction."""
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for label, predicted, count in self.counts:
            matrix[label, predicted] = count
        return matrix

    def metrics(self) -> dict[str, float]:
        """The single numbers, as in tables and ``metrics.jsonl``."""
        names = ("top1", "top5", "balanced", "nll", "brier", "ece", "max_ece", "mean_confidence")
        return {name: float(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_dict`."""
        nested = {
            "reliability": [Bin(**each) for each in value["reliability"]],
            "per_class": [ClassScore(**each) for each in value["per_class"]],
            "temperature": Temperature(**value["temperature"]) if value.get("temperature") else None,
        }
        return cls(**{**value, **nested})


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> tuple[float, float, list[Bin]]:
    """Expected and maximum calibration error, and the bins they come from.

    Args:
        confidence: [N] in [0, 1], the largest softmax probability of each image.
        correct: [N] bool, whether the prediction was right.
        bins: how many, of equal width, each ``(lo, hi]``; a confidence of exactly 0 belongs to the first.

    Returns:
        ``sum_b n_b/N |accuracy_b - confidence_b|``, the largest ``|accuracy_b - confidence_b|`` over bins that have
        images, and the bins.

    Raises:
        ValueError: for no images, fewer than one bin, shapes that differ, or a confidence outside [0, 1].
    """
    confident, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confident.ndim != 1 or confident.shape != right.shape or len(confident) == 0 or bins < 1:
        raise ValueError(
            f"confidence {confident.shape} and correct {right.shape} must be [N], N > 0, with bins={bins} > 0"
        )
    if not bool(((confident >= 0) & (confident <= 1)).all()):
        raise ValueError("confidence must lie in [0, 1]")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = bin_of(confident, bins)
    count = np.bincount(place, minlength=bins)
    divisor = np.maximum(count, 1)
    accuracy = np.bincount(place, weights=right, minlength=bins) / divisor
    mean = np.bincount(place, weights=confident, minlength=bins) / divisor
    gap = np.abs(accuracy - mean)
    table = [
        Bin(float(edges[b]), float(edges[b + 1]), int(count[b]), float(accuracy[b]), float(mean[b]))
        for b in range(bins)
    ]
    return float((count * gap).sum() / len(confident)), float(gap[count > 0].max()), table


def bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin ``(lo, hi]`` of each confidence, [N]; 0 belongs to the first."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


@dataclass
class Scores:
    """Prediction and losses of each image, [N] each."""

    predicted: NDArray[np.int64]  # the largest logit, the lowest index among equals
    correct: NDArray[np.bool_]
    in_top: NDArray[np.bool_]  # label among the min(5, C) largest, by the same order
    confidence: NDArray[np.float64]  # largest softmax probability
    nll: NDArray[np.float64]  # -log p(label), nats
    brier: NDArray[np.float64]  # sum over classes of (p - onehot)^2


def _softmax(logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities [N, C] and log of the partition sum [N], without overflow."""
    top = logits.max(axis=1, keepdims=True)
    power = np.exp(logits - top)
    total = power.sum(axis=1, keepdims=True)
    return power / total, (np.log(total) + top)[:, 0]


def score_images(logits: ArrayLike, label: ArrayLike) -> Scores:
    """Measure every image of a labelled set.

    Args:
        logits: [N, C], numpy array or CPU tensor, any float type; computed in float64.
        label: [N] integers in [0, C).

    Raises:
        ValueError: for shapes that do not fit, or labels outside [0, C).
        UserError: for logits that are not finite.
    """
    scores, truth = np.asarray(logits), np.asarray(label)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or len(truth) == 0:
        raise ValueError(f"logits {scores.shape} and label {truth.shape} must be [N, C] and [N], N > 0")
    size = scores.shape[1]
    if truth.dtype.kind not in "iu" or int(truth.min()) < 0 or int(truth.max()) >= size:
        raise ValueError(f"label must be integers in [0, {size}), not {truth.dtype} in [{truth.min()}, {truth.max()}]")
    n, top_k = len(truth), min(5, size)
    predicted = np.empty(n, np.int64)
    rank = np.empty(n, np.int64)
    confidence, nll, brier = np.empty(n), np.empty(n), np.empty(n)
    step = max(1, CHUNK // size)
    for start in range(0, n, step):
        part = slice(start, start + step)
        row, own = scores[part].astype(np.float64), truth[part].astype(np.int64)
        if not np.isfinite(row).all():
            bad = int((~np.isfinite(row).all(axis=1)).sum())
            raise UserError(f"The model's logits of {bad} images are not finite.", OVERFLOW)
        at = np.arange(len(row))
        mine = row[at, own][:, None]
        # Larger logits, and equal ones of a lower index: the order of argmax, so that top 1 is rank 0.
        rank[part] = (row > mine).sum(axis=1) + ((row == mine) & (np.arange(size) < own[:, None])).sum(axis=1)
        predicted[part] = row.argmax(axis=1)
        prob, partition = _softmax(row)
        confidence[part] = prob.max(axis=1)
        nll[part] = partition - mine[:, 0]
        prob[at, own] -= 1.0
        brier[part] = (prob**2).sum(axis=1)
    # Rounding may leave a probability of 1 + 1e-16, which calibration_error refuses.
    return Scores(predicted, predicted == truth, rank < top_k, np.minimum(confidence, 1.0), nll, brier)


def evaluate_logits(logits: ArrayLike, label: ArrayLike, classes: Sequence[str], bins: int = 15) -> Evaluation:
    """Measure one network on one labelled set.

    Args:
        logits: [N, C], numpy array or CPU tensor, any float type; computed in float64.
        label: [N] integers in [0, C).
        classes: the C names, in the order of the logits.
        bins: of the reliability diagram and of ece.

    The prediction is the largest logit, the lowest index among equals; "top 5" ranks by the same order.

    Raises:
        ValueError: for shapes that do not fit, or labels outside [0, C).
        UserError: for logits that are not finite.
    """
    truth, size = np.asarray(label), len(classes)
    if np.asarray(logits).shape[1:] != (size,):
        raise ValueError(
            f"logits {np.asarray(logits).shape} and label {truth.shape} must be [N, {size}] and [N], N > 0"
        )
    return evaluate_scores(score_images(logits, truth), truth, classes, bins)


def evaluate_scores(scores: Scores, label: ArrayLike, classes: Sequence[str], bins: int = 15) -> Evaluation:
    """:func:`evaluate_logits` from the result of :func:`score_images`."""
    truth, size = np.asarray(label).astype(np.int64), len(classes)
    ece, max_ece, reliability = calibration_error(scores.confidence, scores.correct, bins)
    cells, images = np.unique(truth * size + scores.predicted, return_counts=True)
    counts = [[int(c) // size, int(c) % size, int(k)] for c, k in zip(cells, images, strict=True)]
    per_class = class_scores(counts, classes)
    recalls = [one.recall for one in per_class if one.recall is not None]
    return Evaluation(
        n=len(truth),
        classes=list(classes),
        top1=float(scores.correct.mean()),
        top5=float(scores.in_top.mean()),
        top_k=min(5, size),
        balanced=float(np.mean(recalls)),
        nll=float(scores.nll.mean()),
        brier=float(scores.brier.mean()),
        ece=ece,
        max_ece=max_ece,
        bins=bins,
        mean_confidence=float(scores.confidence.mean()),
        reliability=reliability,
        per_class=per_class,
        counts=counts,
        calibrations=[[b, *calibration_error(scores.confidence, scores.correct, b)[:2]] for b in CALIBRATION_BINS],
    )


def class_scores(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[ClassScore]:
    """Recall, precision and F1 of every class from the non-zero cells ``[label, predicted, images]``."""
    size = len(classes)
    own, called, right = [0] * size, [0] * size, [0] * size
    worst: list[tuple[int, int]] = [(0, -1)] * size  # (images, class) most often predicted instead
    for label, predicted, images in counts:
        own[label] += images
        called[predicted] += images
        if label == predicted:
            right[label] = images
        elif images > worst[label][0]:
            worst[label] = (images, predicted)
    return [
        ClassScore(
            name=name,
            n=own[c],
            predicted=called[c],
            recall=right[c] / own[c] if own[c] else None,
            precision=right[c] / called[c] if called[c] else None,
            f1=2 * right[c] / (own[c] + called[c]) if own[c] + called[c] else None,
            confused_with=classes[worst[c][1]] if worst[c][0] else None,
        )
        for c, name in enumerate(classes)
    ]


def top1_interval(found: Evaluation) -> tuple[float, float, str]:
    """The 95 % interval of top-1 that every page gives, with the name of its kind: that of the bootstrap over images
    (or groups), else, where none was drawn, Wilson's."""
    if "top1" in found.intervals:
        lo, hi = found.intervals["top1"]
        return lo, hi, "bootstrap"
    return (*wilson_interval(round(found.top1 * found.n), found.n), "Wilson")


def wilson_interval(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share ``right / n`` (Wilson 1927), by SciPy.

    Raises:
        ValueError: unless ``0 <= right <= n`` and ``n > 0``.
    """
    if n <= 0 or not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is not a share")
    from scipy.stats import binomtest  # a second of import, paid where an interval is shown

    ends = binomtest(right, n).proportion_ci(level, method="wilson")
    return float(ends.low), float(ends.high)
