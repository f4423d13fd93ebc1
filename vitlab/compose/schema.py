"""Every key that can be typed: its kind, its default and its one-line meaning, read off the dataclasses.

The meanings are the comments beside the fields, so that a key is explained in one place. Light: no torch, no Hydra.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf

from vitlab.config import Config, RecipeConfig
from vitlab.errors import nearest
from vitlab.methods.base import find_method, method_names

DURATIONS = frozenset({"duration", "warmup", "decay_at", "validate_every", "checkpoint_every"})
"""Names of the fields of a recipe that hold durations (90ep, 5000st, 10%)."""

ELSEWHERE = {
    "epochs": "recipe.duration",
    "num_epochs": "recipe.duration",
    "max_epochs": "recipe.duration",
    "steps": "recipe.duration",
    "max_steps": "recipe.duration",
    "learning_rate": "recipe.lr",
    "base_lr": "recipe.lr",
    "bs": "recipe.batch_size",
    "batch": "recipe.batch_size",
    "wd": "recipe.weight_decay",
    "opt": "recipe.optimizer",
    "sched": "recipe.schedule",
    "drop_path": "model.args.drop_path_rate",
    "absent_class": "model.args.absent_class",
    "table_resize": "model.args.table_resize",
    "data": "dataset",
    "data_dir": "dataset.root",
    "data_path": "dataset.root",
    "path": "dataset.root",
    "img_size": "dataset.size",
    "image_size": "dataset.size",
    "input_size": "dataset.size",
    "resolution": "dataset.size",
    "num_workers": "hardware.workers",
    "gpu": "hardware",
    "gpus": "trainer.devices",
    "device": "hardware",
    "amp": "trainer.precision",
    "network": "model",
    "arch": "model",
    "backbone": "model",
    "student": "model",
    "weights": "model.checkpoint",
    "ckpt": "model.checkpoint",
    "out": "output",
    "output_dir": "output",
    "algorithm": "method",
    "config": "experiment",
    "wandb": "logger",
}
"""What other programs call things, and the key here."""

ANSWERS = {
    "resume": "The same command continues its run by itself; fresh=true starts another one beside it.",
    "continue": "The same command continues its run by itself; fresh=true starts another one beside it.",
    "verbose": "A run always says what it does; all of it stands in metrics.jsonl.",
}
"""Words that ask for what needs no key."""

RENAMED: dict[str, str] = {
    "ModelConfig.absent_class": "args.absent_class",
    "ModelConfig.table_resize": "args.table_resize",
}
"""Keys of former versions: ``"Class.key"`` → the key of today below the same class, both dotted where they lie deeper.

``"ModelConfig.args_of_timm": "args"`` finds the key wherever a network stands (``model.``, ``teacher.members.0.``,
``method.other.``); with ``Config`` for the class a key moves from anywhere to anywhere:
``"Config.recipe.views": "method.views"``. The value has to mean the same.
"""

REMOVED: dict[str, Any] = {"ModelConfig.absent_class": "mean", "ModelConfig.table_resize": "official"}
"""Keys of former versions that nothing stands for today: ``"Class.key"`` → the value with which it did nothing.

A run that has this value goes on as if the key had never been; one with another value differs, and is told so. A key
that is in both tables moves only where it has another value than this.
"""

_ABSENT = object()


@dataclass(frozen=True)
class Field:
    """One key of the configuration."""

    key: str  # dotted; the members of a list of dataclasses as teacher.members.0.name
    kind: str  # "a number", "true or false", ...
    meaning: str
    default: str  # as it would be typed; "" when conf/ must give it
    optional: bool  # takes null
    branch: bool  # has keys below it
    free: bool  # a dict in which any key is allowed


@functools.cache
def fields(options: type | None = None) -> dict[str, Field]:
    """All fields by key, in the order of the dataclasses; ``options`` is what ``method.`` holds."""
    return _walk(Config, "", options)


def find(key: str, known: dict[str, Field]) -> Field | None:
    """The field of ``key``; list positions may have any number, and below a free dict every key is one."""
    key = re.sub(r"\.\d+(?=\.|$)", ".0", key)
    if key in known:
        return known[key]
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        above = known.get(".".join(parts[:cut]))
        if above is not None:
            return dataclasses.replace(above, key=key, kind="anything", branch=False) if above.free else None
    return None


def suggest(key: str, known: dict[str, Field]) -> str | None:
    """The key that a person who typed ``key`` most likely meant.

    Looked for among the neighbours under the same parent, then among equal last names, then in the words of other
    programs, then among everything.
    """
    parent, _, last = key.rpartition(".")
    if parent and parent not in known:
        # The parent may be what is misspelt: mend it, then look beside the last name again.
        branches = [one for one, field in known.items() if field.branch]
        mended = nearest(parent, branches)
        if mended is not None and known[mended].free:
            return f"{mended}.{last}"
        if mended is not None and (f"{mended}.{last}" in known or nearest(last, _below(mended, known))):
            return f"{mended}.{last}" if f"{mended}.{last}" in known else suggest(f"{mended}.{last}", known)
    beside = _below(parent, known)
    if parent and last in ELSEWHERE and ELSEWHERE[last].rpartition(".")[0] == parent:
        return ELSEWHERE[last]
    swapped = [one for one in beside if sorted(one) == sorted(last)]
    near = swapped[0] if swapped else nearest(last, beside)
    if near is not None:
        return beside[near]
    if last in ELSEWHERE and find(ELSEWHERE[last], known):
        return ELSEWHERE[last]
    everywhere: dict[str, str] = {}
    for one in sorted(known, key=lambda one: (one.count("."), not one.startswith("recipe.")), reverse=True):
        everywhere[one.rpartition(".")[2]] = one
    near = last if last in everywhere else nearest(last, [one for one in everywhere if len(one) > 3])
    return everywhere[near] if near else None


def from_tree(tree: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> Config:
    """The typed configuration of plain dicts, lists and scalars, as a run of this vitlab or an older one keeps them.

    Args:
        usual: values for what the tree lacks and the schema gives no default.

    Raises:
        UserError: an unknown method.
        OmegaConfBaseException: keys or values that this vitlab does not know.
    """
    options = find_method(str(tree["method"]["name"])).Options
    schema = OmegaConf.structured(Config(method=options))
    config = OmegaConf.to_object(OmegaConf.merge(schema, dict(usual or {}), complete(tree)))
    assert isinstance(config, Config)
    return config


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration as this vitlab writes it: what an older one did not have yet has its default.

    So a key may be added without a word to any run that was made before, if its default is neutral: the run did what
    the default means. ``Run.open`` compares trees in this form. Keys are followed through every dataclass, wherever it
    stands: recipes and networks among a method's options and the members of a teacher like the top-level ones. Keys
    that have moved since are found by :data:`RENAMED` and :data:`REMOVED`; any other unknown key stays as it is, and
    so counts as a difference. A key without a default stays absent.

    Args:
        tree: plain dicts, lists and scalars; not changed.
    """
    tree = _moved(Config, copy.deepcopy(dict(tree)))
    method = tree.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    return _completed(Config, tree, find_method(name).Options if name in method_names() else None)


def _completed(cls: type, values: dict[str, Any], options: type | None) -> dict[str, Any]:
    """``values`` of a ``cls`` with what they lack; ``options`` is what ``Config.method`` holds."""
    hints, names = typing.get_type_hints(cls), [one.name for one in dataclasses.fields(cls)]
    if not values.keys() >= set(names):
        values = {**_defaults(cls), **values}
    for name in names:
        hint, _ = _without_none(hints[name])
        if cls is Config and name == "method":
            hint = options
        value = values.get(name)
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            inner = typing.cast(type, hint)
            values[name] = _completed(inner, _moved(inner, value), options)
        elif typing.get_origin(hint) is list and isinstance(value, list):
            member = typing.cast(type, typing.get_args(hint)[0])
            if dataclasses.is_dataclass(member):
                values[name] = [_completed(member, _moved(member, each), options) for each in value]
    return values


def _moved(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` of a ``cls`` under the keys of today."""
    for key, place in RENAMED.items():
        owner, _, path = key.partition(".")
        if owner == cls.__name__ and _lookup(values, path) not in (_ABSENT, REMOVED.get(key, _ABSENT)):
            _place(values, place, _take(values, path))
    for key, neutral in REMOVED.items():
        owner, _, path = key.partition(".")
        if owner == cls.__name__ and _lookup(values, path) == neutral:
            _take(values, path)
    return values


def _lookup(values: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _take(values: dict[str, Any], path: str) -> Any:
    above, _, last = path.rpartition(".")
    return (_lookup(values, above) if above else values).pop(last)


def _place(values: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        values = values.setdefault(part, {})
    values[last] = value


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults of a dataclass as a tree holds them (a float is a float also where 0 is written)."""
    found = _without_missing(OmegaConf.to_container(OmegaConf.structured(cls)))
    assert isinstance(found, dict)
    return found


def _without_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_missing(part) for key, part in value.items() if part != MISSING}
    return [_without_missing(part) for part in value] if isinstance(value, list) else value


def _below(parent: str, known: dict[str, Field]) -> dict[str, str]:
    """The keys directly under ``parent`` by their last names."""
    return {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == parent}


def _walk(cls: type, prefix: str, options: type | None) -> dict[str, Field]:
    meanings = _comments(cls)
    hints = typing.get_type_hints(cls)
    found: dict[str, Field] = {}
    for one in dataclasses.fields(cls):
        key = f"{prefix}{one.name}"
        hint, optional = _without_none(hints[one.name])
        inner: type | None = None
        listed = False
        if key == "method":
            inner = options
        elif dataclasses.is_dataclass(hint):
            inner = typing.cast(type, hint)
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            inner, listed = typing.get_args(hint)[0], True
        meaning = meanings.get(one.name, "")
        if inner is not None and not meaning:
            meaning = (inner.__doc__ or "").strip().split("\n")[0]
            meaning = (
                ""
                if meaning.startswith((f"{inner.__name__}(", "Keys under"))
                else meaning.replace("``", "").rstrip(".")
            )
        free = typing.get_origin(hint) is dict
        kind = _kind(hint) if inner is None or listed else "a group of keys"
        if cls is RecipeConfig and one.name in DURATIONS:
            kind = (
                "a list of durations such as [30ep,60ep]"
                if kind.startswith("a list")
                else "a duration such as 90ep or 5000st"
            )
        found[key] = Field(key, kind, meaning, _default(one), optional, inner is not None or free, free)
        if inner is not None:
            found.update(_walk(inner, f"{key}.0." if listed else f"{key}.", options))
    return found


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    lines = inspect.getsource(cls).split("\n")
    found = (re.match(r"\s+(\w+)\s*:[^#]*#\s*(.+)", line) for line in lines)
    return {one[1]: one[2].strip() for one in found if one}


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        return rest[0], True
    return hint, False


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "anything"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is list:
        inner = typing.get_args(hint)[0]
        plural = {int: "whole numbers", float: "numbers", str: "words", Any: "values"}.get(inner, "groups of keys")
        sample = {int: "[1,32]", float: "[0.5,1]", str: "[one,two]"}.get(inner, "")
        return f"a list of {plural}" + (f" such as {sample}" if sample else "")
    return "a group of keys"


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING and one.default != MISSING:
        return _typed(one.default)
    if one.default_factory is not dataclasses.MISSING and not dataclasses.is_dataclass(one.default_factory):
        return _typed(one.default_factory())
    return ""


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_typed(one) for one in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
