"""Uncertainty of a metric, or of its difference between two models: bootstrap and McNemar's test.

The bootstrap (Efron 1979, percentile interval) resamples the measured images with replacement; two models are compared
on the same resamples (paired), so that images which are hard for both do not add to the variance. Where images come in
groups (patients), they are not independent, and groups are drawn instead (cluster bootstrap; Davison and Hinkley 1997,
section 3.8): all images of a drawn group count as often as it was drawn, and a metric is their weighted mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.measure.classification import Scores, bin_of

LEVEL = 0.95
METRICS = ("top1", "top5", "nll", "brier", "ece")
CHUNK = 4_000_000  # weights in memory at a time (32 MB)

COMPARED = ("top1", "nll", "brier", "ece")
"""Metrics whose difference between two models is stated."""


@dataclass
class Difference:
    """The second model minus the first, on the same images."""

    value: float
    lo: float  # 95 % interval of the paired bootstrap
    hi: float


@dataclass
class Comparison:
    """Two models on the same images."""

    first: str
    second: str
    n: int
    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float  # McNemar's exact test: the chance of so uneven a split if both were equally accurate
    differences: dict[str, Difference]  # top1 (share), nll, brier, ece: second minus first


def bootstrap_intervals(
    scores: Scores, bins: int, resamples: int, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of ``top1``, ``top5``, ``nll``, ``brier`` and ``ece``.

    The expected calibration error of a finite sample is biased upwards, and that of a resample once more: its interval
    shows how much it varies, not where the error of infinitely many images lies.

    Args:
        scores: of N images.
        bins: of the expected calibration error.
        resamples: draws of N images, or of as many groups as there are.
        groups: [N] name of each image's group; None: every image is drawn alone.

    Raises:
        ValueError: for no resamples.
    """
    (drawn,) = _resampled([scores], bins, resamples, seed, groups)
    return {name: _interval(values) for name, values in drawn.items()}


def compare_models(
    first: str,
    second: str,
    a: Scores,
    b: Scores,
    bins: int,
    resamples: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Comparison:
    """Two models measured on the same images in the same order.

    With ``groups`` [N] the intervals are of the cluster bootstrap. McNemar's test still assumes independent images, so
    its p-value is then too small.

    Raises:
        ValueError: the two have different numbers of images.
    """
    n = len(a.correct)
    if len(b.correct) != n:
        raise ValueError(f"{first} was measured on {n} images and {second} on {len(b.correct)}")
    one, other = _resampled([a, b], bins, resamples, seed, groups)
    at, to = (_metrics(*_terms(scores, bins), np.ones((1, n))) for scores in (a, b))
    differences = {
        name: Difference(float(to[row, 0] - at[row, 0]), *_interval(other[name] - one[name]))
        for row, name in enumerate(METRICS)
        if name in COMPARED
    }
    only_first = int((a.correct & ~b.correct).sum())
    only_second = int((~a.correct & b.correct).sum())
    return Comparison(
        first=first,
        second=second,
        n=n,
        both_right=int((a.correct & b.correct).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~a.correct & ~b.correct).sum()),
        p_value=mcnemar_p_value(only_first, only_second),
        differences=differences,
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947): the smaller of the two counts as a binomial of share 1/2.

    Args:
        only_first: images that only the first model gets right.
        only_second: images that only the second does.

    Raises:
        ValueError: for a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts are {only_first} and {only_second}")
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest  # a second of import, paid where two models are compared

    return float(binomtest(min(only_first, only_second), only_first + only_second, 0.5).pvalue)


def resample_weights(
    images: int, resamples: int, seed: int, groups: Sequence[str] | None = None
) -> Iterator[NDArray[np.float64]]:
    """How often each image counts in each resample, [rows, N], some resamples at a time.

    Args:
        groups: [N]; groups are drawn, as many as there are, instead of images.

    Raises:
        ValueError: for no resamples.
    """
    if resamples < 1:
        raise ValueError(f"a bootstrap needs at least one resample, not {resamples}")
    member = None if groups is None else np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    n = images if member is None else int(member.max()) + 1  # what is drawn: images, or groups
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # Row r counts in its own range [n r, n (r + 1)), so that one bincount serves all rows.
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        yield weights if member is None else weights[:, member]


def _resampled(
    models: Sequence[Scores], bins: int, resamples: int, seed: int, groups: Sequence[str] | None = None
) -> list[dict[str, NDArray[np.float64]]]:
    """Each metric of each resample, [R]; the resamples are the same for all models."""
    terms = [_terms(scores, bins) for scores in models]
    found: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for weights in resample_weights(len(models[0].correct), resamples, seed, groups):
        for values, (means, gaps) in zip(found, terms, strict=True):
            values.append(_metrics(means, gaps, weights))
    return [dict(zip(METRICS, np.concatenate(values, axis=1), strict=True)) for values in found]


def _terms(scores: Scores, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each image's terms of the means [N, 4], and of the gap between accuracy and confidence of its bin [N, bins].

    All metrics are then weighted sums of these terms, which makes a resample one matrix product.
    """
    means = np.stack([scores.correct, scores.in_top, scores.nll, scores.brier], axis=1).astype(np.float64)
    gaps = np.zeros((len(means), bins))
    gaps[np.arange(len(means)), bin_of(scores.confidence, bins)] = scores.correct - scores.confidence
    return means, gaps


def _metrics(
    means: NDArray[np.float64], gaps: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """METRICS [5, R] of images counted ``weights`` [R, N] times."""
    total = weights.sum(axis=1)
    out: NDArray[np.float64] = np.vstack([(weights @ means).T, np.abs(weights @ gaps).sum(axis=1)]) / total
    return out


def _interval(values: ArrayLike) -> tuple[float, float]:
    lo, hi = np.quantile(np.asarray(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lo), float(hi)
