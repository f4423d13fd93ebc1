"""Mistakes in the YAML files: the file, the line, what was expected, the nearest name.

Hydra and OmegaConf name neither the file nor the line, so after a failure the files are read once more, with the
positions of their keys, and the one to blame is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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

from vitlab.errors import UserError, nearest
from vitlab.help import choices
from vitlab.prompt import listed, takes
from vitlab.schema import Field, find, suggest


@dataclass(frozen=True)
class Place:
    """Where a key stands in a file."""

    file: Path
    line: int
    value: str

    def __str__(self) -> str:
        return f"{self.file.parent.parent.name}/{self.file.parent.name}/{self.file.name}, line {self.line}"


class Files:
    """The YAML files that a composition is made of, later ones winning."""

    def __init__(self, conf: Path, defaults: list[ResultDefault]) -> None:
        self.conf = conf
        self.defaults = [one for one in defaults if one.config_path and (conf / f"{one.config_path}.yaml").is_file()]

    def entries(self) -> Iterator[tuple[str, Place]]:
        """Every key of every file, dotted and as mounted, with its place."""
        for one in self.defaults:
            path = self.conf / f"{one.config_path}.yaml"
            root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
            if isinstance(root, yaml.MappingNode):
                for key, place in _walk(root, one.package or "", path):
                    if key.partition(".")[0] != "defaults" and ".defaults" not in f".{one.package}.{key}":
                        yield key, place

    def find(self, key: str) -> Place | None:
        """The place that decides about ``key``: the last file that sets it."""
        found = None
        for other, place in self.entries():
            if other == key:
                found = place
        return found


def file_error(error: Exception, files: Files, known: dict[str, Field]) -> UserError | None:
    """What is wrong in the YAML files that explains ``error``; None when they are not to blame."""
    for key, place in files.entries():
        if find(key, known) is None:
            near = suggest(key, known)
            field = find(near, known) if near else None
            last = key.rpartition(".")[2]
            cure = f"Did you mean '{field.key.rpartition('.')[2]}'? {takes(field)}" if field else _beside(key, known)
            return UserError(f"{place}: there is no key '{last}' (it would be {key}).", cure)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return value_error(error, files, known)
    return None


def value_error(error: OmegaConfBaseException, files: Files, known: dict[str, Field]) -> UserError:
    """A value of the wrong type, a broken interpolation or a missing value, and its place in its file."""
    key = re.sub(r"\[(\d+)\]", r".\1", str(error.full_key))
    place, field = files.find(key), find(key, known)
    where = str(place) if place else key
    if isinstance(error, (InterpolationKeyError, InterpolationResolutionError)):
        return interpolation_error(where, error)
    if isinstance(error, MissingMandatoryValue):
        return UserError(f"{key} has no value.", f"Give it one: {key}=VALUE. {takes(field)}" if field else "")
    if field is None:
        message = str(error.msg or error).split("\n")[0]
        return UserError(f"{where}: {message}.", f"What there is: mode=list key={key.partition('.')[0]}.")
    shown = f"'{place.value}'" if place else "the value"
    return UserError(f"{where}: {shown} is not {field.kind.partition(' such as')[0]}.", takes(field))


def interpolation_error(where: str, error: OmegaConfBaseException) -> UserError:
    """A ``${...}`` that leads nowhere."""
    problem = str(error.msg or error).split("\n")[0].rstrip(".")
    problem = re.sub(r".*raised while resolving interpolation: ", "", problem).strip('"')
    problem = re.sub(r"^Interpolation key '(.*)' not found$", r"there is no key '\1' to take a value from", problem)
    return UserError(f"{where}: {problem}.", "Write ${group.key} with a key that exists, or a plain value.")


def yaml_error(error: yaml.YAMLError, conf: Path) -> UserError:
    """A file that is not YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).split("\n")[0]
    if mark is None:
        return UserError(f"A file in {conf.name}/ is not YAML: {problem}.", "Mend it or remove it.")
    path = Path(mark.name)
    place = f"{conf.name}/{path.relative_to(conf)}" if path.is_relative_to(conf) else path.name
    return UserError(
        f"{place}, line {mark.line + 1}: this is not YAML: {problem}.",
        "Check the indentation (spaces, no tabs), the colons and the quotes there.",
    )


def missing_file(missing: str, conf: Path) -> UserError:
    """A defaults list that names a file that is not there; ``missing`` is group/choice."""
    group, _, choice = missing.rpartition("/")
    names = choices(conf, group)
    near = nearest(choice, names)
    pattern = re.compile(rf"[/\s]{re.escape(group)}(@[\w.]+)?:\s*{re.escape(choice)}\s*(#.*)?$")
    for path in sorted(conf.rglob("*.yaml")):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if pattern.search(line) or (path.parent.name == group and line.strip() == f"- {choice}"):
                where = f"{conf.name}/{path.relative_to(conf)}, line {number}: "
                break
        else:
            continue
        break
    else:
        where = ""
    cure = f"Did you mean {near}? " if near else ""
    return UserError(
        f"{where}there is no file {choice}.yaml in {conf.name}/{group or '.'}.", f"{cure}There are: {listed(names)}."
    )


def _beside(key: str, known: dict[str, Field]) -> str:
    parent = key.rpartition(".")[0]
    names = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    return (
        f"The keys there are: {listed(names, 40)}." if names else f"What there is: mode=list key={key.split('.')[0]}."
    )


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
