"""The learning-rate schedule against the worked numbers of both papers' specifications."""

from __future__ import annotations

import pytest

from vitlab.config import RecipeConfig, to_steps
from vitlab.errors import UserError
from vitlab.training.schedule import Schedule


def test_tinyvit_worked_example() -> None:
    """TinyViT: T=1000, Tw=100, lr 2e-3, warm-up from 4e-6, minimum 4e-5."""
    schedule = Schedule("cosine", 2e-3, total=1000, warmup=100, warmup_lr=4e-6, min_lr=4e-5)
    expected = {0: 4e-6, 50: 1.002e-3, 99: 1.98004e-3, 100: 1.95203539e-3, 500: 1.02e-3, 1000: 4e-5}
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-8)
    assert schedule(5000) == schedule(1000)


def test_the_official_rate_is_one_step_behind() -> None:
    """TinyViT, specification 6.2: the first two optimiser steps use the warm-up's start; ours is one step ahead."""
    recipe = {"duration": "10ep", "batch_size": 8, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.0}
    rates = {"warmup": "1ep", "warmup_lr": 4e-6, "min_lr": 4e-5}
    ours = Schedule.from_recipe(RecipeConfig(**recipe, **rates), 100)  # type: ignore[arg-type]
    official = Schedule.from_recipe(RecipeConfig(**recipe, **rates, schedule_compat="official"), 100)  # type: ignore[arg-type]
    assert official(0) == official(1) == ours(0) == 4e-6 < ours(1)
    assert [official(step) for step in range(1, 1000)] == [ours(step) for step in range(999)]


def test_reinforcement_worked_example() -> None:
    """Dataset Reinforcement: W = 6255 steps of warm-up of S = 187670, peak 0.4; the first step is the smallest."""
    schedule = Schedule("cosine_after", 0.4, total=187670, warmup=6255)
    expected = {
        0: 0.000063949, 1: 0.000127898, 100: 0.006458833, 6254: 0.4, 50000: 0.345303445, 93835: 0.210823131,
        150000: 0.041064489,
    }  # fmt: skip
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, abs=5e-10)
    assert schedule(187669) == schedule(187800) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "step", "rate"),
    [("linear", 0, 1.0), ("linear", 50, 0.55), ("linear", 100, 0.1), ("constant", 77, 1.0)],
)
def test_other_shapes(kind: str, step: int, rate: float) -> None:
    assert Schedule(kind, 1.0, total=100, min_lr=0.1)(step) == pytest.approx(rate)


def test_step_schedule_multiplies_at_each_milestone() -> None:
    schedule = Schedule("step", 1.0, total=100, decay_at=(30, 60), decay_rate=0.1)
    assert [schedule(step) for step in (29, 30, 59, 60)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def recipe(**changes: object) -> RecipeConfig:
    values = {"duration": "10ep", "batch_size": 8, "optimizer": "adamw", "lr": 1.0, "weight_decay": 0.0}
    return RecipeConfig(**(values | changes))  # type: ignore[arg-type]


def test_durations_become_steps() -> None:
    schedule = Schedule.from_recipe(recipe(warmup="10%", decay_at=["50%", "8ep"]), steps_per_epoch=7)
    assert (schedule.total, schedule.warmup, schedule.decay_at) == (70, 7, (35, 56))
    assert to_steps("1.5ep", 10) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": "90"}, "recipe.duration"),
        ({"warmup": "20ep"}, "the whole training"),
        ({"schedule": "cosin"}, "recipe.schedule=cosin"),
        ({"duration": "10%"}, "needs a total"),
    ],
)
def test_mistakes_name_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule.from_recipe(recipe(**changes), steps_per_epoch=7)


def test_a_duration_of_no_step_is_refused() -> None:
    recipe = RecipeConfig("0.0001ep", 8, "adamw", 0.1, 0.0)
    with pytest.raises(UserError, match=r"recipe\.duration=0\.0001ep is less than a step: an epoch has 9"):
        Schedule.from_recipe(recipe, 9)
