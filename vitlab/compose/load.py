"""Composition of the command line's overrides into one typed, checked configuration.

Hydra composes the YAML files of ``conf/`` over the schema of :mod:`vitlab.config`; a second, strict pass converts the
result into plain dataclasses, so that the other packages need neither Hydra nor OmegaConf. Precedence, lowest first:
the method's default choices, the data set's, ``conf/local``, the experiment, the command line.

No torch.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigIndexError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from vitlab.compose.hydra_private import (
    ConfigLoaderImpl,
    DefaultsList,
    create_defaults_list,
)
from vitlab.compose.model_folders import GROUPS_OF_MODELS, put_into, read_folders
from vitlab.compose.overrides import check_keys, describe_field, is_choice, parse_overrides, unknown_key
from vitlab.compose.repository import repository
from vitlab.compose.schema import Field, fields, find, typed_tree
from vitlab.compose.unread_keys import check_unread
from vitlab.compose.validate import check, check_read
from vitlab.compose.yaml_errors import Files, defaults_error, file_error, interpolation_error, missing_file, yaml_error
from vitlab.config import Config, to_steps
from vitlab.config.catalogue import GROUPS, conf_dir, mode_reads, top_level_key
from vitlab.config.catalogue import choices as names_in
from vitlab.config.composed import Composed
from vitlab.config.debug import apply_debug
from vitlab.errors import UserError
from vitlab.methods.base import find_method
from vitlab.run.identity import leaves


def load(overrides: list[str]) -> Composed:
    """Compose, convert and check the configuration of ``overrides``.

    Raises:
        UserError: a mistake in the overrides or in a YAML file.
    """
    conf = conf_dir()
    words = parse_overrides(overrides, conf)
    folders = read_folders(words, {group: names_in(conf, group) for group in GROUPS_OF_MODELS})
    named = [one for one in words if is_choice(one) and one.key_or_group not in folders]
    # A folder is the complete teacher; of a model it replaces the keys of the usual choice, see put_into.
    if "teacher" in folders:
        named += [dataclasses.replace(one, _value="none") for one in words if one.key_or_group == "teacher"]
    loader, files_read = repository(conf)

    def list_defaults(more: list[Override]) -> DefaultsList:
        return create_defaults_list(files_read, "config", [*named, *more], prepend_hydra=False, skip_missing=False)

    try:
        defaults = list_defaults([])
        if own := _choices_on_dataset(defaults, conf):
            defaults = list_defaults(OverridesParser.create().parse_overrides([f"{ON_DATASET}={own}"]))
    except MissingConfigException as error:
        raise missing_file(str(error.missing_cfg_file), conf) from error
    except yaml.YAMLError as error:
        raise yaml_error(error, conf) from error
    except HydraException as error:
        raise defaults_error(error, conf, overrides) from error
    choices = {
        group: choice
        for group, choice in defaults.overrides.known_choices.items()
        if group != ON_DATASET and (choice is None or (conf / group.partition("@")[0] / f"{choice}.yaml").is_file())
    }
    method = find_method(str(choices["method"]))
    known = fields(method.Options)
    keyed = check_keys([one for one in words if not is_choice(one)], known, conf)
    files = Files(conf, defaults.defaults)
    typed = {one.key_or_group: str(one.input_line) for one in words if not is_choice(one)}
    try:
        chosen_tree = copy.deepcopy(typed_tree(method.Options))
        sized = False  # whether an experiment chooses the size
        for default in defaults.defaults:
            part = loader._load_single_config(default, files_read).config
            in_experiment = str(default.config_path).startswith("experiment/")
            sized = sized or (in_experiment and OmegaConf.select(part, "dataset.size") is not None)
            chosen_tree.merge_with(part)
        OmegaConf.set_struct(chosen_tree, True)
        overridden = copy.deepcopy(chosen_tree)
        refuse_keys_of_missing_recipe(keyed, overridden, known)
        put_into(overridden, folders, sized)
        notes = reset_args(keyed, overridden)
        ConfigLoaderImpl._apply_overrides_to_config(keyed, overridden)
        shorten_warmups(overridden, chosen_tree, set(typed), known)
        tree = cast(dict[str, Any], OmegaConf.to_container(overridden, resolve=True, throw_on_missing=True))
        # Merged into the schema once more: strict, so that every value has the declared type.
        config = OmegaConf.to_object(OmegaConf.merge(typed_tree(method.Options), tree))
        before = leaves(cast(dict[str, Any], OmegaConf.to_container(chosen_tree, resolve=True)))
        after = leaves(tree)
    except (HydraException, OmegaConfBaseException) as error:
        raise _user_error(error, typed, files, known) from error
    assert isinstance(config, Config)

    def where(key: str) -> str:
        if key in typed:
            return typed[key]
        place = files.find(key)
        return f"{place}: {key}" if place else key

    chosen = {top_level_key(word.get_key_element()): str(word.input_line) for word in words}
    read = _reads_of_mode(config, set(chosen)) or set(method.reads(config))
    check(config, where, read)
    check_read(config, method, chosen)
    given = {word.key_or_group: str(word.input_line) for word in words if not is_choice(word)}
    if config.run is not None and "dataset" not in {word.key_or_group for word in words if is_choice(word)}:
        given = {key: line for key, line in given.items() if not key.startswith("dataset.")}  # of the run's data set
    check_unread(config, given, known)
    changed = {key: value for key, value in after.items() if before.get(key, ...) != value}
    config = apply_debug(config)
    unchanged = {key: before.get(key) for key in changed}
    chosen_groups = set(chosen) & set(GROUPS)
    return Composed(config, choices, chosen_groups, list(overrides), tree, changed, unchanged, read, notes)


ON_DATASET = "method@_global_"
"""Place in ``conf/config.yaml`` of the choices that a method makes anew for one data set: after the data set's own,
before the experiment's. A data set names the usual network of small images, which not every method can take."""


def _choices_on_dataset(defaults: DefaultsList, conf: Path) -> str | None:
    """The file of ``conf/method`` with the choices of this method on this data set, or on one that it is based on."""
    method = defaults.overrides.known_choices["method"]
    files = [Path(one.config_path) for one in defaults.defaults if one.config_path is not None]  # bases first
    names = [f"_{method}_{file.name}" for file in reversed(files) if file.parent.name == "dataset"]
    return next((name for name in names if (conf / "method" / f"{name}.yaml").is_file()), None)


def _reads_of_mode(config: Config, chosen: set[str]) -> set[str]:
    """Groups and keys that ``mode=`` reads; none for a training. With ``run=`` the data set is the run's, and is read
    from the command line only if it is given there."""
    read = set(mode_reads(config.mode))
    return read - {"dataset"} if config.run is not None and "dataset" not in chosen else read


def refuse_keys_of_missing_recipe(keyed: list[Override], tree: DictConfig, known: dict[str, Field]) -> None:
    """Refuse a key of a recipe that is null, for which OmegaConf raises an unclear error.

    Raises:
        UserError: naming the recipe and how to choose it.
    """
    nulls: dict[str, str] = {}  # by key, those that come before the key at hand
    for word in keyed:
        parts = word.key_or_group.split(".")
        for key in (".".join(parts[:depth]) for depth in range(1, len(parts))):
            if key in nulls:
                raise UserError(
                    f"{word.input_line}: {nulls[key]} leaves no key below {key}.", "Leave one of the two out."
                )
        if word.value() is None:
            nulls[word.key_or_group] = str(word.input_line)
        for key in (".".join(parts[:depth]) for depth in range(1, len(parts) + 1)):
            below = key != word.key_or_group or isinstance(word.value(), dict)
            if below and f"{key}.duration" in known and OmegaConf.select(tree, key) is None:
                raise UserError(
                    f"{word.input_line}: {key} is empty, so there is no key below it.",
                    f"Choose a recipe for it first: recipe@{key}=NAME (mode=list group=recipe).",
                )


def reset_args(keyed: list[Override], tree: DictConfig) -> list[str]:
    """Clear the ``args`` of a network whose ``name`` is overridden by another timm model, which has other arguments;
    those on the command line are set after this. Returns a line for the plan about each."""
    notes = []
    for word in keyed:
        above, _, last = word.key_or_group.rpartition(".")
        node = OmegaConf.select(tree, above) if last == "name" and above else None
        if isinstance(node, DictConfig) and node.get("args") and node.name != word.value():
            names = ", ".join(map(str, node.args))
            notes.append(f"{word.input_line}: arguments of {node.name} are left out ({names}); give {above}.args.KEY")
            node.args = {}
    return notes


def shorten_warmups(tree: DictConfig, chosen: DictConfig, typed: set[str], known: dict[str, Field]) -> None:
    """Where a recipe is given a duration that its own warm-up would fill, the warm-up becomes the share of the duration
    that it has in the recipe; one that is typed stays, and is checked."""
    for key in (one.removesuffix(".duration") for one in typed if one.endswith("duration") and one in known):
        before, after = OmegaConf.select(chosen, key), OmegaConf.select(tree, key)
        if before is None or after is None or "warmup" not in before or f"{key}.warmup" in typed:
            continue
        try:
            lengths = [to_steps(str(one), 10**6) for one in (before.duration, before.warmup, after.duration)]
        except ValueError:  # a percentage, or no duration: reported by the checks
            continue
        units = {str(one).strip()[-2:] for one in (before.duration, before.warmup, after.duration)}
        if len(units) == 1 and 0 < lengths[1] < lengths[0] and lengths[1] >= lengths[2]:
            after.warmup = f"{100 * lengths[1] / lengths[0]:.4g}%"


def _user_error(error: Exception, typed: dict[str, str], files: Files, known: dict[str, Field]) -> UserError:
    """The user's mistake that made Hydra or OmegaConf raise ``error``."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    key = str(getattr(cause, "full_key", "") or "")
    for name, line in typed.items():
        if name != key and not key.startswith((f"{name}.", f"{name}[")) and line not in str(error):
            continue
        if isinstance(cause, (InterpolationKeyError, InterpolationResolutionError)):
            return interpolation_error(line, cause)
        if "dict is not a subclass" in str(cause) or isinstance(cause, ConfigIndexError):
            above = re.split(r"\.\d", name)[0]
            return UserError(
                f"{line}: {above} has no such index; the first is {above}.0.",
                f"For several, give the complete list: {above}=[{{name:NAME}},{{name:NAME}}].",
            )
        if key.startswith(f"{name}.") and find(key, known) is None:
            return unknown_key(line, key, "VALUE", known, conf_dir())
        field = find(key, known) or find(name, known)
        value = line.partition("=")[2]
        kind = f" is not {field.kind.partition(' such as')[0]}." if field else " does not fit."
        what = f"{line}: '{value}'{kind}" if value else f"{line}: the value after the equals sign is missing."
        return UserError(what, describe_field(field) if field else "")
    return file_error(cause if isinstance(cause, Exception) else error, files, known) or defaults_error(
        error, conf_dir(), list(typed.values())
    )
