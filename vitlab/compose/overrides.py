"""The words at the prompt: read, told apart (choices of a group, single keys) and checked before Hydra sees them.

Every mistake that can be found in a word alone is answered here, because here it is known what was typed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from vitlab.compose.schema import ANSWERS, ELSEWHERE, Field, fields, find, suggest
from vitlab.config.catalogue import GROUPS, choices, mode_meanings
from vitlab.errors import UserError, list_names, nearest
from vitlab.methods.base import find_method, method_names

SAME_CHOICE = {"cuda": "gpu", "nvidia": "gpu", "false": "none", "off": "none", "wb": "wandb", "tb": "tensorboard"}
"""What other programs call a choice, and its name here."""


def is_choice(word: Override) -> bool:
    """Whether the word chooses a file of a group (model=resnet50) rather than giving one key a value."""
    return word.key_or_group in (*GROUPS, "local") and not isinstance(word.value(), dict)


def read_words(words: list[str], conf: Path) -> list[Override]:
    """Parse the words and check what can be checked without composing: form, groups, choices, repetitions.

    Raises:
        UserError: for the first word that is wrong.
    """
    _check_spaces(words)
    read = [_read(word, conf) for word in words]
    seen: dict[str, str] = {}
    for word, typed in zip(read, words, strict=True):
        name = word.get_key_element().lstrip("+~")
        if name in seen:
            raise UserError(f"{name} is given twice: {seen[name]} and {typed}.", "Leave one of them out.")
        seen[name] = typed
        if is_choice(word):
            _check_choice(word, typed, conf)
        if is_choice(word) and _is_mount(word):
            _check_mount(word)
    return read


def check_keys(keyed: list[Override], known: dict[str, Field], conf: Path) -> list[Override]:
    """Check the words that give single keys a value against the known keys; return them as Hydra can apply them.

    Raises:
        UserError: for the first key that does not exist or cannot be set this way.
    """
    return [_check_key(word, str(word.input_line), known, conf) for word in keyed]


def describe_field(field: Field) -> str:
    """``recipe.lr takes a number (peak learning rate ...)``, for a message."""
    kind = field.kind + (", or null" if field.optional else "")
    return f"{field.key} takes {kind}" + (f" ({field.meaning})." if field.meaning else ".")


# ---------------------------------------------------------------------------------------------------------- one word


def _check_spaces(words: list[str]) -> None:
    """Refuse ``key = value``, ``key= value`` and ``key value``, which the shell splits into several words."""
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word == "=" or (word.startswith("=") and before and "=" not in before):
            split = " ".join(one for one in (before, word, "" if word[1:] else after) if one)
            raise UserError(f"'{split}' is cut by its spaces.", f"Write {before}={word[1:] or after}.")
        if re.fullmatch(r"--\w[\w.-]*", word) and after and "=" not in after and not after.startswith("-"):
            meant = _meant(word.lstrip("-").replace("-", "_"), after)
            raise UserError(
                f"'{word} {after}': keys are written without dashes, as key=value.", f"Did you mean {meant}?"
            )
        if "=" in word or word.startswith(("-", "~")):
            continue
        if before.endswith("="):
            raise UserError(f"'{before} {word}' is cut by the space.", f"Write {before}{word}.")
        known = fields()
        if after and "=" not in after and (find(word, known) or word in GROUPS):
            raise UserError(f"'{word} {after}' is not key=value.", f"Write {word}={after}.")


def _read(word: str, conf: Path) -> Override:
    if "=" not in word and not word.startswith("~"):
        raise _not_a_pair(word, conf)
    key, _, value = word.partition("=")
    if key.startswith("-"):
        meant = _meant(key.lstrip("-").replace("-", "_"), value)
        raise UserError(f"{word}: keys are written without dashes.", f"Did you mean {meant}?")
    if not key.strip():
        raise UserError(f"'{word}': nothing stands left of the equals sign.", "Write key=value.")
    if key != key.strip() or value != value.lstrip():
        raise UserError(f"'{word}' has a space beside the equals sign.", f"Write {key.strip()}={value.strip()}.")
    if word.startswith("~"):
        name = word[1:].partition("=")[0]
        raise UserError(f"{word}: keys are not removed.", f"Switch it off instead, where it can be: {name}=null.")
    if value.startswith("~/"):  # shells leave it alone behind an equals sign
        value = os.path.expanduser(value)
    field = find(key, fields())
    try:
        parsed = _parse(f"{key}={value}")
        if parsed.is_sweep_override() and field is not None and field.kind == "text":
            raise HydraException
    except HydraException:
        # Hydra's grammar has no place for some (), commas and spaces; in a text they stand for themselves.
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


def _meant(name: str, value: str) -> str:
    """A word that may be meant by an option of another program, or by a key with dashes before it."""
    known = fields()
    if name in GROUPS or find(name, known):
        return f"{name}={value}"
    return _rewritten(name, suggest(name, known) or name, value)


def _rewritten(typed: str, near: str, value: str) -> str:
    """The word that ``typed=value`` becomes under the key ``near``, with the unit that a duration needs."""
    if near == "recipe.duration" and value.isdigit():
        return f"{near}={value}{'st' if 'step' in typed else 'ep'}"
    if near == "hardware":
        return "hardware=cpu" if value == "cpu" else "hardware=gpu"
    return f"{near}={value}"


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _not_a_pair(word: str, conf: Path) -> UserError:
    name = word.lstrip("-")
    if name in mode_meanings():
        return UserError(f"'{word}' is not key=value.", f"Did you mean mode={name}?")
    holders = [group for group in GROUPS if name in choices(conf, group)]
    if holders:
        return UserError(f"'{word}' is not key=value.", f"Did you mean {' or '.join(f'{g}={name}' for g in holders)}?")
    if name in GROUPS:
        return UserError(f"'{word}' is not key=value.", f"What can be chosen: mode=list group={name}.")
    near = nearest(name, ("help", "version")) if word.startswith("-") else None
    if near:
        return UserError(f"{word} is no option.", f"Did you mean --{near}?")
    if word.startswith("-"):
        meant = _meant(name.replace("-", "_"), "VALUE")
        return UserError(f"{word}: keys are written without dashes, as key=value.", f"Did you mean {meant}?")
    every = {one: group for group in reversed(list(GROUPS)) for one in choices(conf, group)}
    near = nearest(name, every)
    cure = f"Did you mean {every[near]}={near}?" if near else "python -m vitlab --help shows how to begin."
    return UserError(f"'{word}' is not key=value.", cure)


def _is_mount(word: Override) -> bool:
    return word.package is not None


def _check_choice(word: Override, typed: str, conf: Path) -> None:
    group, value = word.key_or_group, word.value()
    if word.is_add() and not _is_mount(word):
        article = "an" if group[0] in "aeiou" else "a"
        raise UserError(f"{typed}: {article} {group} is chosen, not added.", f"Write it without plus: {group}={value}.")
    names = choices(conf, group)
    if isinstance(value, str) and value in names:
        return
    if value is None and (_is_mount(word) or group in ("experiment", "local")):
        raise UserError(f"{typed}: a choice cannot be taken back like this.", "Leave the word out.")
    if value is None:
        raise UserError(f"{typed}: a run cannot be without {group}.", f"There are: {list_names(names)}.")
    if not isinstance(value, str):
        raise UserError(f"{typed}: {group} takes one name.", f"There are: {list_names(names)}.")
    key = typed.partition("=")[0]
    raise UserError(
        f"{typed}: there is no {group} '{value}' ({conf.name}/{group}/{value}.yaml).", _choose(key, value, names)
    )


def _choose(key: str, value: str, names: list[str]) -> str:
    """The cure for an unknown choice: the names that are near, or all of them."""
    group = key.partition("@")[0]
    fits = [SAME_CHOICE[value]] if SAME_CHOICE.get(value) in names else []
    fits = fits or [one for one in names if one.startswith(value)]
    near = nearest(value, names)
    fits = fits or ([near] if near else [one for one in names if value.startswith(one)])
    if fits:
        cure = f"Did you mean {' or '.join(f'{key}={one}' for one in fits[:3])}? "
    else:
        cure = f"There are: {list_names(names)}. " if names else "There is none yet. "
    cure += f"What each is: mode=list group={group}."
    return cure + (f" Any timm model is taken by its name: model.name={value}." if group == "model" else "")


def _check_mount(word: Override) -> None:
    """Refuse a recipe that is mounted (recipe@teacher.recipe=x) where no recipe can be, under no method."""
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
            f"Did you mean recipe@{near}={word.value()}?"
            if near
            else f"Recipes stand at: recipe, {list_names(places)}."
        )
        raise UserError(f"{word.input_line}: no recipe can stand at '{place}'.", cure)


# ----------------------------------------------------------------------------------------------------------- one key


def _check_key(word: Override, line: str, known: dict[str, Field], conf: Path) -> Override:
    key = word.key_or_group
    plus = "+" * (len(line) - len(line.lstrip("+")))
    value = line.partition("=")[2]
    if word.package is not None:
        raise UserError(
            f"{line}: '{key}' is no group.", f"Only groups are mounted with @; the groups are: {list_names(GROUPS)}."
        )
    if re.match(r"hydra\b", key):
        raise UserError(f"{line}: Hydra's own settings are not used here.", "Leave it out.")
    if key in ("group", "key"):
        raise UserError(f"{line} belongs to a list.", f"Write mode=list {line}.")
    if "/" in key:
        raise UserError(f"{line}: there is no group '{key}'.", f"The groups are: {list_names(GROUPS)}.")
    field = find(key, known)
    if field is None:
        raise unknown_key(f"{plus}{key}={value}", key, value, known, conf)
    if plus and not find(key, {k: v for k, v in known.items() if v.free}):
        raise UserError(f"{line}: {key} exists, so it is not added.", f"Write it without plus: {key}={value}.")
    group, _, last = key.rpartition(".")
    if last == "name" and group in GROUPS and GROUPS[group].named:
        raise UserError(
            f"{line}: the name only tells which {group} was chosen.", f"Choose another with {group}={value}."
        )
    off = word.value() is None and field.optional
    if field.branch and not field.free and not off and not isinstance(word.value(), (dict, list)):
        if field.kind.startswith("a list"):
            raise UserError(f"{line}: '{value}' is not a list.", f"Write {key}=[{{name:NAME}}], or a member's key.")
        raise _branch(word, field, value, known)
    if word.value() == {}:
        raise UserError(
            f"{line} changes nothing, since keys are added to those there.", f"Switch one off: {key}.KEY=null."
        )
    if field.free or (field.key == key and field.kind == "anything" and key not in known):
        return dataclasses.replace(word, type=OverrideType.FORCE_ADD)  # below a free dict any key may be new
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
    """The answer to a key that there is not: the nearest one, with its kind and meaning, or all beside it."""
    what = f"{word}: there is no key '{key}'."
    if key in ANSWERS:
        return UserError(what, ANSWERS[key])
    if key.startswith("method.") and (others := _methods_with(key)):
        return UserError(what, f"It belongs to {' and '.join(f'method={one}' for one in others)}.")
    near = _by_choice(key, value, conf) or suggest(key, known)
    parent = key.rpartition(".")[0]
    if parent and not (parent in known and known[parent].branch):
        parent = ""
    beside = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    if near is None:
        where = f"The keys of {parent} are" if parent else "At the top there are"
        return UserError(what, f"{where}: {list_names(beside, 40)}.")
    if near in GROUPS:
        names = choices(conf, near)
        meant = f"{near}={key}" if key in names else _rewritten(key, near, value)
        if near != "hardware" and value not in names and key not in names:
            return UserError(what, _choose(near, value, names))
        return UserError(what, f"Did you mean {meant}?")
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
    """The group meant, when the value is one of its choices and the key resembles its name."""
    holders = [group for group in GROUPS if value in choices(conf, group)]
    if ELSEWHERE.get(key) in holders:
        return ELSEWHERE[key]
    return nearest(key, holders)
