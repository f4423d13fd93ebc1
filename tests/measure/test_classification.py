"""The metrics against the worked numbers of the paper's file, scikit-learn and torchmetrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from sklearn.metrics import precision_recall_fscore_support as scores_by_sklearn
from torchmetrics.functional.classification import multiclass_calibration_error

from vitlab.errors import UserError
from vitlab.measure.classification import (
    Evaluation,
    calibration_error,
    evaluate_logits,
    wilson_interval,
)

CONFIDENCE = [0.95, 0.91, 0.88, 0.77, 0.66, 0.62, 0.55, 0.48, 0.35, 0.22, 0.99, 0.81]
CORRECT = [1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("bins", "expected"), [(10, 0.284167), (15, 0.300833)])
def test_calibration_error_of_the_worked_example(bins: int, expected: float) -> None:
    """Dataset Reinforcement, acceptance check D."""
    ece, largest, table = calibration_error(CONFIDENCE, CORRECT, bins)
    assert ece == pytest.approx(expected, abs=1e-6)
    assert largest == pytest.approx(0.78, abs=1e-12)
    assert len(table) == bins
    assert sum(each.n for each in table) == 12


def test_bins_are_closed_on_the_right() -> None:
    _, _, table = calibration_error([0.0, 0.5, 0.5000001, 1.0], [0, 1, 1, 1], bins=2)
    assert [each.n for each in table] == [2, 2]
    assert (table[0].lo, table[0].hi, table[1].hi) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("bad", [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([float("nan")], [1])])
def test_calibration_refuses(bad: tuple[list[float], list[int]]) -> None:
    with pytest.raises(ValueError, match="confidence"):
        calibration_error(*bad)


@pytest.fixture(scope="module", params=[(400, 12, 0), (257, 3, 1), (60, 2, 2)], ids=["12", "3", "2 classes"])
def random_set(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, Evaluation]:
    n, classes, seed = request.param
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 2
    logits[np.arange(n), label] += 1.5
    return logits, label, evaluate_logits(logits, label, [f"class {c}" for c in range(classes)], bins=15)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


def test_accuracy_and_likelihood_agree_with_sklearn(random_set: tuple[np.ndarray, np.ndarray, Evaluation]) -> None:
    logits, label, found = random_set
    every = np.arange(logits.shape[1])
    assert found.top1 == pytest.approx(accuracy_score(label, logits.argmax(1)), abs=1e-12)
    assert found.balanced == pytest.approx(balanced_accuracy_score(label, logits.argmax(1)), abs=1e-12)
    assert found.nll == pytest.approx(log_loss(label, softmax(logits), labels=every), abs=1e-9)
    assert found.brier == pytest.approx(np.mean(((softmax(logits) - np.eye(len(every))[label]) ** 2).sum(1)), abs=1e-12)
    assert found.top_k == min(5, len(every))
    expected = top_k_accuracy_score(label, logits, k=5, labels=every) if len(every) > 5 else 1.0
    assert found.top5 == pytest.approx(expected, abs=1e-12)


def test_confusion_and_classes_agree_with_sklearn(random_set: tuple[np.ndarray, np.ndarray, Evaluation]) -> None:
    logits, label, found = random_set
    every = np.arange(logits.shape[1])
    guess = logits.argmax(1)
    assert np.array_equal(found.confusion, confusion_matrix(label, guess, labels=every))
    precision, recall, f1, support = scores_by_sklearn(label, guess, labels=every, zero_division=np.nan)
    np.testing.assert_allclose(np.array([s.recall for s in found.per_class], float), recall)
    np.testing.assert_allclose(np.array([s.precision for s in found.per_class], float), precision)
    np.testing.assert_allclose(np.array([s.f1 for s in found.per_class], float), f1)
    assert [s.n for s in found.per_class] == support.tolist()
    off_diagonal = found.confusion - np.diag(np.diag(found.confusion))
    assert [s.confused_with for s in found.per_class] == [f"class {c}" for c in off_diagonal.argmax(1)]


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_calibration_agrees_with_torchmetrics(random_set: tuple[np.ndarray, np.ndarray, Evaluation], bins: int) -> None:
    logits, label, _ = random_set
    found = evaluate_logits(torch.from_numpy(logits), torch.from_numpy(label), [""] * logits.shape[1], bins)
    prob, target = torch.from_numpy(softmax(logits)), torch.from_numpy(label)
    size = logits.shape[1]
    expected = multiclass_calibration_error(prob, target, size, n_bins=bins, norm="l1")
    largest = multiclass_calibration_error(prob, target, size, n_bins=bins, norm="max")
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    assert found.max_ece == pytest.approx(float(largest), abs=1e-6)


def test_chunks_do_not_change_the_result(
    random_set: tuple[np.ndarray, np.ndarray, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, label, found = random_set
    monkeypatch.setattr("vitlab.measure.classification.CHUNK", 7 * logits.shape[1])
    assert evaluate_logits(logits, label, found.classes, bins=15) == found


def test_equal_logits_are_ranked_by_index() -> None:
    found = evaluate_logits(np.zeros((8, 8), np.float32), np.arange(8), [str(c) for c in range(8)])
    assert found.top1 == 1 / 8
    assert found.top5 == 5 / 8


def test_huge_logits_do_not_overflow() -> None:
    found = evaluate_logits(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]), ["a", "b"])
    assert found.nll == pytest.approx(5e3)
    assert found.reliability[-1].n == 2  # a confidence of exactly 1 lies in the last bin
    assert found.ece == pytest.approx(0.5)


def test_a_class_without_images_has_no_recall() -> None:
    found = evaluate_logits(np.eye(3, dtype=np.float32)[[0, 2, 0]], np.array([0, 0, 0]), ["a", "b", "c"])
    assert [s.recall for s in found.per_class] == [2 / 3, None, None]
    assert [s.precision for s in found.per_class] == [1.0, None, 0.0]
    assert found.per_class[0].confused_with == "c"
    assert found.balanced == pytest.approx(2 / 3)


def test_survives_json(random_set: tuple[np.ndarray, np.ndarray, Evaluation]) -> None:
    found = random_set[2]
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("logits", "label", "words"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), r"in \[0, 3\)"),
        (np.zeros((2, 3)), np.array([-1, 0]), r"in \[0, 3\)"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integers"),
        (np.zeros((2, 4)), np.array([0, 1]), r"must be \[N, 3\]"),
        (np.zeros((0, 3)), np.zeros(0, int), "N > 0"),
    ],
)
def test_refuses_what_cannot_be_measured(logits: np.ndarray, label: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate_logits(logits, label, ["a", "b", "c"])


def test_logits_that_are_not_finite_are_a_mistake_in_the_weights() -> None:
    with pytest.raises(UserError, match="2 images are not finite"):
        evaluate_logits(np.array([[0, np.nan, 0], [0, 0, 0], [0, np.inf, 0]]), np.array([0, 1, 2]), ["a", "b", "c"])


@pytest.mark.parametrize(("right", "n"), [(445, 450), (0, 10), (10, 10), (1, 2), (49_000, 50_000)])
def test_wilson_interval_is_his_formula(right: int, n: int) -> None:
    """Wilson 1927: the shares p for which |right/n - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959963984540054
    ends = np.roots([n + z * z, -(2 * right + z * z), right * right / n])
    assert wilson_interval(right, n) == pytest.approx(sorted(ends.real), abs=1e-9)


def test_wilson_refuses_more_than_all() -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        wilson_interval(11, 10)
