"""The seam: tasks are found by name, cost no torch to import, and their metrics are torchmetrics'."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from vitlab.config import TaskConfig
from vitlab.errors import UserError
from vitlab.measure.classification import evaluate_logits
from vitlab.tasks.base import Task, find_task, task_names

CONF = Path(__file__).parents[2] / "conf" / "task"


def logits_of(seed: int = 0, images: int = 203, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (images,), generator=made)
    logits = torch.randn(images, classes, generator=made)
    logits[torch.arange(images), label] += 1.0
    return logits, label


def test_every_task_has_a_module_and_a_file_of_values() -> None:
    assert task_names() == sorted(path.stem for path in CONF.glob("*.yaml"))
    for name in task_names():
        task = find_task(name)
        assert isinstance(task, Task) and task.name == name
        assert task.headline.key in task.validated and task.headline.key in {one.key for one in task.metrics}
        for kind in ("comparisons", "calibration", "mistakes"):
            assert {(task.templates / f"{kind}.{form}.j2").is_file() for form in ("md", "html")} == {True}


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"There is no task 'multilable'.*Did you mean multilabel"):
        find_task(TaskConfig(name="multilable"))


def test_a_task_is_imported_without_torch() -> None:
    code = (
        "import sys\nfrom vitlab.tasks.base import find_task, task_names\n"
        "for name in task_names(): find_task(name)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_validation_metrics_are_exact_whatever_the_batches() -> None:
    """Float64 sums: the mean over all images, equal to torchmetrics' and torch's own numbers."""
    logits, label = logits_of()
    found = []
    for size in (203, 50, 1):
        metrics = find_task("classification").validation_metrics(7)
        for part in range(0, 203, size):
            metrics.update(logits[part : part + size], label[part : part + size])
        found.append({name: float(value) for name, value in metrics.compute().items()})
    right = int((logits.argmax(1) == label).sum())
    assert [one["top1"] for one in found] == [right / 203] * 3
    expected = float(torch.nn.functional.cross_entropy(logits.double(), label))
    assert [one["nll"] for one in found] == pytest.approx([expected] * 3, rel=1e-6)
    assert found[0]["top1"] == pytest.approx(float(multiclass_accuracy(logits, label, 7, average="micro")))


def test_mean_average_precision_of_validation_is_that_of_all_images_together() -> None:
    from sklearn.metrics import average_precision_score

    made = np.random.default_rng(0)
    label = made.integers(0, 2, (90, 4)).astype(np.float32)
    logits = (made.normal(size=(90, 4)) + label).astype(np.float32)
    metrics = find_task("multilabel").validation_metrics(4)
    for part in range(0, 90, 16):
        metrics.update(torch.from_numpy(logits[part : part + 16]), torch.from_numpy(label[part : part + 16]))
    found = metrics.compute()
    assert float(found["map"]) == pytest.approx(average_precision_score(label, logits), rel=1e-5)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert float(found["nll"]) == pytest.approx(float(loss(torch.from_numpy(logits), torch.from_numpy(label))))


def test_the_evaluation_of_classes_agrees_with_torchmetrics() -> None:
    """Ours is float64; torchmetrics' bins are open on the other side, where no confidence lies."""
    logits, label = logits_of()
    found = evaluate_logits(logits, label.numpy(), [str(c) for c in range(7)], bins=15)
    assert found.top1 == pytest.approx(float(multiclass_accuracy(logits, label, 7, average="micro")))
    assert found.balanced == pytest.approx(float(multiclass_accuracy(logits, label, 7, average="macro")))
    assert found.top5 == pytest.approx(float(multiclass_accuracy(logits, label, 7, top_k=5, average="micro")))
    prob = logits.double().softmax(1)
    assert found.ece == pytest.approx(float(multiclass_calibration_error(prob, label, 7, 15, "l1")), abs=1e-6)
    assert found.max_ece == pytest.approx(float(multiclass_calibration_error(prob, label, 7, 15, "max")), abs=1e-6)
