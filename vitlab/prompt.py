"""The words at the prompt: read, told apart (choices of a group, single keys) and checked before Hydra sees them.

Every mistake that can be found in a word alone is answered here, because here it is known what was typed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from vitlab.config import GROUPS, MODES
from vitlab.errors import UserError, nearest
from vitlab.schema import ELSEWHERE, Field, find, suggest

CHOSEN_BY_NAME = ("method", "dataset", "task", "hardware", "logger", "debug")
"""Groups whose ``name`` says which choice this is, and therefore cannot be overridden by itself."""


def choices_of(conf: Path, group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def top(key: str) -> str:
    """The top-level key that a dotted key, a group, or a mounted group (recipe@teacher.recipe) belongs to."""
    group, _, mount = key.partition("@")
    return (mount or group).partition(".")[0]


def is_choice(word: Override) -> bool:
    """Whether the word chooses a file of a group (model=resnet50) rather than giving one key a value."""
    return word.key_or_group in (*GROUPS, "local") and not isinstance(word.value(), dict)


def read_words(words: list[str], conf: Path) -> list[Override]:
    """Parse the words and check what can be checked without composing: form, groups, choices, repetitions.

    Raises:
        UserError: for the first word that is wrong.
    """
    read = [_read(word, conf) for word in words]
    seen: dict[str, str] = {}
    for word, typed in zip(read, words, strict=True):
        name = word.get_key_element().lstrip("+~")
        if name in seen:
            raise UserError(f"{name} is given twice: {seen[name]} and {typed}.", "Leave one of them out.")
        seen[name] = typed
        if is_choice(word):
            _check_choice(word, typed, conf)
    return read


def check_keys(keyed: list[Override], known: dict[str, Field], conf: Path) -> list[Override]:
    """Check the words that give single keys a value against the known keys; return them as Hydra can apply them.

    Raises:
        UserError: for the first key that does not exist or cannot be set this way.
    """
    return [_check_key(word, str(word.input_line), known, conf) for word in keyed]


def kind_of(field: Field) -> str:
    """``a number, or null: peak learning rate ...``: what a key takes and means, for a message."""
    kind = field.kind + (", or null" if field.optional else "")
    return f"{kind}: {field.meaning}" if field.meaning else kind


def listed(words: Iterable[str], limit: int = 24) -> str:
    """Comma-separated, cut after ``limit`` words (and says so)."""
    every = list(words)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


# ---------------------------------------------------------------------------------------------------------- one word


def _read(word: str, conf: Path) -> Override:
    if "=" not in word and not word.startswith("~"):
        raise _not_a_pair(word, conf)
    key, _, value = word.partition("=")
    if key.startswith("-"):
        raise UserError(f"{word}: options are written without dashes.", f"Write {key.lstrip('-')}={value}.")
    if key != key.strip() or not key.strip():
        cure = f"Write {key.strip()}={value.strip()}." if key.strip() else "Write key=value without spaces."
        raise UserError(f"'{word}': nothing stands left of the equals sign that could be a key.", cure)
    if word.startswith("~"):
        name = word[1:].partition("=")[0]
        raise UserError(f"{word}: keys are not removed.", f"Switch it off instead, where it can be: {name}=null.")
    if value.startswith("~/"):  # shells leave it alone behind an equals sign
        word = f"{key}={os.path.expanduser(value)}"
    try:
        parsed = _parse(word)
    except HydraException:
        # Hydra's grammar has no (), :, or spaces at some places; a person means the text as it stands.
        parsed = None
    if parsed is None:
        if value.strip()[:1] in ("[", "{"):
            raise UserError(
                f"{word}: the brackets or quotes do not match.",
                "A list is written [1,2,3], a dictionary {a:1,b:2}; put quotes around the whole word, for the shell.",
            )
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        try:
            parsed = _parse(f'{key}="{quoted}"')
        except HydraException:
            raise UserError(f"'{word}' cannot be read as key=value.", "Keys are words joined by dots.") from None
    if parsed.is_sweep_override():
        values = [one.strip() for one in value.split(",")]
        raise UserError(
            f"{word} gives several values, and one run takes one.",
            f"Write {key}=[{','.join(values)}] for a list, or start a run for each: {key}={values[0]}, then "
            f"{key}={values[-1]}.",
        )
    return parsed


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _not_a_pair(word: str, conf: Path) -> UserError:
    name = word.lstrip("-")
    if word in ("-m", "--multirun"):
        return UserError(
            f"{word}: one command is one run.", "Start a command for each run, for instance in a shell loop."
        )
    if name in MODES:
        return UserError(f"'{word}' is not key=value.", f"Did you mean mode={name}?")
    holders = [group for group in GROUPS if name in choices_of(conf, group)]
    if holders:
        return UserError(f"'{word}' is not key=value.", f"Did you mean {' or '.join(f'{g}={name}' for g in holders)}?")
    if name in GROUPS:
        return UserError(f"'{word}' is not key=value.", f"What can be chosen: mode=list group={name}.")
    near = nearest(name, ("help", "version")) if word.startswith("-") else None
    cure = (
        f"Did you mean --{near}?"
        if near
        else "Write key=value without spaces, as in model=resnet50; --help shows more."
    )
    return UserError(f"'{word}' is not key=value.", cure)


def _is_mount(word: Override) -> bool:
    return word.package is not None


def _check_choice(word: Override, typed: str, conf: Path) -> None:
    group, value = word.key_or_group, word.value()
    names = choices_of(conf, group)
    if value is None or (isinstance(value, str) and value in names):
        if value is None and group not in ("experiment", "local") and not _is_mount(word):
            raise UserError(f"{typed}: a run needs a {group}.", f"There are: {listed(names)}.")
        return
    if not isinstance(value, str):
        raise UserError(f"{typed}: {group} takes one name.", f"There are: {listed(names)}.")
    where = f"no file {value}.yaml in conf/{group}"
    if not names:
        raise UserError(f"{typed}: there is {where}.", f"The group {group} is empty.")
    near = nearest(value, names) or next((one for one in names if one.startswith(value) or value.startswith(one)), None)
    cure = f"Did you mean {typed.partition('=')[0]}={near}? " if near else ""
    cure += f"There are: {listed(names)} (mode=list group={group} explains them)."
    if group == "model":
        cure += f" Another timm model is taken by its name: model.name={value}."
    raise UserError(f"{typed}: there is {where}.", cure)


# ----------------------------------------------------------------------------------------------------------- one key


def _check_key(word: Override, line: str, known: dict[str, Field], conf: Path) -> Override:
    key = word.key_or_group
    plus = "+" * (len(line) - len(line.lstrip("+")))
    value = line.partition("=")[2]
    if word.package is not None:
        raise UserError(
            f"{line}: '{key}' is no group.", f"Only groups are mounted with @; the groups are: {listed(GROUPS)}."
        )
    if key.partition(".")[0] == "hydra":
        raise UserError(f"{line}: Hydra's own settings are not used here.", "Leave it out.")
    if key in ("group", "key"):
        raise UserError(f"{line} belongs to a list.", f"Write mode=list {line}.")
    field = find(key, known)
    if field is None:
        raise _unknown(key, value, plus, known, conf)
    if plus and not find(key, {k: v for k, v in known.items() if v.free}):
        raise UserError(f"{line}: {key} exists, so it is not added.", f"Write it without plus: {key}={value}.")
    group, _, last = key.rpartition(".")
    if last == "name" and group in CHOSEN_BY_NAME:
        raise UserError(
            f"{line}: the name only tells which {group} was chosen.", f"Choose another with {group}={value}."
        )
    if field.branch and not field.free and not isinstance(word.value(), (dict, list)):
        raise _branch(word, field, value, known)
    if field.key == key and field.kind == "anything" and key not in known:
        return dataclasses.replace(word, type=OverrideType.FORCE_ADD)  # below a free dict any key may be new
    return word


def _branch(word: Override, field: Field, value: str, known: dict[str, Field]) -> UserError:
    below = [one.removeprefix(f"{field.key}.") for one in known if one.startswith(f"{field.key}.")]
    below = [one for one in below if "." not in one]
    if f"{field.key}.duration" in known and isinstance(word.value(), str):
        return UserError(
            f"{field.key}={value}: {field.key} is a recipe.", f"Choose one with recipe@{field.key}={value}."
        )
    if word.value() is None and field.optional:
        return UserError(f"{field.key}=null.", f"Write recipe@{field.key}=null.")
    return UserError(f"{field.key}={value}: {field.key} is a group of keys.", f"Give one of them: {listed(below)}.")


def _unknown(key: str, value: str, plus: str, known: dict[str, Field], conf: Path) -> UserError:
    what = f"{plus}{key}={value}: there is no key '{key}'."
    near = _by_choice(key, value, conf) or suggest(key, known)
    parent = key.rpartition(".")[0]
    if parent and not (parent in known and known[parent].branch):
        parent = ""
    beside = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    if near is None:
        where = f"The keys of {parent} are" if parent else "At the top there are"
        return UserError(what, f"{where}: {listed(beside, 40)}.")
    if near in GROUPS:
        names = choices_of(conf, near)
        fits = value if value in names else nearest(value, names)
        cure = f"Did you mean {near}={fits}?" if fits else f"Did you mean {near}=NAME? There are: {listed(names)}."
        return UserError(what, cure)
    field = find(near, known)
    assert field is not None
    index = re.search(r"\.(\d+)\.", key)
    shown = re.sub(r"\.0\.", index[0], near) if index else near
    cure = f"Did you mean {shown} ({kind_of(field)})?"
    if near == "recipe.duration" and value.isdigit():
        unit = "st" if "step" in key else "ep"
        cure = f"Did you mean recipe.duration={value}{unit}? Durations carry a unit: 90ep, 5000st."
    elif near == "trainer.devices":
        cure = f"Did you mean trainer.devices={value}, with hardware=gpu?"
    top_group = near.partition(".")[0]
    return UserError(what, f"{cure} All keys of {top_group}: mode=list key={top_group}." if "." in near else cure)


def _by_choice(key: str, value: str, conf: Path) -> str | None:
    """The group meant, when the value is one of its choices and the key resembles its name."""
    holders = [group for group in GROUPS if value in choices_of(conf, group)]
    if ELSEWHERE.get(key) in holders:
        return ELSEWHERE[key]
    return nearest(key, holders)
