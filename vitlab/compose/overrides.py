"""Parsing of the command line's overrides: choices of a group and values of single keys, checked before composition.

Mistakes in a single override are reported here, with the override as typed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from vitlab.compose.model_folders import GROUPS_OF_MODELS, names_folders, output_of
from vitlab.compose.schema import SYNONYMS, UNNEEDED_KEYS, Field, fields, find, suggest
from vitlab.config.catalogue import GROUPS, choices, mode_meanings
from vitlab.errors import UserError, list_names, nearest
from vitlab.methods.base import find_method, method_names

CHOICE_SYNONYMS = {"cuda": "gpu", "nvidia": "gpu", "false": "none", "off": "none", "wb": "wandb", "tb": "tensorboard"}
"""Name of a choice in other programs → name here."""


def is_choice(word: Override) -> bool:
    """Whether the override chooses a file of a group (model=resnet50), not a value of a key."""
    return word.key_or_group in (*GROUPS, "local") and not isinstance(word.value(), dict)


def parse_overrides(words: list[str], conf: Path) -> list[Override]:
    """Parse the overrides and check their syntax, groups and choices, without composing; of a key that is given twice
    the last is returned.

    Raises:
        UserError: for the first mistake.
    """
    _check_spaces(words)
    overrides = [_parse_override(word, conf) for word in words]
    for word, typed in zip(overrides, words, strict=True):
        if is_choice(word):
            _check_choice(word, typed, conf, output_of(overrides))
        if is_choice(word) and _is_mount(word):
            _check_mount(word)
    last = {word.get_key_element().lstrip("+~"): word for word in overrides}  # given twice: the last wins, as in Hydra
    return [word for word in overrides if last[word.get_key_element().lstrip("+~")] is word]


def check_keys(keyed: list[Override], known: dict[str, Field], conf: Path) -> list[Override]:
    """Check the overrides of single keys against the schema; the overrides as Hydra can apply them.

    Raises:
        UserError: for the first key that does not exist or cannot be set so.
    """
    return [_check_key(word, str(word.input_line), known, conf) for word in keyed]


def describe_field(field: Field) -> str:
    """``recipe.lr takes a number (peak learning rate ...)``, for a message."""
    kind = field.kind + (", or null" if field.optional else "")
    return f"{field.key} takes {kind}" + (f" ({field.meaning})." if field.meaning else ".")


# ------------------------------------------------------------------------------------------------------ one override


def _check_spaces(words: list[str]) -> None:
    """Refuse ``key = value``, ``key= value`` and ``key value``, which the shell splits into several words."""
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word == "=" or (word.startswith("=") and before and "=" not in before):
            split = " ".join(one for one in (before, word, "" if word[1:] else after) if one)
            raise UserError(f"'{split}' is split at its spaces.", f"Write {before}={word[1:] or after}.")
        if re.fullmatch(r"--\w[\w.-]*", word) and after and "=" not in after and not after.startswith("-"):
            near = _suggested(word.lstrip("-").replace("-", "_"), after)
            raise UserError(
                f"'{word} {after}': keys are written without dashes, as key=value.", f"Did you mean {near}?"
            )
        if "=" in word or word.startswith(("-", "~")):
            continue
        if before.endswith("="):
            raise UserError(f"'{before} {word}' is split at the space.", f"Write {before}{word}.")
        known = fields()
        if after and "=" not in after and (find(word, known) or word in GROUPS):
            raise UserError(f"'{word} {after}' is not key=value.", f"Write {word}={after}.")


def _parse_override(word: str, conf: Path) -> Override:
    if "=" not in word and not word.startswith("~"):
        raise _missing_equals(word, conf)
    key, _, value = word.partition("=")
    if key.startswith("-"):
        near = _suggested(key.lstrip("-").replace("-", "_"), value)
        raise UserError(f"{word}: keys are written without dashes.", f"Did you mean {near}?")
    if not key.strip():
        raise UserError(f"'{word}': the key before the equals sign is missing.", "Write key=value.")
    if key != key.strip() or value != value.lstrip():
        raise UserError(f"'{word}' has a space beside the equals sign.", f"Write {key.strip()}={value.strip()}.")
    if word.startswith("~"):
        name = word[1:].partition("=")[0]
        raise UserError(f"{word}: keys are not removed.", f"Set it to null, if it is optional: {name}=null.")
    if value.startswith("~/"):  # shells do not expand it after an equals sign
        value = os.path.expanduser(value)
    field = find(key, fields())
    try:
        parsed = _parse(f"{key}={value}")
        if parsed.is_sweep_override() and field is not None and field.kind == "text":
            raise HydraException
    except HydraException:
        # Hydra's grammar does not accept some (), commas and spaces; quoted, they are part of a text.
        if value.startswith(("[", "{")):
            raise UserError(
                f"{word}: the brackets or quotes do not match.",
                "A list is written [1,2,3], a dictionary {a:1,b:2}; put quotes around the whole word, for the shell.",
            ) from None
        try:
            parsed = _parse(f"{key}={_quoted(value)}")
        except HydraException:
            raise UserError(f"'{word}' cannot be read as key=value.", "Keys are words joined by dots.") from None
    if parsed.is_sweep_override():
        values = [one.strip() for one in value.split(",")]
        cure = f"For a run of each, put -m first: python -m vitlab -m {key}={value}"
        if field is not None and field.kind.startswith("a list"):
            cure = f"Write a list in brackets: {key}=[{','.join(values)}]."
        raise UserError(f"{word} gives several values, and one run takes one.", cure)
    return dataclasses.replace(parsed, input_line=word)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _suggested(name: str, value: str) -> str:
    """The override for an option of another program, or for a key with leading dashes."""
    known = fields()
    if name in GROUPS or find(name, known):
        return f"{name}={value}"
    return _rewritten(name, suggest(name, known) or name, value)


def _rewritten(typed: str, near: str, value: str) -> str:
    """The override of the key ``near`` for ``typed=value``, with a unit if it is a duration."""
    if near == "recipe.duration" and value.isdigit():
        return f"{near}={value}{'st' if 'step' in typed else 'ep'}"
    if near == "hardware":
        return "hardware=cpu" if value == "cpu" else "hardware=gpu"
    return f"{near}={value}"


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _missing_equals(word: str, conf: Path) -> UserError:
    name = word.lstrip("-")
    if name in mode_meanings():
        return UserError(f"'{word}' is not key=value.", f"Did you mean mode={name}?")
    holders = [group for group in GROUPS if name in choices(conf, group)]
    if holders:
        return UserError(f"'{word}' is not key=value.", f"Did you mean {' or '.join(f'{g}={name}' for g in holders)}?")
    if name in GROUPS:
        return UserError(f"'{word}' is not key=value.", f"What can be chosen: mode=list group={name}.")
    if name.startswith("hydra"):
        raise UserError(f"{word}: Hydra's own options are not used here.", "python -m vitlab --help has the options.")
    near = nearest(name, ("help", "version")) if word.startswith("-") else None
    if near:
        return UserError(f"{word} is not an option.", f"Did you mean --{near}?")
    if word.startswith("-"):
        near = _suggested(name.replace("-", "_"), "VALUE")
        return UserError(f"{word}: keys are written without dashes, as key=value.", f"Did you mean {near}?")
    group_of = {one: group for group in reversed(list(GROUPS)) for one in choices(conf, group)}
    near = nearest(name, group_of)
    cure = f"Did you mean {group_of[near]}={near}?" if near else "python -m vitlab --help has examples."
    return UserError(f"'{word}' is not key=value.", cure)


def _is_mount(word: Override) -> bool:
    return word.package is not None


def _check_choice(word: Override, typed: str, conf: Path, output: str) -> None:
    group, value = word.key_or_group, word.value()
    if word.is_add() and not _is_mount(word):
        article = "an" if group[0] in "aeiou" else "a"
        raise UserError(f"{typed}: {article} {group} is chosen, not added.", f"Write it without plus: {group}={value}.")
    names = choices(conf, group)
    of_folder = not _is_mount(word) and names_folders(group, value, names, output)
    if (isinstance(value, str) and value in names) or of_folder:
        return
    if value is None and (_is_mount(word) or group in ("experiment", "local")):
        raise UserError(f"{typed}: a choice cannot be removed so.", "Leave it out.")
    if value is None:
        raise UserError(f"{typed}: a run needs a {group}.", f"There are: {list_names(names)}.")
    if isinstance(value, list) and group == "logger" and value:
        cure = f"Did you mean logger={value[0]} logger.also=[{','.join(map(str, value[1:]))}]?"
        raise UserError(f"{typed}: logger takes one name, and logger.also the others.", cure)
    if not isinstance(value, str):
        either = " or folder" if group in GROUPS_OF_MODELS else ""
        raise UserError(f"{typed}: {group} takes one name{either}.", f"There are: {list_names(names)}.")
    key = typed.partition("=")[0]
    raise UserError(
        f"{typed}: there is no {group} '{value}' ({conf.name}/{group}/{value}.yaml).", _choose(key, value, names)
    )


def _choose(key: str, value: str, names: list[str]) -> str:
    """The cure for an unknown choice: similar names, or all of them."""
    group = key.partition("@")[0]
    similar = [CHOICE_SYNONYMS[value]] if CHOICE_SYNONYMS.get(value) in names else []
    similar = similar or [one for one in names if one.startswith(value)]
    near = nearest(value, names)
    similar = similar or ([near] if near else [one for one in names if value.startswith(one)])
    if similar:
        cure = f"Did you mean {' or '.join(f'{key}={one}' for one in similar[:3])}? "
    else:
        cure = f"There are: {list_names(names)}. " if names else "There are no choices yet. "
    cure += f"What each is: mode=list group={group}."
    if group == "model":
        cure += f" Any timm model can be given by name: model.name={value}."
    return cure + (f" A model of yours: {group}=RUN." if key in GROUPS_OF_MODELS else "")


def _check_mount(word: Override) -> None:
    """Refuse a recipe mounted (recipe@teacher.recipe=x) at a key that is not a recipe of any method."""
    place = str(word.package)
    known = [one for name in method_names() for one in fields(find_method(name).Options)]
    places = sorted(
        {one.removesuffix(".duration") for one in known if one.count(".") > 1 and one.endswith(".duration")}
    )
    if word.key_or_group != "recipe":
        raise UserError(f"{word.input_line}: only recipes are mounted with @.", f"Write {word.key_or_group}=NAME.")
    if place not in places:
        near = nearest(place, places)
        cure = (
            f"Did you mean recipe@{near}={word.value()}?" if near else f"Recipes are at: recipe, {list_names(places)}."
        )
        raise UserError(f"{word.input_line}: '{place}' is not a recipe.", cure)


# ----------------------------------------------------------------------------------------------------------- one key


def _check_key(word: Override, line: str, known: dict[str, Field], conf: Path) -> Override:
    key = word.key_or_group
    plus = "+" * (len(line) - len(line.lstrip("+")))
    value = line.partition("=")[2]
    if word.package is not None:
        raise UserError(
            f"{line}: '{key}' is not a group.", f"Only groups are mounted with @; the groups are: {list_names(GROUPS)}."
        )
    if re.match(r"hydra\b", key):
        raise UserError(f"{line}: Hydra's own settings are not used here.", "Leave it out.")
    if key in ("group", "key"):
        raise UserError(f"{line} is a key of mode=list.", f"Write mode=list {line}.")
    if "/" in key:
        raise UserError(f"{line}: there is no group '{key}'.", f"The groups are: {list_names(GROUPS)}.")
    field = find(key, known)
    if field is None:
        raise unknown_key(f"{plus}{key}={value}", key, value, known, conf)
    if plus and not find(key, {k: v for k, v in known.items() if v.free}):
        raise UserError(f"{line}: {key} exists, so it needs no plus.", f"Write it without plus: {key}={value}.")
    group, _, last = key.rpartition(".")
    if last == "name" and group in GROUPS and GROUPS[group].named:
        raise UserError(f"{line}: this key stores which {group} is chosen.", f"Choose another with {group}={value}.")
    is_null = word.value() is None and field.optional
    if field.branch and not field.free and not is_null and not isinstance(word.value(), (dict, list)):
        if field.kind.startswith("a list"):
            raise UserError(f"{line}: '{value}' is not a list.", f"Write {key}=[{{name:NAME}}], or a member's key.")
        raise _branch(word, field, value, known)
    # OmegaConf takes any whole number as true or false.
    if field.kind == "true or false" and isinstance(word.value(), int) and word.value() not in (0, 1):
        raise UserError(f"{line}: '{value}' is not true or false.", describe_field(field))
    if word.value() == {}:
        raise UserError(f"{line} changes nothing, since its keys are merged.", f"Remove one with {key}.KEY=null.")
    if field.free or (field.key == key and field.kind == "anything" and key not in known):
        return dataclasses.replace(word, type=OverrideType.FORCE_ADD)  # a free dict accepts new keys
    return word


def _branch(word: Override, field: Field, value: str, known: dict[str, Field]) -> UserError:
    below = [one.removeprefix(f"{field.key}.") for one in known if one.startswith(f"{field.key}.")]
    below = [one for one in below if "." not in one]
    if f"{field.key}.duration" in known and "." in field.key:
        return UserError(
            f"{field.key}={value}: {field.key} is a recipe.", f"Choose one with recipe@{field.key}={value}."
        )
    return UserError(f"{field.key}={value}: {field.key} is a group of keys.", f"Give one of them: {list_names(below)}.")


def unknown_key(word: str, key: str, value: str, known: dict[str, Field], conf: Path) -> UserError:
    """The message for an unknown key: the most similar key with its type and help text, or all of its siblings."""
    what = f"{word}: there is no key '{key}'."
    if key in UNNEEDED_KEYS:
        return UserError(what, UNNEEDED_KEYS[key])
    if key.startswith("method.") and (others := _methods_with(key)):
        return UserError(what, f"It belongs to {' and '.join(f'method={one}' for one in others)}.")
    near = _by_choice(key, value, conf) or suggest(key, known)
    parent = key.rpartition(".")[0]
    if parent and not (parent in known and known[parent].branch):
        parent = ""
    siblings = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    if near is None:
        where = f"The keys of {parent} are" if parent else "The top-level keys are"
        return UserError(what, f"{where}: {list_names(siblings, 40)}.")
    if near in GROUPS:
        names = choices(conf, near)
        suggestion = f"{near}={key}" if key in names else _rewritten(key, near, value)
        if near != "hardware" and value not in names and key not in names:
            return UserError(what, _choose(near, value, names))
        return UserError(what, f"Did you mean {suggestion}?")
    field = find(near, known)
    assert field is not None
    index = re.search(r"\.(\d+)\.", key)
    shown = re.sub(r"\.0\.", index[0], near) if index else near
    cure = f"Did you mean {_rewritten(key, shown, value)}? {describe_field(dataclasses.replace(field, key=shown))}"
    if near == "trainer.devices":
        cure = f"Did you mean trainer.devices={value}, with hardware=gpu?"
    group = near.partition(".")[0]
    return UserError(what, f"{cure} All keys of {group}: mode=list key={group}." if "." in near else cure)


def _methods_with(key: str) -> list[str]:
    return [one for one in method_names() if find(key, fields(find_method(one).Options))]


def _by_choice(key: str, value: str, conf: Path) -> str | None:
    """The group with a choice ``value`` and a name similar to ``key``; None if there is none."""
    holders = [group for group in GROUPS if value in choices(conf, group)]
    if SYNONYMS.get(key) in holders:
        return SYNONYMS[key]
    return nearest(key, holders)
