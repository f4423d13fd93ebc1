"""The numbers of task=multilabel against scikit-learn, against brute force, and against themselves in resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vitlab.config import EvaluationConfig
from vitlab.measure import multilabel as ml
from vitlab.tasks.base import Answers, Validation
from vitlab.tasks.parts.losses import binary_cross_entropy
from vitlab.tasks.parts.multilabel_metrics import evaluate, subset_accuracy

CLASSES = ["a", "b", "c", "d"]


def answers(seed: int, images: int = 150) -> Answers:
    rng = np.random.default_rng(seed)
    label = (rng.random((images, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(np.float32)
    logits = (rng.normal(size=(images, 4)) + 2 * label - 1).astype(np.float32)
    return Answers(logits, label, np.arange(images))


@pytest.fixture(scope="module")
def found() -> ml.MultilabelEvaluation:
    return evaluate(
        answers(0), Validation(answers(1), "val split, 150 images"), CLASSES, EvaluationConfig(resamples=200)
    )


def test_rankings_are_scikit_learns(found: ml.MultilabelEvaluation) -> None:
    test = answers(0)
    assert found.map == pytest.approx(sk.average_precision_score(test.label, test.logits), rel=1e-5)
    assert found.auroc == pytest.approx(sk.roc_auc_score(test.label, test.logits), rel=1e-5)
    for k, one in enumerate(found.labels):
        assert one.ap == pytest.approx(sk.average_precision_score(test.label[:, k], test.logits[:, k]), rel=1e-5)


def test_decisions_are_scikit_learns(found: ml.MultilabelEvaluation) -> None:
    test = answers(0)
    decided = ml.sigmoid(test.logits) >= found.thresholds
    assert found.f1 == pytest.approx(sk.f1_score(test.label, decided, average="macro"), rel=1e-5)
    assert found.micro_f1 == pytest.approx(sk.f1_score(test.label, decided, average="micro"), rel=1e-5)
    assert found.subset_accuracy == pytest.approx(sk.accuracy_score(test.label, decided))
    assert found.subset_accuracy == pytest.approx(subset_accuracy(decided, test.label.astype(np.int64)))
    precision, recall, _, _ = sk.precision_recall_fscore_support(test.label, decided)
    assert [one.precision for one in found.labels] == pytest.approx(precision.tolist(), rel=1e-5)
    assert [one.recall for one in found.labels] == pytest.approx(recall.tolist(), rel=1e-5)


def test_calibration_is_by_label(found: ml.MultilabelEvaluation) -> None:
    """Against a count of its own: bins of the probability, the share that has the label."""
    test = answers(0)
    prob = ml.sigmoid(test.logits)
    for k, one in enumerate(found.labels):
        place = np.minimum((prob[:, k] * 15).astype(int), 14)
        gaps = [
            abs(test.label[place == b, k].mean() - prob[place == b, k].mean()) * (place == b).mean()
            for b in set(place.tolist())
        ]
        assert one.ece == pytest.approx(sum(gaps), abs=1e-6)
        assert one.brier == pytest.approx(sk.brier_score_loss(test.label[:, k], prob[:, k]))
    assert found.nll == pytest.approx(
        np.mean([sk.log_loss(test.label[:, k], prob[:, k], labels=[0, 1]) for k in range(4)]), rel=1e-6
    )


def test_thresholds_come_from_the_validation_images_alone() -> None:
    val = answers(1)
    spec = EvaluationConfig(resamples=0)
    chosen = [
        evaluate(answers(seed), Validation(val, "val"), CLASSES, spec).thresholds for seed in (0, 2)
    ]  # other test images
    assert chosen[0] == chosen[1] == ml.choose_thresholds(ml.sigmoid(val.logits), val.label).tolist()
    none = evaluate(answers(0), Validation(missing="there are none"), CLASSES, spec)
    assert none.thresholds == [0.5] * 4 and none.no_thresholds == "there are none"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
def test_no_other_threshold_gives_a_larger_f1(rows: list[tuple[int, bool]]) -> None:
    prob = np.array([[value / 6] for value, _ in rows])
    label = np.array([[own] for _, own in rows])
    (chosen,) = ml.choose_thresholds(prob, label)
    if not label.any():
        assert np.isnan(chosen)
        return
    best = max(sk.f1_score(label[:, 0], prob[:, 0] >= t, zero_division=0.0) for t in np.arange(-0.01, 1.1, 1 / 12))
    assert sk.f1_score(label[:, 0], prob[:, 0] >= chosen) == pytest.approx(best)


def test_a_label_without_validation_images_keeps_one_half_and_is_named() -> None:
    val = answers(1)
    val.label[:, 3] = 0
    found = evaluate(answers(0), Validation(val, "val"), CLASSES, EvaluationConfig(resamples=0))
    assert found.labels[3].threshold == 0.5 and found.default_thresholds == ["d"]


def test_a_label_without_test_images_is_left_out_of_means() -> None:
    test = answers(0)
    test.label[:, 3] = 0
    found = evaluate(test, None, CLASSES, EvaluationConfig(resamples=20))
    assert found.labels[3].ap is None and found.labels[3].auroc is None
    assert found.map == pytest.approx(sk.average_precision_score(test.label[:, :3], test.logits[:, :3]), rel=1e-5)
    assert found.intervals["map"][0] < found.map < found.intervals["map"][1]


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_average_precision_is_that_of_repeated_images(ties: bool) -> None:
    rng = np.random.default_rng(0)
    prob, label = rng.random(40), rng.random(40) < 0.4
    if ties:
        prob = prob.round(1)
    weights = rng.integers(0, 3, (5, 40)).astype(float)
    found = ml.weighted_average_precision(prob, label, weights)
    for value, counts in zip(found, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(40), counts)
        assert value == pytest.approx(sk.average_precision_score(label[rows], prob[rows]))


def test_a_bootstrap_holds_what_was_measured_and_draws_groups_together() -> None:
    test = answers(0)
    prob = ml.sigmoid(test.logits)
    models = [(prob, prob >= 0.5)]
    (alone,) = ml.bootstrap_metrics(models, [test.logits], test.label, 300)
    groups = [str(i // 15) for i in range(150)]
    (together,) = ml.bootstrap_metrics(models, [test.logits], test.label, 300, groups=groups)
    at = ml.weighted_metrics(*models[0], test.logits, test.label.astype(bool), np.ones((1, 150)))[:, 0]
    for row, name in enumerate(ml.METRICS):
        lo, hi = ml.percentile_interval(alone[name])
        assert lo < at[row] < hi
    assert not np.array_equal(alone["map"], together["map"])


def test_a_model_compared_with_itself_differs_in_nothing() -> None:
    test = answers(0)
    one = (test.logits, np.full(4, 0.5))
    same = ml.compare_multilabel("a", "b", one, one, test.label, 50)
    assert same.p_value == 1.0 and {d.value for d in same.differences.values()} == {0.0}
    worse = ml.compare_multilabel("a", "b", one, (-test.logits, np.full(4, 0.5)), test.label, 50)
    assert worse.differences["map"].hi < 0 and worse.only_first > worse.only_second and worse.p_value < 1e-6


def test_json_brings_an_evaluation_back(found: ml.MultilabelEvaluation) -> None:
    assert ml.MultilabelEvaluation.from_dict(found.to_dict()) == found


def test_positive_weights_and_smoothing_are_in_the_loss() -> None:
    logits, label = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]])
    s = torch.sigmoid(logits)
    plain = -(label * s.log() + (1 - label) * (1 - s).log()).mean()
    torch.testing.assert_close(binary_cross_entropy(logits, label)["loss"], plain)
    weighted = -(3 * label * s.log() + (1 - label) * (1 - s).log()).mean()
    weight = torch.tensor([3.0, 3.0])
    torch.testing.assert_close(binary_cross_entropy(logits, label, pos_weight=weight)["loss"], weighted)
    soft = torch.tensor([[0.9, 0.1]])
    smoothed = -(soft * s.log() + (1 - soft) * (1 - s).log()).mean()
    torch.testing.assert_close(binary_cross_entropy(logits, label, smoothing=0.2)["loss"], smoothed)
