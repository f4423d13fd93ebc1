"""Metrics of a multilabel network, as plain numbers and with numpy only, so that reports need no torch.

Most are computed by torchmetrics (:mod:`vitlab.tasks.parts.multilabel_metrics`); those that it lacks are here:
thresholds that maximise F1, and the bootstrap of average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.measure.bootstrap import Comparison, Difference, mcnemar_p_value, resample_weights
from vitlab.measure.classification import Bin

DEFAULT_THRESHOLD = 0.5
"""Threshold of a label where none was chosen."""

METRICS = ("map", "subset_accuracy", "nll", "brier")
"""Metrics with bootstrap intervals, and of which differences between two models are stated."""

LEVEL = 0.95


@dataclass
class LabelScore:
    """Metrics of one label. Shares lie in [0, 1]; None where they are undefined for a label without images."""

    name: str
    n: int  # images that have it
    predicted: int  # images for which it was predicted
    threshold: float  # probability from which on it is predicted
    ap: float | None  # average precision
    auroc: float | None
    precision: float | None  # at the threshold
    recall: float | None
    f1: float | None
    brier: float  # mean of (p - y)^2
    ece: float  # expected calibration error of its probability
    curve: list[list[float]] = field(default_factory=list)  # [recall, precision], recall falling; at most 60 points


@dataclass
class MultilabelEvaluation:
    """Everything measured from one set of logits [N, K]. Means over labels leave out those without images."""

    n: int
    classes: list[str]
    map: float  # mean over labels of average precision
    auroc: float  # mean over labels
    f1: float  # mean over labels, at the thresholds
    micro_f1: float  # of all (image, label) pairs together, at the thresholds
    subset_accuracy: float  # share of images all of whose labels are decided right
    nll: float  # mean binary cross-entropy of a label, nats
    brier: float  # mean over labels
    ece: float  # mean over labels
    max_ece: float  # the largest of a label
    bins: int
    cardinality: float  # labels an image has, mean
    labels: list[LabelScore]
    reliability: list[Bin]  # of all (image, label) pairs: confidence is p, accuracy the share of positive labels
    thresholds_from: str = ""  # the images that thresholds were chosen on; empty: all are 1/2
    no_thresholds: str = ""  # why none could be chosen, and the cure
    default_thresholds: list[str] = field(default_factory=list)  # labels that no validation image has
    intervals: dict[str, list[float]] = field(default_factory=dict)  # metric: [lo, hi] of the bootstrap, 95 %
    view: str = ""

    @property
    def thresholds(self) -> list[float]:
        """[K], in the order of the logits."""
        return [one.threshold for one in self.labels]

    def metrics(self) -> dict[str, float]:
        """The single numbers, as in tables and ``model.json``."""
        names = ("map", "auroc", "f1", "micro_f1", "subset_accuracy", "nll", "brier", "ece", "max_ece")
        return {name: float(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> MultilabelEvaluation:
        """The inverse of :meth:`to_dict`."""
        labels = [LabelScore(**each) for each in value["labels"]]
        return cls(**{**value, "labels": labels, "reliability": [Bin(**each) for each in value["reliability"]]})


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities in float64, without overflow."""
    z = np.asarray(logits, np.float64)
    power = np.exp(-np.abs(z))
    found: NDArray[np.float64] = np.where(z >= 0, 1.0, power) / (1.0 + power)
    return found


def binary_nll(logits: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """Binary cross-entropy of every (image, label) pair, nats: ``max(z, 0) - z y + log(1 + exp(-|z|))``."""
    z, y = np.asarray(logits, np.float64), np.asarray(label, np.float64)
    found: NDArray[np.float64] = np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))
    return found


def choose_thresholds(prob: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """[K] the threshold on the probability of each label that maximises F1; NaN for a label without images.

    Args:
        prob: [N, K] of images that are neither trained on nor measured.
        label: [N, K] of 0 and 1.

    A threshold lies halfway between two neighbouring probabilities, so that rounding does not change a decision; among
    thresholds of equal F1 the one nearest to 1/2 is taken.
    """
    p, y = np.asarray(prob, np.float64), np.asarray(label, bool)
    found = np.full(p.shape[1], np.nan)
    for k in range(p.shape[1]):
        if not y[:, k].any():
            continue
        order = np.argsort(-p[:, k], kind="stable")
        values, right = p[order, k], np.cumsum(y[order, k])
        # Equal probabilities are predicted together: only the last of a run can be the end of the predicted images.
        ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
        f1 = 2 * right[ends] / (ends + 1 + right[-1])
        below = np.append(values[ends[:-1] + 1], 0.0)
        middle = (values[ends] + below) / 2
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        found[k] = middle[best[np.argmin(np.abs(middle[best] - DEFAULT_THRESHOLD))]]
    return found


def weighted_average_precision(
    prob: NDArray[np.float64], label: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precision of one label with images counted ``weights`` [R, N] times, [R]: the sum over thresholds of
    precision times the gain in recall. NaN where no counted image has it.

    Args:
        prob: [N]. Images of equal probability are at one threshold.
        label: [N].
    """
    order = np.argsort(-prob, kind="stable")
    values, own = prob[order], label[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    counted = weights[:, order]
    right, called = np.cumsum(counted * own, axis=1)[:, ends], np.cumsum(counted, axis=1)[:, ends]
    precision = np.divide(right, called, out=np.zeros_like(right), where=called > 0)
    gain = np.diff(right, axis=1, prepend=0.0)
    total = right[:, -1]
    area = (precision * gain).sum(1)
    return np.divide(area, total, out=np.full_like(total, np.nan), where=total > 0)


def bootstrap_metrics(
    models: list[tuple[NDArray[np.float64], NDArray[np.bool_]]],
    logits: list[NDArray[np.float32]],
    label: NDArray[Any],
    resamples: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> list[dict[str, NDArray[np.float64]]]:
    """METRICS of each model on the same resamples of the images (with replacement), [R] each.

    Args:
        models: probabilities [N, K] and decisions [N, K] of each.
        logits: [N, K] of each.
        label: [N, K].
        groups: [N]; groups are drawn instead of images.

    Raises:
        ValueError: for no resamples.
    """
    truth = np.asarray(label, bool)
    found: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for weights in resample_weights(len(truth), resamples, seed, groups):
        for kept, (prob, decided), z in zip(found, models, logits, strict=True):
            kept.append(weighted_metrics(prob, decided, z, truth, weights))
    return [dict(zip(METRICS, np.concatenate(kept, axis=1), strict=True)) for kept in found]


def weighted_metrics(
    prob: NDArray[np.float64],
    decided: NDArray[np.bool_],
    logits: NDArray[np.float32],
    label: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """METRICS [4, R] of images counted ``weights`` [R, N] times."""
    aps = np.stack([weighted_average_precision(prob[:, k], label[:, k], weights) for k in range(prob.shape[1])])
    known = ~np.isnan(aps)
    mean_ap = np.where(known, aps, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    each = np.stack(
        [(decided == label).all(1), binary_nll(logits, label).mean(1), ((prob - label) ** 2).mean(1)], axis=1
    ).astype(np.float64)
    found: NDArray[np.float64] = np.vstack([mean_ap, (weights @ each / weights.sum(1, keepdims=True)).T])
    return found


def compare_multilabel(
    first: str,
    second: str,
    a: tuple[NDArray[np.float32], NDArray[np.float64]],
    b: tuple[NDArray[np.float32], NDArray[np.float64]],
    label: NDArray[Any],
    resamples: int,
    groups: Sequence[str] | None = None,
) -> Comparison:
    """Two models on the same images: paired bootstrap of METRICS, McNemar's test on images whose labels are all right.

    Args:
        a, b: logits [N, K] and thresholds [K] of each.
        label: [N, K] of 0 and 1.
        groups: [N] name of each image's group, where there are groups.
    """
    truth, n = np.asarray(label, bool), len(label)
    models, logits = [], []
    for z, thresholds in (a, b):
        prob = sigmoid(z)
        models.append((prob, prob >= thresholds))
        logits.append(z)
    one, other = bootstrap_metrics(models, logits, truth, resamples, groups=groups)
    at, to = (weighted_metrics(p, d, z, truth, np.ones((1, n))) for (p, d), z in zip(models, logits, strict=True))
    differences = {}
    for row, name in enumerate(METRICS):
        lo, hi = percentile_interval(other[name] - one[name])
        differences[name] = Difference(float(to[row, 0] - at[row, 0]), lo, hi)
    right, others = ((decided == truth).all(1) for _, decided in models)
    only_first, only_second = int((right & ~others).sum()), int((~right & others).sum())
    return Comparison(
        first=first,
        second=second,
        n=n,
        both_right=int((right & others).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~right & ~others).sum()),
        p_value=mcnemar_p_value(only_first, only_second),
        differences=differences,
    )


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval."""
    lo, hi = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lo), float(hi)
