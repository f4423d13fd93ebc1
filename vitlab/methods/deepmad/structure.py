"""The structure of a DeepMAD network: a stem, superblocks, and for some a last 1x1 convolution.

A :class:`Structure` is a sequence of units. It is read from and written to JSON and YAML, strictly: every key is
known, every value has its type and range, and nothing is guessed. The official text files (Python literals) are read
with a literal evaluator. The list of plain dicts of :meth:`Structure.to_list` is also what the networks of
``vitlab.models.deepmad`` are built from.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vitlab.errors import UserError, nearest
from vitlab.files import write_json

KINDS = ("K1KXK1", "K1DWK1", "K1DWSEK1")
"""Superblocks of ResNet units, of depthwise units, and of depthwise units with squeeze-and-excitation."""

FORMAT = 1
_CONV_KEYS = ("block", "out", "kernel", "stride")
_SUPER_KEYS = (*_CONV_KEYS, "bottleneck", "depth")


class Conv(NamedTuple):
    """Convolution, batch norm, ReLU."""

    out: int
    kernel: int
    stride: int


class Superblock(NamedTuple):
    """``depth`` units of one kind; the first has the stride, and the output of the previous unit as its input."""

    kind: str
    out: int
    bottleneck: int
    kernel: int
    stride: int
    depth: int


Unit = Conv | Superblock


@dataclass(frozen=True, slots=True)
class Structure:
    """The units of a network in order; the first is the stem, a convolution of the image."""

    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        if not self.units or not isinstance(self.units[0], Conv):
            raise ValueError("a structure starts with a convolution, the stem")

    @property
    def stem(self) -> Conv:
        first = self.units[0]
        assert isinstance(first, Conv)
        return first

    @property
    def blocks(self) -> tuple[Superblock, ...]:
        """The superblocks."""
        return tuple(unit for unit in self.units if isinstance(unit, Superblock))

    @property
    def tail(self) -> Conv | None:
        """The convolution after the last superblock, if there is one."""
        last = self.units[-1]
        return last if isinstance(last, Conv) and len(self.units) > 1 else None

    @property
    def stride(self) -> int:
        """How many times smaller the last output is than the image."""
        total = 1
        for unit in self.units:
            total *= unit.stride
        return total

    def to_list(self) -> list[dict[str, Any]]:
        """Plain dicts, one for each unit: what JSON and YAML hold and networks are built from."""
        return [
            {"block": "conv", "out": unit.out, "kernel": unit.kernel, "stride": unit.stride}
            if isinstance(unit, Conv)
            else {
                "block": unit.kind,
                "out": unit.out,
                "bottleneck": unit.bottleneck,
                "kernel": unit.kernel,
                "stride": unit.stride,
                "depth": unit.depth,
            }
            for unit in self.units
        ]

    @classmethod
    def from_list(cls, units: Sequence[object], where: str = "the structure") -> Structure:
        """The inverse of :meth:`to_list`.

        Raises:
            UserError: naming the unit and the key that is wrong.
        """
        if isinstance(units, str) or not isinstance(units, Sequence) or not units:
            raise UserError(f"{where} is not a list of units.", "Give one dictionary for each unit, the stem first.")
        read = tuple(_unit(unit, f"unit {number} of {where}") for number, unit in enumerate(units))
        if not isinstance(read[0], Conv):
            raise UserError(f"{where} starts with a {read[0].kind}.", "The first unit is the stem: block: conv.")
        return cls(read)

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_json(path, {"format": FORMAT, "units": self.to_list()})

    @classmethod
    def load(cls, path: Path) -> Structure:
        """Read ``.json``, ``.yaml``, or the official ``.txt``.

        Raises:
            UserError: no such file, or something in it is wrong.
        """
        if not path.is_file():
            raise UserError(f"There is no file '{path}'.", "Give a structure as .json, .yaml or the official .txt.")
        text = path.read_text()
        if path.suffix == ".txt":
            return parse_official(text, f"'{path}'")
        try:
            value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"'{path}' cannot be read: {error}.", "It should be JSON or YAML.") from error
        if isinstance(value, dict):
            if value.get("format") != FORMAT or set(value) != {"format", "units"}:
                raise UserError(
                    f"'{path}' has the keys {sorted(value)} and format {value.get('format')}.",
                    f"It should have format: {FORMAT} and units.",
                )
            value = value["units"]
        return cls.from_list(value, f"'{path}'")

    def to_yaml(self) -> str:
        """YAML, one unit a line."""
        lines = (yaml.safe_dump(unit, default_flow_style=True, sort_keys=False, width=200) for unit in self.to_list())
        return f"format: {FORMAT}\nunits:\n" + "".join(f"  - {line}" for line in lines)


def _unit(value: object, where: str) -> Unit:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}, not a dictionary.", f"Its keys are {', '.join(_SUPER_KEYS)}.")
    kind = value.get("block")
    if kind != "conv" and kind not in KINDS:
        near = nearest(str(kind), ("conv", *KINDS))
        raise UserError(
            f"{where} has block: {kind}.", f"Did you mean {near}?" if near else f"There are conv, {', '.join(KINDS)}."
        )
    keys = _CONV_KEYS if kind == "conv" else _SUPER_KEYS
    for key in value:
        if key not in keys:
            raise UserError(f"{where} has a key '{key}'.", f"A {kind} has {', '.join(keys)}.")
    numbers = {key: _number(value.get(key), f"{key} of {where}") for key in keys if key != "block"}
    if numbers["stride"] not in (1, 2):
        raise UserError(f"stride of {where} is {numbers['stride']}.", "It is 1 or 2.")
    if numbers["kernel"] % 2 == 0:
        raise UserError(f"kernel of {where} is {numbers['kernel']}.", "Kernels are odd.")
    return Conv(**numbers) if kind == "conv" else Superblock(kind=str(kind), **numbers)


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where} is {'missing' if value is None else repr(value)}.", "It is an integer from 1.")
    return value


# ------------------------------------------------------------------------------------------------ the official files


_OFFICIAL = {"k": "kernel", "out": "out", "s": "stride", "btn": "bottleneck", "L": "depth"}
_IGNORED = frozenset({"class", "in", "inner_class", "nbitsA", "nbitsW"})


def parse_official(text: str, where: str = "the text") -> Structure:
    """Read ``{'best_structures': [[...]], 'space_arch': 'CnnNet'}`` or the bare list of units, without executing it.

    ``in`` is checked against the unit before; bit widths of quantised searches are not part of a structure.

    Raises:
        UserError: not a Python literal, not a structure of these networks, or several structures.
    """
    try:
        value: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{where} is not a Python literal: {error}.", "Give an official structure file.") from None
    if isinstance(value, dict):
        value = value.get("best_structures")
    if isinstance(value, list) and value and isinstance(value[0], list):
        if len(value) > 1:
            raise UserError(f"{where} holds {len(value)} structures.", "Keep one of them.")
        value = value[0]
    if not isinstance(value, list) or not all(isinstance(unit, dict) and "class" in unit for unit in value):
        raise UserError(f"{where} holds no list of units with a class.", "Give an official structure file.")
    units: list[dict[str, object]] = []
    channels: object = 3
    for number, unit in enumerate(value):
        place = f"unit {number} of {where}"
        name = str(unit["class"])
        kind = name.removeprefix("SuperRes").removeprefix("Conv")
        if unknown := set(unit) - _IGNORED - set(_OFFICIAL):
            raise UserError(f"{place} has keys {sorted(unknown)}.", "These networks do not have them.")
        if name != "ConvKXBNRELU" and (not name.startswith("SuperRes") or kind not in KINDS):
            raise UserError(f"{place} is a {name}.", f"Known are ConvKXBNRELU and SuperRes with {', '.join(KINDS)}.")
        if unit.get("in", channels) != channels:
            raise UserError(f"{place} takes {unit['in']} channels and gets {channels}.", "The file is damaged.")
        channels = unit.get("out")
        plain = {_OFFICIAL[key]: entry for key, entry in unit.items() if key in _OFFICIAL}
        units.append({"block": "conv" if name == "ConvKXBNRELU" else kind, **plain})
    return Structure.from_list(units, where)


def format_official(structure: Structure) -> str:
    """The official text of a structure; :func:`parse_official` reads it."""
    channels, units = 3, []
    for unit in structure.units:
        if isinstance(unit, Conv):
            units.append({"class": "ConvKXBNRELU", "in": channels, "k": unit.kernel, "out": unit.out, "s": unit.stride})
        else:
            units.append(
                {
                    "L": unit.depth,
                    "btn": unit.bottleneck,
                    "class": f"SuperRes{unit.kind}",
                    "in": channels,
                    "inner_class": f"Res{unit.kind}",
                    "k": unit.kernel,
                    "out": unit.out,
                    "s": unit.stride,
                }
            )
        channels = unit.out
    return repr({"best_structures": [units], "space_arch": "CnnNet"}) + "\n"
