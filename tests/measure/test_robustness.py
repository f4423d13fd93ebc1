"""Cells, means and mCE from answers; worked by hand where a hand can."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vitlab.measure.classification import evaluate_logits
from vitlab.measure.robustness import ALEXNET, Cell, Robustness, Shifted, ShiftedSet, Tally, nearest_accepted
from vitlab.measure.robustness_names import CORRUPTIONS, FAMILIES, SEVERITIES


def made(name: str, severity: int, top1: float) -> Cell:
    return Cell(name, severity, 10, top1, 1.0, 2 * severity, 0.5, 0.1 * severity, 0.3, 0.8, [[15, 0.1, 0.3]])


def state(shares: dict[str, float], **more: object) -> Robustness:
    cells = [made(name, level, share) for name, share in shares.items() for level in SEVERITIES]
    return Robustness("m", "i", "view", 0, 15, 10, clean=made("none", 0, 0.9), cells=cells, **more)  # type: ignore[arg-type]


def test_a_tally_in_parts_is_the_whole() -> None:
    rng = np.random.default_rng(0)
    logits, label, slot = rng.normal(size=(60, 7)), rng.integers(0, 7, 60), rng.integers(0, 2, 60)
    tally = Tally()
    for start in range(0, 60, 13):
        part = slice(start, start + 13)
        tally.add(logits[part], label[part], slot[part])
    for number in (0, 1):
        cell = tally.cell("fog", 3, 12, number)
        full = evaluate_logits(logits[slot == number], label[slot == number], list("abcdefg"), 12)
        for name in ("n", "top1", "top5", "nll", "brier", "ece", "max_ece", "mean_confidence"):
            assert getattr(cell, name) == pytest.approx(getattr(full, name), abs=1e-12), name
        np.testing.assert_allclose(cell.calibrations, full.calibrations)


def test_several_right_answers() -> None:
    """Right if and only if the largest logit is one of them; else the likeliest of them is the label."""
    logits = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    right = np.array([[False, True, True], [True, True, False]])
    label = nearest_accepted(logits, right)
    assert label.tolist() == [2, 1]
    tally = Tally()
    tally.add(logits, label)
    cell = tally.cell("objectnet")
    assert cell.top1 == 0.5
    by_hand = np.mean([-np.log(np.exp(2.0) / np.exp(logits[0]).sum()), -np.log(np.exp(5.0) / np.exp(logits[1]).sum())])
    assert cell.nll == pytest.approx(by_hand)


def test_means_over_corruptions_and_severities() -> None:
    found = state({"fog": 0.6, "contrast": 0.2})
    assert found.names == ["fog", "contrast"] and found.severities == [1, 2, 3, 4, 5] and found.n == 10
    assert found.errors == {"fog": pytest.approx(0.4), "contrast": pytest.approx(0.8)}
    assert found.mean_error == pytest.approx(0.6)
    assert found.mean("nll", severity=4) == 8 and found.mean("ece", name="fog") == pytest.approx(0.3)
    assert found.kept == pytest.approx(0.4 / 0.9)
    assert found.family("weather") == pytest.approx(0.6) and found.family("noise") is None
    with pytest.raises(ValueError, match="nothing was measured"):
        found.mean("top1", name="snow")


def test_mce_is_a_share_of_alexnets_errors_on_imagenet_and_the_whole_benchmark_alone() -> None:
    assert set(ALEXNET) == set(CORRUPTIONS) and sum(map(len, FAMILIES.values())) == 15
    as_good = {name: 1 - error for name, error in ALEXNET.items()}
    assert state(as_good, alexnet=True).mce == pytest.approx(1.0)
    half = {name: 1 - error / 2 for name, error in ALEXNET.items()}
    assert state(half, alexnet=True).mce == pytest.approx(0.5)
    assert state(as_good).mce is None, "other images"
    part = state(as_good, alexnet=True)
    assert replace(part, cells=part.cells[1:]).mce is None, "a cell is missing"
    assert np.mean(list(ALEXNET.values())) == pytest.approx(0.79, abs=0.01)


def test_the_average_over_sets_counts_imagenet_c_once_and_version_two_once() -> None:
    def one(name: str, top1: float) -> ShiftedSet:
        return ShiftedSet(name, name, "i", 10, 4, 0, made(name, 0, top1), made(name, 0, 1.0))

    found = Shifted("m", "view", 15, [one("val", 1.0), one("v2", 0.6), one("v2_top", 0.9), one("a", 0.2)])
    assert found.average == pytest.approx(0.4)
    found.corrupted = state({"fog": 0.7}, published=True)
    assert found.average == pytest.approx(0.5)
    assert Shifted.from_dict(json.loads(json.dumps(found.to_dict()))) == found
