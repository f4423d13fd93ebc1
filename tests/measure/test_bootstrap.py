"""Bootstrap intervals and paired comparisons: against scipy, against theory, and on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from vitlab.measure.bootstrap import bootstrap_intervals, compare_models, mcnemar_p_value
from vitlab.measure.classification import Scores, evaluate_logits, score_images


def some(n: int, sure: float, seed: int) -> tuple[np.ndarray, np.ndarray, Scores]:
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(99).integers(0, 6, n)
    logits = rng.normal(size=(n, 6))
    logits[np.arange(n), label] += sure
    return logits, label, score_images(logits, label)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 3), (1, 9), (40, 12), (0, 7), (5000, 5200)])
def test_mcnemar_is_scipys_exact_binomial_test(a: int, b: int) -> None:
    expected = binomtest(min(a, b), a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar_p_value(a, b) == mcnemar_p_value(b, a) == pytest.approx(expected, rel=1e-6)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="counts are"):
        mcnemar_p_value(-1, 3)


def test_intervals_hold_the_estimate_and_match_the_normal_approximation() -> None:
    logits, label, scores = some(3000, 2.0, 0)
    found = evaluate_logits(logits, label, [str(c) for c in range(6)])
    intervals = bootstrap_intervals(scores, 15, 2000)
    for name in ("top1", "top5", "nll", "brier"):
        lo, hi = intervals[name]
        assert lo < found.metrics()[name] < hi
    error = np.sqrt(found.top1 * (1 - found.top1) / 3000)
    assert intervals["top1"] == pytest.approx((found.top1 - 1.96 * error, found.top1 + 1.96 * error), abs=0.15 * error)
    spread = scores.nll.std() / np.sqrt(3000)
    assert intervals["nll"] == pytest.approx((found.nll - 1.96 * spread, found.nll + 1.96 * spread), abs=0.2 * spread)


def test_each_resample_is_what_evaluating_it_gives() -> None:
    """One resample, so that both ends of the interval are its value."""
    logits, label, scores = some(200, 1.0, 1)
    drawn = np.random.default_rng(5).integers(0, 200, (1, 200))[0]
    expected = evaluate_logits(logits[drawn], label[drawn], [str(c) for c in range(6)], bins=10).metrics()
    for name, (lo, hi) in bootstrap_intervals(scores, 10, 1, seed=5).items():
        assert lo == hi == pytest.approx(expected[name])


def test_intervals_are_the_same_each_time_and_need_a_resample() -> None:
    scores = some(50, 1.0, 2)[2]
    assert bootstrap_intervals(scores, 15, 10) == bootstrap_intervals(scores, 15, 10)
    with pytest.raises(ValueError, match="at least one resample"):
        bootstrap_intervals(scores, 15, 0)


def test_a_better_model_is_told_from_an_equal_one() -> None:
    (_, _, weak), (_, _, strong) = some(1500, 1.0, 3), some(1500, 2.0, 4)
    found = compare_models("weak", "strong", weak, strong, 15, 500)
    assert found.n == found.both_right + found.only_first + found.only_second + found.both_wrong == 1500
    assert found.only_first == int((weak.correct & ~strong.correct).sum())
    assert found.p_value < 1e-6
    top1 = found.differences["top1"]
    assert top1.value == pytest.approx(strong.correct.mean() - weak.correct.mean())
    assert 0 < top1.lo < top1.value < top1.hi
    assert found.differences["nll"].hi < 0
    same = compare_models("a", "b", weak, weak, 15, 100)
    assert same.p_value == 1.0
    assert all((one.value, one.lo, one.hi) == (0, 0, 0) for one in same.differences.values())


def test_pairing_makes_the_interval_narrower_than_that_of_either() -> None:
    """Two models that differ on a small share of the images: the images that both get right or wrong cancel."""
    logits, label, scores = some(800, 1.0, 6)
    other = logits.copy()
    other[:20] = np.roll(other[:20], 1, axis=1)
    found = compare_models("a", "b", scores, score_images(other, label), 15, 500).differences["top1"]
    lo, hi = bootstrap_intervals(scores, 15, 500)["top1"]
    assert found.hi - found.lo < (hi - lo) / 2


def test_different_numbers_of_images_do_not_compare() -> None:
    with pytest.raises(ValueError, match="50 images and b on 60"):
        compare_models("a", "b", some(50, 1, 0)[2], some(60, 1, 0)[2], 15, 10)


def test_groups_are_drawn_and_not_their_images() -> None:
    """One resample is what evaluating the images of the drawn groups gives, each as often as its group was drawn."""
    logits, label, scores = some(200, 1.0, 1)
    group = np.random.default_rng(3).integers(0, 30, 200)
    names = [f"patient {g:02d}" for g in group]
    drawn = np.random.default_rng(5).integers(0, 30, (1, 30))[0]
    rows = np.concatenate([np.flatnonzero(group == g) for g in drawn])
    expected = evaluate_logits(logits[rows], label[rows], [str(c) for c in range(6)], bins=10).metrics()
    for name, (lo, hi) in bootstrap_intervals(scores, 10, 1, seed=5, groups=names).items():
        assert lo == hi == pytest.approx(expected[name])


def test_images_that_come_in_equal_groups_are_as_uncertain_as_the_groups() -> None:
    """Every image ten times over: by image the interval is too narrow by the square root of ten."""
    logits, label, scores = some(150, 1.0, 8)
    many = score_images(np.repeat(logits, 10, axis=0), np.repeat(label, 10))
    groups = [str(i // 10) for i in range(1500)]
    width = {
        name: np.ptp(bootstrap_intervals(one, 15, 2000, groups=own)["top1"])
        for name, one, own in (("once", scores, None), ("grouped", many, groups), ("by image", many, None))
    }
    assert width["grouped"] == pytest.approx(width["once"], rel=0.1)
    assert width["by image"] == pytest.approx(width["once"] / 10**0.5, rel=0.15)
    paired = [
        compare_models(
            "a", "b", many, score_images(np.repeat(logits[::-1], 10, 0), np.repeat(label, 10)), 15, 500, groups=own
        )
        for own in (None, groups)
    ]
    ends = [one.differences["top1"] for one in paired]
    assert ends[1].hi - ends[1].lo > 2 * (ends[0].hi - ends[0].lo)
