"""Folds of a sweep: out-of-fold predictions are pooled, and missing folds are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitlab.measure.classification import evaluate_logits
from vitlab.sweep.folds import fold_table, pool_folds
from vitlab.sweep.table import Job, write_comparison
from vitlab.tasks.base import find_task

SIZES = (10, 30, 20)
"""Images of each fold: unequal, so that the pooled metric is not the mean over folds."""


def run_of(folder: Path, fold: int, lr: str, grouped: bool, keys: range | None = None) -> Job:
    """Files of a finished run: run.json, predictions and markers."""
    rng = np.random.default_rng([fold, int(lr[-1])])
    count = SIZES[fold]
    keys = keys or range(100 * fold, 100 * fold + count)
    label = rng.integers(0, 3, count)
    logits = rng.normal(size=(count, 3)).astype(np.float32)
    logits[np.arange(count), label] += 1 + fold
    home = folder / f"run-{lr}-{fold}"
    (home / "evaluation").mkdir(parents=True)
    more: dict[str, Any] = {"group": np.array([f"p{fold}-{i // 5}" for i in range(count)])} if grouped else {}
    np.savez(
        home / "evaluation" / "train.npz", logits=logits, label=label, key=np.array([str(k) for k in keys]), **more
    )
    (home / "evaluation" / "train.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    (home / "evaluation" / "done.json").write_text(json.dumps({"result": "train", "metrics": {}}))
    tree: dict[str, Any] = {"dataset": {"folds": 3, "fold": fold}, "evaluation": {"bins": 10, "resamples": 300}}
    tree["task"] = {"name": "classification"}
    record = {
        "format": 1,
        "method": "supervised",
        "prefix": "x",
        "identity": {},
        "tree": tree,
        "created": "2026-01-01T00:00:00+00:00",
    }
    (home / "run.json").write_text(json.dumps(record))
    rows = [{"name": "train", "metrics": {"top1": float((logits.argmax(1) == label).mean())}, "cost": {"latency": []}}]
    (home / "report.json").write_text(json.dumps({"primary": "train", "rows": rows}))
    return Job(fold + 1, [], {"recipe.lr": lr, "dataset.fold": str(fold)}, home, "finished")


def finished(jobs: list[Job]) -> list[tuple[dict[str, str], Path]]:
    return [(job.values, job.run) for job in jobs if job.state == "finished"]


@pytest.mark.parametrize("grouped", [False, True])
def test_pooled_numbers_are_those_of_all_images_together(tmp_path: Path, grouped: bool) -> None:
    jobs = [run_of(tmp_path, fold, "0.1", grouped) for fold in (2, 0, 1)]
    (pooled,) = pool_folds(finished(jobs))
    parts = [np.load(job.run / "evaluation" / "train.npz") for job in jobs]
    names = ["a", "b", "c"]
    together = [np.concatenate([one[name] for one in parts]) for name in ("logits", "label")]
    expected = evaluate_logits(together[0], together[1], names, 10).metrics()
    own = [evaluate_logits(one["logits"], one["label"], names, 10).metrics() for one in parts]
    assert pooled.metrics == pytest.approx(expected)
    assert pooled.mean is not None and pooled.spread is not None and pooled.intervals is not None
    assert pooled.mean["nll"] == pytest.approx(np.mean([one["nll"] for one in own]))
    assert pooled.spread["nll"] == pytest.approx(np.std([one["nll"] for one in own], ddof=1))
    assert pooled.mean["nll"] != pytest.approx(expected["nll"])
    assert pooled.intervals["top1"][0] < expected["top1"] < pooled.intervals["top1"][1]
    assert (pooled.images, pooled.groups) == (60, 12 if grouped else None)
    rows, lines = fold_table([pooled], find_task("classification"))
    assert rows[0] == ["recipe.lr", "Metric", "Folds", "Images", "Pooled", "95 %", "Mean ± sd over folds"]
    assert rows[1][:5] == ["0.1", "Top-1 %", "3", "60", f"{100 * expected['top1']:.2f}"]
    assert ("12 groups" in lines[0]) == grouped


def test_the_comparison_has_the_pooled_table_and_names_the_folds_that_are_missing(tmp_path: Path) -> None:
    jobs = [run_of(tmp_path, fold, lr, False) for lr in ("0.1", "0.2") for fold in range(3)]
    jobs[4].state = "failed"
    text = write_comparison(tmp_path, jobs, "python -m vitlab -m ...")
    page = (tmp_path / "comparison.md").read_text()
    for one in (text, page):
        assert "out-of-fold predictions pooled" in one
        assert "recipe.lr=0.2: nothing is pooled, fold 1 of 3 is missing." in one
    assert "| 0.1 | Top-1 % | 3 | 60 |" in page
    kept = json.loads((tmp_path / "comparison.json").read_text())["folds"]
    assert [one["reason"] for one in kept] == ["", "fold 1 of 3 is missing"] and kept[0]["images"] == 60


def test_runs_that_share_test_images_are_not_pooled(tmp_path: Path) -> None:
    jobs = [run_of(tmp_path, fold, "0.1", False, range(SIZES[fold])) for fold in range(3)]
    (pooled,) = pool_folds(finished(jobs))
    assert pooled.metrics is None and "share test images" in pooled.reason
    assert fold_table([pooled], find_task("classification"))[1] == [
        f"recipe.lr=0.1: nothing is pooled, {pooled.reason}."
    ]


def test_predictions_of_an_earlier_version_are_not_pooled(tmp_path: Path) -> None:
    jobs = [run_of(tmp_path, fold, "0.1", False) for fold in range(3)]
    path = jobs[1].run / "evaluation" / "train.npz"
    kept = dict(np.load(path))
    del kept["key"]
    np.savez(path, **kept)
    (pooled,) = pool_folds(finished(jobs))
    assert pooled.metrics is None and f"mode=evaluate run={jobs[1].run}" in pooled.reason


def test_a_sweep_without_folds_has_none(tmp_path: Path) -> None:
    job = run_of(tmp_path, 0, "0.1", False)
    del job.values["dataset.fold"]
    assert pool_folds(finished([job])) == []
