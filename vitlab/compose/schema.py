"""All keys with their types, defaults and help texts, read from the dataclasses; completion of stored configurations.

The help texts are the comments beside the fields. No torch, no Hydra.
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

from omegaconf import MISSING, DictConfig, OmegaConf

from vitlab.config import Config, RecipeConfig
from vitlab.errors import nearest
from vitlab.methods.base import find_method, method_names

DURATIONS = frozenset({"duration", "warmup", "decay_at", "validate_every", "checkpoint_every"})
"""Names of the fields of a recipe that hold durations (90ep, 5000st, 10%)."""

SYNONYMS = {
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
"""Name of a key in other programs → key here."""

UNNEEDED_KEYS = {
    "resume": "The same command continues its run automatically; fresh=true starts another one beside it.",
    "continue": "The same command continues its run automatically; fresh=true starts another one beside it.",
    "verbose": "A run always prints its progress; all metrics are in metrics.jsonl.",
}
"""Keys of other programs that have no counterpart here → explanation."""

RENAMED: dict[str, str] = {
    "ModelConfig.absent_class": "args.absent_class",
    "ModelConfig.table_resize": "args.table_resize",
}
"""Renamed keys of earlier versions: ``"Class.key"`` → current key below the same class, both dotted for nested keys.

``"ModelConfig.args_of_timm": "args"`` applies to every network (``model.``, ``teacher.members.0.``, ``method.other.``);
with the class ``Config`` a key can move anywhere: ``"Config.recipe.views": "method.views"``. The meaning of the value
must not change.
"""

REMOVED: dict[str, Any] = {"ModelConfig.absent_class": "mean", "ModelConfig.table_resize": "official"}
"""Removed keys of earlier versions: ``"Class.key"`` → the value without effect.

A run with this value is continued as if the key did not exist; one with another value counts as different. A key in
both tables is renamed only if it has another value than this.
"""

_ABSENT = object()


@dataclass(frozen=True)
class Field:
    """One key of the configuration."""

    key: str  # dotted; the members of a list of dataclasses as teacher.members.0.name
    kind: str  # "a number", "true or false", ...
    meaning: str
    default: str  # as typed on the command line; "" if conf/ must give it
    optional: bool  # takes null
    branch: bool  # has keys below it
    free: bool  # a dict with arbitrary keys


@functools.cache
def fields(options: type | None = None) -> dict[str, Field]:
    """All fields by key, in the order of the dataclasses; ``options`` is the dataclass of ``method``."""
    return _walk(Config, "", options)


@functools.cache
def typed_tree(options: type) -> DictConfig:
    """The schema as OmegaConf has it; ``options`` is the dataclass of ``method``. Read only: to be copied first, as
    :func:`OmegaConf.merge` does."""
    tree = OmegaConf.structured(Config(method=options))
    assert isinstance(tree, DictConfig)
    return tree


def find(key: str, known: dict[str, Field]) -> Field | None:
    """The field of ``key``, with any list index, or any key below a free dict; None if there is none."""
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
    """The existing key that is most similar to ``key``.

    Searched among the keys of the same parent, then in :data:`SYNONYMS`, then among the last parts of all keys.
    """
    parent, _, last = key.rpartition(".")
    if parent and parent not in known:
        # The parent may be misspelt: correct it, then search among its keys.
        branches = [one for one, field in known.items() if field.branch]
        corrected = nearest(parent, branches)
        if corrected is not None and known[corrected].free:
            return f"{corrected}.{last}"
        if corrected is not None and (f"{corrected}.{last}" in known or nearest(last, _below(corrected, known))):
            return f"{corrected}.{last}" if f"{corrected}.{last}" in known else suggest(f"{corrected}.{last}", known)
    siblings = _below(parent, known)
    if parent and last in SYNONYMS and SYNONYMS[last].rpartition(".")[0] == parent:
        return SYNONYMS[last]
    swapped = [one for one in siblings if sorted(one) == sorted(last)]
    near = swapped[0] if swapped else nearest(last, siblings)
    if near is not None:
        return siblings[near]
    if last in SYNONYMS and find(SYNONYMS[last], known):
        return SYNONYMS[last]
    everywhere: dict[str, str] = {}
    for one in sorted(known, key=lambda one: (one.count("."), not one.startswith("recipe.")), reverse=True):
        everywhere[one.rpartition(".")[2]] = one
    near = last if last in everywhere else nearest(last, [one for one in everywhere if len(one) > 3])
    return everywhere[near] if near else None


def from_tree(tree: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Config:
    """The typed configuration of a stored tree of dicts, lists and scalars, of this or an earlier version.

    Args:
        defaults: values of keys that are missing in the tree and have no default in the schema.

    Raises:
        UserError: an unknown method.
        OmegaConfBaseException: unknown keys, or values of another type.
    """
    options = find_method(str(tree["method"]["name"])).Options
    config = OmegaConf.to_object(OmegaConf.merge(typed_tree(options), dict(defaults or {}), complete(tree)))
    assert isinstance(config, Config)
    return config


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration of an earlier version, completed with the defaults of keys added since.

    So a key with a neutral default may be added without changing any earlier run; ``Run.open`` compares trees in this
    form. All dataclasses are completed, wherever they occur: recipes and networks among a method's options and the
    members of a teacher, too. Keys are renamed by :data:`RENAMED` and removed by :data:`REMOVED`; any other unknown key
    is kept, and counts as a difference. A key without a default stays absent.

    Args:
        tree: plain dicts, lists and scalars; not changed.
    """
    tree = _moved(Config, copy.deepcopy(dict(tree)))
    method = tree.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    return _completed(Config, tree, find_method(name).Options if name in method_names() else None)


def _completed(cls: type, values: dict[str, Any], options: type | None) -> dict[str, Any]:
    """``values`` of a ``cls``, completed; ``options`` is the dataclass of ``Config.method``."""
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
    """``values`` of a ``cls`` with :data:`RENAMED` and :data:`REMOVED` applied."""
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
    """The defaults of a dataclass as plain values of the declared types (a float default 0 as 0.0)."""
    defaults = _without_missing(OmegaConf.to_container(OmegaConf.structured(cls)))
    assert isinstance(defaults, dict)
    return defaults


def _without_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_missing(part) for key, part in value.items() if part != MISSING}
    return [_without_missing(part) for part in value] if isinstance(value, list) else value


def _below(parent: str, known: dict[str, Field]) -> dict[str, str]:
    """Last part → key, of the keys directly under ``parent``."""
    return {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == parent}


def _walk(cls: type, prefix: str, options: type | None) -> dict[str, Field]:
    meanings = _comments(cls)
    hints = typing.get_type_hints(cls)
    known: dict[str, Field] = {}
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
        known[key] = Field(key, kind, meaning, _default(one), optional, inner is not None or free, free)
        if inner is not None:
            known.update(_walk(inner, f"{key}.0." if listed else f"{key}.", options))
    return known


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """Field → the comment beside it."""
    lines = inspect.getsource(cls).split("\n")
    matches = (re.match(r"\s+(\w+)\s*:[^#]*#\s*(.+)", line) for line in lines)
    return {one[1]: one[2].strip() for one in matches if one}


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
        return format_value(one.default)
    if one.default_factory is not dataclasses.MISSING and not dataclasses.is_dataclass(one.default_factory):
        return format_value(one.default_factory())
    return ""


def format_value(value: Any) -> str:
    """``value`` as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{format_value(one)}" for name, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
