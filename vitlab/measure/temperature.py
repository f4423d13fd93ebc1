"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks"): logits divided by one number T.

T is the minimum of the mean negative log-likelihood. In 1/T that is a convex function of one variable, so the minimum
is found by halving an interval on the sign of its slope, exactly and without a step size. Accuracy does not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOWEST, HIGHEST = 1e-2, 1e2  # of 1/T
HALVINGS = 60


@dataclass
class Temperature:
    """The fitted temperature, the images it was fitted on, and metrics of the measured images after scaling."""

    value: float  # logits are divided by it; above 1: the network was overconfident
    fitted_on: str  # validation images, never the measured ones: "val split, 5,000 images"
    ece: float  # of the measured images after scaling, same bins as before
    max_ece: float
    nll: float
    brier: float


def fit_temperature(logits: ArrayLike, label: ArrayLike) -> float:
    """The T > 0 that minimises the mean of -log softmax(logits / T)[label], within [0.01, 100].

    Args:
        logits: [N, C], any float type.
        label: [N] integers in [0, C).

    A set without mistakes has no minimum (more confidence is always better): T is 1 then.

    Raises:
        ValueError: for shapes that do not fit, or no images.
    """
    scores, own = np.asarray(logits, np.float64), np.asarray(label)
    if scores.ndim != 2 or own.shape != scores.shape[:1] or len(own) == 0:
        raise ValueError(f"logits {scores.shape} and label {own.shape} must be [N, C] and [N], N > 0")
    if bool((scores.argmax(axis=1) == own).all()):
        return 1.0
    scores = scores - scores.max(axis=1, keepdims=True)  # softmax is unchanged, and exp does not overflow
    mine = float(scores[np.arange(len(own)), own].mean())
    low, high = np.log(LOWEST), np.log(HIGHEST)  # halved on a log scale: equal relative precision at both ends
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _expected(scores, float(np.exp(middle))) > mine:  # slope of the loss in 1/T: E_p[logit] - own logit
            high = middle
        else:
            low = middle
    return float(np.exp(-(low + high) / 2))


def _expected(scores: NDArray[np.float64], inverse: float) -> float:
    """Mean over images of the logit that softmax(inverse · logits) expects."""
    power = np.exp(inverse * scores)
    return float(((power * scores).sum(axis=1) / power.sum(axis=1)).mean())
