"""Checks of values: recipes and networks anywhere in a method's options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from vitlab.compose.load import load
from vitlab.compose.validate import check, parts_of
from vitlab.config import AugmentationConfig, Config, ModelConfig, RecipeConfig, tree
from vitlab.errors import UserError


@dataclass
class Inner:
    """Options below options."""

    start: ModelConfig = field(default_factory=lambda: ModelConfig("resnet18"))


@dataclass
class Options:
    """Options of a method that trains twice, from several networks."""

    name: str = "twice"
    again: RecipeConfig | None = None
    other: ModelConfig = field(default_factory=lambda: ModelConfig("resnet18"))
    several: list[ModelConfig] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


@pytest.fixture(scope="module")
def config() -> Config:
    return load([]).config


def refusal(config: Config, options: Options) -> str:
    """The message for ``config`` with a method of these options, every key preceded by a file."""
    with pytest.raises(UserError) as caught:
        check(replace(config, method=options), lambda key: f"FILE: {key}", set())
    return str(caught.value)


def test_every_recipe_and_network_of_a_method_is_found(config: Config) -> None:
    assert [key for key, _ in parts_of(Options(), "method")] == ["method.other", "method.inner.start"]
    options = Options(again=config.recipe, several=[ModelConfig("a"), ModelConfig("b")])
    found = dict(parts_of(options, "method"))
    assert list(found) == ["method.again", "method.other", "method.several.0", "method.several.1", "method.inner.start"]
    assert found["method.again"] is config.recipe
    check(replace(config, method=options), str, set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, label_smoothing=7.0), "FILE: method.again.label_smoothing: 7.0 is out of range."),
        (lambda r: replace(r, duration="90"), "FILE: method.again.duration: '90' is not a duration"),
        (lambda r: replace(r, schedule="cosin"), "FILE: method.again.schedule: 'cosin' is none of cosine, "),
        (
            lambda r: replace(r, augmentation=AugmentationConfig(erase=-1.0)),
            "FILE: method.again.augmentation.erase=-1.0 is out of range: expected a probability in [0, 1].",
        ),
        (
            lambda r: replace(r, augmentation=AugmentationConfig(randaug="rand-m9")),
            "FILE: method.again.augmentation.randaug=rand-m9: needs 'rand', a magnitude m and inc1.",
        ),
        (
            lambda r: replace(r, augmentation=AugmentationConfig(color_jitter=[1, 1, 1, 0.6])),
            "FILE: method.again.augmentation.color_jitter=[1.0, 1.0, 1.0, 0.6] is out of range",
        ),
    ],
)
def test_a_recipe_of_a_method_is_checked_under_any_name(
    config: Config, change: Callable[[RecipeConfig], RecipeConfig], message: str
) -> None:
    assert refusal(config, Options(again=change(config.recipe))).startswith(message)


def test_a_network_of_a_method_is_checked_at_any_depth(config: Config, tmp_path: Path) -> None:
    lost = ModelConfig("resnet18", checkpoint=str(tmp_path / "lost.pth"))
    assert refusal(config, Options(other=lost)).startswith("FILE: method.other.checkpoint: there is no file")
    assert refusal(config, Options(several=[ModelConfig("a"), lost])).startswith("FILE: method.several.1.checkpoint")
    assert refusal(config, Options(inner=Inner(lost))).startswith("FILE: method.inner.start.checkpoint")
    odd = ModelConfig("resnet18", mean=[0.5])
    assert refusal(config, Options(other=odd)).startswith("FILE: method.other.mean: [0.5] has the wrong length.")


def test_every_number_declares_its_range() -> None:
    """Of the configuration that all methods share; the augmentation's are checked where it is constructed."""
    from vitlab.config.ranges import range_of

    def numbers(cls: Any) -> Iterator[dataclasses.Field[Any]]:
        hints = typing.get_type_hints(cls)
        for one in dataclasses.fields(cls):
            text = str(hints[one.name])
            if hints[one.name] in (int, float) or any(f"[{kind}" in text for kind in ("int", "float")):
                yield one

    found: list[Any] = list(vars(tree).values())
    classes: list[Any] = [one for one in found if dataclasses.is_dataclass(one) and one is not tree.AugmentationConfig]
    lacking = [f"{cls.__name__}.{one.name}" for cls in classes for one in numbers(cls) if range_of(one) is None]
    assert len(classes) > 15 and lacking == []
