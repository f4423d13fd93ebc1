"""Messages for mistakes in YAML files: file, line, expected value, most similar name.

Hydra and OmegaConf report neither file nor line, so after an exception the files are parsed again, with the positions
of their keys, to find the mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.default_element import ResultDefault
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from vitlab.compose.overrides import describe_field
from vitlab.compose.schema import Field, find, suggest
from vitlab.config.catalogue import GROUPS, choices
from vitlab.errors import UserError, list_names, nearest


@dataclass(frozen=True)
class Place:
    """Position of a key in a file."""

    file: Path
    line: int
    value: str

    def __str__(self) -> str:
        return f"{_name(self.file)}, line {self.line}"


class Files:
    """The YAML files of a composition, in the order of increasing precedence."""

    def __init__(self, conf: Path, defaults: list[ResultDefault]) -> None:
        self.conf = conf
        self.defaults = [one for one in defaults if one.config_path and (conf / f"{one.config_path}.yaml").is_file()]

    def entries(self) -> Iterator[tuple[str, Place]]:
        """Every key of every file, dotted and with its package, with its position."""
        for one in self.defaults:
            path = self.conf / f"{one.config_path}.yaml"
            root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
            if isinstance(root, yaml.MappingNode):
                for key, place in _walk(root, one.package or "", path):
                    if key.partition(".")[0] != "defaults" and ".defaults" not in f".{one.package}.{key}":
                        yield key, place

    def without_keys(self) -> Iterator[tuple[Path, str]]:
        """Files that are not a mapping, with their package."""
        for one in self.defaults:
            path = self.conf / f"{one.config_path}.yaml"
            root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
            if root is not None and not isinstance(root, yaml.MappingNode):
                yield path, one.package or ""

    def expected_file(self, key: str) -> str | None:
        """The last file whose package is the parent of ``key``."""
        parent = key.rpartition(".")[0]
        files = [one for one in self.defaults if one.package == parent]
        return _name(self.conf / f"{files[-1].config_path}.yaml") if files else None

    def find(self, key: str) -> Place | None:
        """The position of ``key`` in the last file that sets it."""
        last = None
        for other, place in self.entries():
            if other == key:
                last = place
        return last


def file_error(error: Exception, files: Files, known: dict[str, Field]) -> UserError | None:
    """The mistake in the YAML files that caused ``error``; None if there is none."""
    for path, package in files.without_keys():
        return UserError(
            f"{_name(path)}: a file of keys and values is expected, one 'key: value' per line.",
            f"They become {package}.*." if package else "",
        )
    for key, place in files.entries():
        field = find(key, known)
        if field is None:
            return _unknown_in_file(key, place, known)
        if field.branch and place.value not in ("", "null", "{...}", "[...]"):
            cure = f"Choose it in the defaults list (- override /{key}: {place.value}), or set its keys below it."
            return UserError(f"{place}: {key} is a group of keys, not '{place.value}'.", cure)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return value_error(error, files, known)
    return None


def value_error(error: OmegaConfBaseException, files: Files, known: dict[str, Field]) -> UserError:
    """A value of the wrong type, a broken interpolation or a missing value, with its position."""
    key = re.sub(r"\[(\d+)\]", r".\1", str(error.full_key))
    place, field = files.find(key), find(key, known)
    where = str(place) if place else key
    if isinstance(error, (InterpolationKeyError, InterpolationResolutionError)):
        return interpolation_error(where, error)
    if isinstance(error, MissingMandatoryValue):
        expected_file = files.expected_file(key)
        what = f"{expected_file} gives {key} no value." if expected_file else f"{key} has no value."
        return UserError(what, f"Give it one there, or {key}=VALUE. {describe_field(field)}" if field else "")
    if field is None:
        message = str(error.msg or error).split("\n")[0]
        return UserError(f"{where}: {message}.", f"Its keys: mode=list key={key.partition('.')[0]}.")
    shown = f"'{place.value}'" if place else "the value"
    return UserError(f"{where}: {shown} is not {field.kind.partition(' such as')[0]}.", describe_field(field))


def interpolation_error(where: str, error: OmegaConfBaseException) -> UserError:
    """A ``${...}`` that cannot be resolved."""
    problem = str(error.msg or error).split("\n")[0].rstrip(".")
    problem = re.sub(r".*raised while resolving interpolation: ", "", problem).strip('"')
    problem = re.sub(r"^Interpolation key '(.*)' not found$", r"there is no key '\1' to take a value from", problem)
    return UserError(f"{where}: {problem}.", "Write ${group.key} with a key that exists, or a plain value.")


def yaml_error(error: yaml.YAMLError, conf: Path) -> UserError:
    """A file that is not valid YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).split("\n")[0]
    if mark is None:
        return UserError(f"A file in {conf.name}/ is not YAML: {problem}.", "Fix it or remove it.")
    path = Path(mark.name)
    place = f"{conf.name}/{path.relative_to(conf)}" if path.is_relative_to(conf) else path.name
    return UserError(
        f"{place}, line {mark.line + 1}: this is not YAML: {problem}.",
        "Check the indentation (spaces, no tabs), the colons and the quotes there.",
    )


def missing_file(missing: str, conf: Path) -> UserError:
    """A defaults list with a file that does not exist; ``missing`` is group/choice."""
    group, _, choice = missing.rpartition("/")
    base = choice.startswith("_")  # a base of other files, not a choice
    names = sorted(path.stem for path in (conf / group).glob("_*.yaml")) if base else choices(conf, group)
    near = nearest(choice, names)
    place = _search(conf, rf"[/\s]{re.escape(group)}(@[\w.]+)?:\s*{re.escape(choice)}\s*(#.*)?$")
    place = place or _search(conf / group, rf"^(\s*-|defaults:\s*\[)\s*{re.escape(choice)}\s*\]?\s*(#.*)?$")
    return UserError(
        f"{f'{place}: ' if place else ''}there is no file {choice}.yaml in {conf.name}/{group or '.'}.",
        f"Did you mean {near}?" if near else f"There are: {list_names(names)}.",
    )


def defaults_error(error: Exception, conf: Path, typed: Sequence[str]) -> UserError:
    """A defaults list that Hydra refuses; ``typed`` are the overrides, which are searched first."""
    text = " ".join(line.strip() for line in str(error).split("\n") if line.strip())
    if match := re.match(r"(In '.*?': )?Could not override '(.+?)'", text):
        group, _, mount = match[2].partition("@")
        place = _search(conf, rf"override\s+/?{re.escape(match[2])}:")
        if place and not any(word.startswith(f"{match[2]}=") for word in typed):
            near = nearest(group, GROUPS)
            cure = f"Did you mean /{near}?" if near else f"The groups are: {', '.join(GROUPS)}."
            return UserError(f"{place}: there is no '{match[2]}' to override.", cure)
        return UserError(
            f"{match[2]}=...: no {group} is chosen at {mount or group}, so it cannot be overridden.",
            f"Leave it out, or add one: +{match[2]}=NAME.",
        )
    match = re.match(r"Multiple values for ([\w@]+(?:\.\w+)*)", text)
    if match and (place := _search(conf, rf"^\s*-\s*/{re.escape(match[1])}:")):
        return UserError(f"{place}: {match[1]} is already chosen.", f"Write: - override /{match[1]}: NAME.")
    text = re.sub(r"To (append|override).*", "", text).strip()
    return UserError(f"The configuration cannot be composed: {text.rstrip('.')}.", "Groups and choices: mode=list.")


def _unknown_in_file(key: str, place: Place, known: dict[str, Field]) -> UserError:
    group, _, inner = key.partition(".")
    last = key.rpartition(".")[2]
    what = f"{place}: there is no key '{last}'" + (f" (it would be {key})." if last != key else ".")
    if find(inner, known) and group == place.file.parent.name:
        return UserError(what, f"To set {inner} from here, put the line '# @package _global_' first in the file.")
    near = suggest(key, known)
    field = find(near, known) if near else None
    if field is None:
        return UserError(what, _list_siblings(key, known))
    return UserError(what, f"Did you mean '{field.key.rpartition('.')[2]}'? {describe_field(field)}")


def _name(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.parent.name}/{path.name}"


def _search(folder: Path, pattern: str) -> str | None:
    """File and line of the first match in the YAML files under ``folder``."""
    for path in sorted(folder.rglob("*.yaml")):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if re.search(pattern, line):
                return f"{_name(path)}, line {number}"
    return None


def _list_siblings(key: str, known: dict[str, Field]) -> str:
    parent = key.rpartition(".")[0]
    names = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    return f"The keys there are: {list_names(names, 40)}." if names else f"Its keys: mode=list key={key.split('.')[0]}."


def _walk(node: yaml.MappingNode, prefix: str, path: Path) -> Iterator[tuple[str, Place]]:
    for name, value in node.value:
        key = f"{prefix}.{name.value}" if prefix else str(name.value)
        yield key, Place(path, name.start_mark.line + 1, _text(value))
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, key, path)
        elif isinstance(value, yaml.SequenceNode):
            for index, one in enumerate(value.value):
                if isinstance(one, yaml.MappingNode):
                    yield from _walk(one, f"{key}.{index}", path)


def _text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    return "[...]" if isinstance(node, yaml.SequenceNode) else "{...}"
