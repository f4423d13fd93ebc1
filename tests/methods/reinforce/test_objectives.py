"""The worked numbers of the paper's losses, through what the method minimises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vitlab.compose.load import load
from vitlab.data.views import ReinforcedViews
from vitlab.distill.sparse import SparseTarget
from vitlab.methods.reinforce.method import Reinforce
from vitlab.methods.reinforce.objectives import distilled, reinforced
from vitlab.stage import Context
from vitlab.training.label_views import STORE

LOGITS = torch.tensor([[0.5, -0.25, 1.5, 0, 0.25, -1], [-0.5, 0, 0.75, 0.1, -0.2, 2]])
TARGET = SparseTarget(
    torch.tensor([[0.05, 0.2, 0.7], [0.01, 0.03, 0.9]]), torch.tensor([[4, 0, 2], [1, 3, 5]]), classes=6
)
LABEL = torch.tensor([2, 5])
MEMBERS = torch.tensor([[2, 1, 0, -1, 0.5, -0.5], [1, 3, -2, 0, 0, 1]])


@pytest.mark.parametrize(
    ("densify", "compat", "wanted"),
    [("smooth", "vitlab", 0.236466), ("zeros", "official", 0.370261), ("zeros", "vitlab", 0.387882)],
)
def test_reinforced(densify: str, compat: str, wanted: float) -> None:
    found = reinforced(LOGITS, LABEL, TARGET, densify=densify, compat=compat)
    assert found["loss"].item() == pytest.approx(wanted, abs=1e-6)
    assert found["teacher_accuracy"].item() == 1  # the released records are in no order


def test_a_plain_view_beside_a_stored_one() -> None:
    prob, index = TARGET.prob.clone(), TARGET.index.clone()
    prob[1], index[1] = torch.tensor([1.0, 0, 0]), torch.tensor([5, 0, 1])
    for compat in ("vitlab", "official"):
        found = reinforced(LOGITS, LABEL, SparseTarget(prob, index, 6), compat=compat)
        assert found["loss"].item() == pytest.approx(0.378863, abs=1e-6)


@pytest.mark.parametrize(("temperature", "wanted"), [(1.0, 0.864022), (2.0, 1.037585)])
def test_distilled(temperature: float, wanted: float) -> None:
    teacher = (MEMBERS / temperature).softmax(1).mean(0, keepdim=True)
    found = distilled(LOGITS[:1], LABEL[:1], teacher, temperature=temperature)
    assert found["loss"].item() == pytest.approx(wanted, abs=1e-6)
    both = distilled(LOGITS[:1], LABEL[:1], teacher, temperature=temperature, lambda_kd=0.5, lambda_cls=2.0)
    hard = torch.nn.functional.cross_entropy(LOGITS[:1], LABEL[:1])
    assert both["loss"].item() == pytest.approx(0.5 * wanted + 2 * hard.item(), abs=1e-5)
    smooth = distilled(LOGITS[:1], LABEL[:1], teacher, temperature=temperature, lambda_cls=1.0, smoothing=0.1)
    spread = 0.9 * hard - 0.1 * LOGITS[:1].log_softmax(1).mean()  # of six classes each gets a sixth of the tenth
    assert smooth["loss"].item() == pytest.approx(wanted + spread.item(), abs=1e-5)


def test_without_a_target_there_is_nothing_to_learn() -> None:
    for objective in (reinforced, distilled):
        with pytest.raises(ValueError):
            objective(LOGITS, LABEL, None)


def test_the_student_is_trained_on_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored views but for a share, in turn, and no mixing beside them."""
    words = ["method.p=0.75", "method.sampling=cycle", "method.backend=tensor", "method.densify=zeros"]
    words += ["recipe.augmentation.mixup=0.2", "recipe.augmentation.cutmix=1.0"]
    config = load(["method=reinforce", "dataset=digits", *words]).config
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("vitlab.training.train.train", lambda *given, **_: calls.append(given))
    Reinforce(config).train(cast(Context, SimpleNamespace(artifact=Path, is_main=False)))
    ((_, _, recipe, objective, views),) = calls
    assert views == ReinforcedViews((Path("reinforce") / STORE,), in_turn=True, plain_share=0.25, backend="tensor")
    assert (recipe.augmentation.mixup, recipe.augmentation.cutmix) == (0, 0)
    assert objective.keywords == {"densify": "zeros", "compat": "vitlab"}
