"""Temperature scaling: the minimum is the minimum, accuracy stays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from vitlab.measure.classification import evaluate_logits
from vitlab.measure.temperature import fit_temperature


def overconfident(n: int = 4000, size: int = 7, factor: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``factor`` times those from which the labels were drawn."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(scale=1.5, size=(n, size))
    prob = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    label = (prob.cumsum(1) < rng.random((n, 1))).sum(1)
    return factor * honest, label


def loss(logits: np.ndarray, label: np.ndarray, temperature: float) -> float:
    scaled = logits / temperature
    prob = np.exp(scaled - scaled.max(1, keepdims=True))
    return float(log_loss(label, prob / prob.sum(1, keepdims=True), labels=range(logits.shape[1])))


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_is_scipys_minimum_and_finds_the_factor(factor: float) -> None:
    logits, label = overconfident(factor=factor)
    found = fit_temperature(logits, label)
    best = minimize_scalar(lambda log: loss(logits, label, float(np.exp(log))), bounds=(-4, 4), method="bounded")
    assert found == pytest.approx(float(np.exp(best.x)), rel=1e-3)
    assert loss(logits, label, found) <= best.fun + 1e-9
    assert found == pytest.approx(factor, rel=0.1)


def test_scaling_mends_calibration_and_keeps_accuracy() -> None:
    logits, label = overconfident()
    names = [str(c) for c in range(7)]
    before = evaluate_logits(logits, label, names)
    after = evaluate_logits(logits / fit_temperature(logits, label), label, names)
    assert (after.top1, after.top5) == (before.top1, before.top5)
    assert after.ece < before.ece / 4
    assert after.nll < before.nll


def test_a_set_without_mistakes_changes_nothing() -> None:
    assert fit_temperature(np.eye(3) * 2, np.arange(3)) == 1.0


def test_only_mistakes_flatten_to_the_bound() -> None:
    assert fit_temperature(np.eye(3) * 2, np.array([1, 2, 0])) == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "label"), [(np.zeros((0, 3)), np.zeros(0, int)), (np.zeros((2, 3)), np.zeros(3, int))]
)
def test_refuses_what_does_not_fit(logits: np.ndarray, label: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        fit_temperature(logits, label)
