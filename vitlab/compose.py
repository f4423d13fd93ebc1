"""From the words at the prompt to one typed, checked configuration.

Hydra composes the YAML files of ``conf/`` over the schema of :mod:`vitlab.config`; a second, strict pass turns the
result into plain dataclasses, so that nothing below the command line sees Hydra or OmegaConf. Precedence, weakest
first: the method's usual choices, the data set's, ``conf/local``, the experiment, the command line.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vitlab.config import GROUPS, Config
from vitlab.methods.base import find_method

RESULT_FREE = frozenset(
    {"hardware", "trainer", "logger", "evaluation", "export", "mode", "name", "output", "fresh", "local"}
)
"""Top-level keys and groups that cannot change what a run computes; they are not part of its identity."""


@dataclass
class Composed:
    """One command line, composed and checked."""

    config: Config  # plain dataclasses, all the way down
    choices: dict[str, str | None]  # every group (also mounted ones, recipe@teacher.recipe) and the choice in force
    chosen: set[str]  # groups that the prompt named, by a choice (model=x) or by a key (model.name=x)
    overrides: list[str]  # the words at the prompt, as typed
    tree: dict[str, Any]  # the configuration as plain dicts, lists and scalars
    changed: dict[str, Any]  # leaves that differ from what the choices alone give, by dotted key

    def identity(self) -> dict[str, Any]:
        """What names a run: the choices and the changed leaves that can change its results."""
        choices = {group: choice for group, choice in self.choices.items() if _top(group) not in RESULT_FREE}
        changed = {key: value for key, value in self.changed.items() if _top(key) not in RESULT_FREE}
        return {"choices": choices, "changed": changed}


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def load(overrides: list[str]) -> Composed:
    """Compose, type and check the configuration that ``overrides`` ask for.

    Raises:
        UserError: for whatever is wrong with the overrides or with a YAML file.
    """
    words = OverridesParser.create().parse_overrides(overrides)
    with _hydra():
        choosing = [one.input_line for one in words if _is_choice(one)]
        choices = _choices(choosing)
        schema = Config(method=find_method(str(choices["method"])).Options)
        ConfigStore.instance().store(name="schema", node=schema)
        usual = compose("config", overrides=choosing)
        asked = compose("config", overrides=overrides)
    strict = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), asked))
    config = OmegaConf.to_object(strict)
    assert isinstance(config, Config)
    tree = cast(dict[str, Any], OmegaConf.to_container(strict, resolve=True))
    before, after = _leaves(OmegaConf.to_container(usual, resolve=True)), _leaves(tree)
    changed = {key: after.get(key) for key in before | after if before.get(key, ...) != after.get(key, ...)}
    chosen = {_top(one.get_key_element()) for one in words} & set(GROUPS)
    return Composed(config, choices, chosen, list(overrides), tree, changed)


@contextmanager
def _hydra() -> Iterator[None]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        yield


def _choices(choosing: list[str]) -> dict[str, str | None]:
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    found = loader.compute_defaults_list("config", choosing, RunMode.RUN).overrides.known_choices
    return {group: choice for group, choice in found.items() if not group.startswith("hydra/")}


def _is_choice(word: Override) -> bool:
    return (conf_dir() / word.key_or_group).is_dir() and not isinstance(word.value(), dict)


def _top(key: str) -> str:
    """The top-level key that a dotted key, a group, or a mounted group (recipe@teacher.recipe) belongs to."""
    group, _, mount = key.partition("@")
    return (mount or group).partition(".")[0]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_leaves(value, f"{prefix}.{key}" if prefix else str(key)))
    return found
