"""A dataclass whose content is hashed, or compared with a stored copy, may gain fields: what was known stays known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.growing import grow
from vitlab.config import DatasetConfig, ModelConfig
from vitlab.distill.draw import Augmentation
from vitlab.distill.reinforce_draw import Reinforcement
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.errors import UserError
from vitlab.files import read_json, stable_dict, write_json
from vitlab.methods.deepmad.anneal import AnnealSettings
from vitlab.methods.deepmad.evaluate import Scoring
from vitlab.methods.deepmad.evolution import EvolutionSettings
from vitlab.methods.deepmad.latency import CostTable
from vitlab.methods.deepmad.milp import MilpSettings
from vitlab.methods.deepmad.problem import Budget, Problem, Space, resnet_space
from vitlab.methods.tinyvit.contract import Limits

COSTS = CostTable("none", 1, "K1KXK1", [8, 16], scale=1.5)
KEYS = ["a.png", "b.png", "c.png", "d.png"]


def spec_of(keys: str = "keys") -> StoreSpec:
    aug, third = Augmentation(size=8), (0.2, 0.2, 0.2)
    half = (0.5, 0.5, 0.5)
    teacher = {"name": "random"}
    return StoreSpec(4, 2, 3, 7, keys, "data", aug.to_dict(), aug.fingerprint(), teacher, half, third, 11)


def problem() -> Problem:
    space = resnet_space((2, 2), monotone=True, stem_max=32)
    return Problem(space, Scoring((1.0, 1.0, 8.0), 10.0), Budget(200_000, 20_000_000, 0.3), 32, None, COSTS)


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


PINNED: list[tuple[type, Callable[[], str], str]] = [
    (Augmentation, lambda: Augmentation(size=32).fingerprint(), "354ae6ac4953"),
    (
        Augmentation,
        lambda: Augmentation(size=32, crop_scale=(0.5, 1.0), erase=0.25, mixup=0.8).fingerprint(),
        "9ee954c37f8d",
    ),
    (Reinforcement, lambda: Reinforcement().fingerprint(), "568f62f7d2ec"),
    (Reinforcement, lambda: Reinforcement("mixing", partner="batch").fingerprint(), "ba36ccde6da7"),
    (StoreSpec, lambda: digest(spec_of().to_dict()), "6b31cb8efc2f"),
    (CostTable, lambda: COSTS.fingerprint, "df608bfb24de"),
    (Problem, lambda: digest(problem().describe()), "1c342a6f2725"),
    (Space, lambda: digest(problem().describe()), "1c342a6f2725"),
    (Scoring, lambda: digest(problem().describe()), "1c342a6f2725"),
    (Budget, lambda: digest(problem().describe()), "1c342a6f2725"),
    (AnnealSettings, lambda: digest(stable_dict(AnnealSettings())), "e3dd610490fc"),
    (AnnealSettings, lambda: digest(stable_dict(MilpSettings())), "ba6fd91678dd"),
    (MilpSettings, lambda: digest(stable_dict(MilpSettings())), "ba6fd91678dd"),
    (EvolutionSettings, lambda: digest(stable_dict(EvolutionSettings())), "5ed0ac3e51e1"),
    (ModelConfig, lambda: digest(stable_dict(ModelConfig("a"))), "eba2e93c59f3"),
    (
        DatasetConfig,
        lambda: digest(stable_dict(DatasetConfig("a", size=3, mean=[0.0], std=[1.0]))),
        "1ee29fb17b98",
    ),
    (Limits, lambda: digest(stable_dict(Limits(1.0, 2.0, 3, 4, 0.5, 6))), "3e51847a59ad"),
]
"""The class, what is made of it, and what that was in the first version."""


@pytest.mark.parametrize(("cls", "made", "first"), PINNED)
def test_what_was_known_stays_known(
    cls: type, made: Callable[[], str], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made()[:12] == first
    grow(monkeypatch, cls, "later", "float", 0.0)
    assert made()[:12] == first, "a neutral field that came later changed it"
    grow(monkeypatch, cls, "later", "float", 0.5)
    monkeypatch.setattr(cls.__dataclass_fields__["later"], "default", 0.0)  # type: ignore[attr-defined]
    assert made()[:12] != first, "a later field that is used must change it"


def test_a_subclass_with_a_neutral_field_is_known_by_the_same_fingerprint() -> None:
    @dataclass(frozen=True)
    class Rotated(Augmentation):
        rotate: float = 0.0

    assert Rotated(size=32).fingerprint() == Augmentation(size=32).fingerprint()
    assert Rotated(size=32, rotate=5.0).fingerprint() != Augmentation(size=32).fingerprint()
    assert Rotated.from_dict(Augmentation(size=32).to_dict()) == Rotated(size=32)


@dataclass
class Inner:
    one: int = 1

    FIRST: ClassVar[tuple[str, ...]] = ("one",)


@dataclass
class Outer:
    inner: Inner
    many: dict[str, list[Inner]] = field(default_factory=dict)
    pair: tuple[Inner, int] = (Inner(3), 4)


def test_fields_are_followed_through_what_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Outer(Inner(), {"a": [Inner(2)]})
    expected = {"inner": {"one": 1}, "many": {"a": [{"one": 2}]}, "pair": ({"one": 3}, 4)}
    assert stable_dict(made) == expected
    grow(monkeypatch, Inner, "two", "int", 0)
    assert stable_dict(made) == expected
    assert stable_dict(Inner(two=5)) == {"one": 1, "two": 5}  # type: ignore[call-arg]


def test_a_later_field_needs_a_default() -> None:
    @dataclass
    class Wrong:
        one: int
        two: int

        FIRST: ClassVar[tuple[str, ...]] = ("one",)

    with pytest.raises(TypeError, match=r"Wrong\.two is not in FIRST"):
        stable_dict(Wrong(1, 2))


@pytest.mark.parametrize("cls", list(dict.fromkeys(one[0] for one in PINNED)))
def test_first_names_fields_that_there_are(cls: Any) -> None:
    assert set(cls.FIRST) <= {one.name for one in fields(cls)}


def test_a_store_is_continued_by_a_release_with_more_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TargetStore.create(tmp_path, spec_of(keys_digest(KEYS)), KEYS)
    grow(monkeypatch, Augmentation, "rotate", "float", 0.0)
    grow(monkeypatch, StoreSpec, "layout", "str", "rows")
    again = TargetStore.create(tmp_path, spec_of(keys_digest(KEYS)), KEYS)
    assert again.spec.layout == "rows"  # type: ignore[attr-defined]
    assert "layout" not in read_json(tmp_path / "store.json")
    monkeypatch.undo()
    write_json(tmp_path / "store.json", {**read_json(tmp_path / "store.json"), "layout": "columns"})
    with pytest.raises(UserError, match=r"store\.json has layout, unknown to this version"):
        TargetStore.open(tmp_path, allow_partial=True)
