"""The structure of a pruned vision transformer: widths of every block, as data; its size; the published rules.

A structure S = (E; H_i, QK_i, V_i, M_i for each block i) has E embedding channels, H_i heads with QK_i query-key and
V_i value channels each, and M_i neurons in the MLP (NViT, CVPR 2023, arXiv 2110.04869; nvit.md, section 2).
:func:`count_params` and :func:`count_macs` are the counts of nvit.md, section 13; :func:`revit` is the rule of
section 10; :data:`REFERENCE` holds stand-ins for the published networks, whose structures are not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import read_json

WIDTHS = ("heads", "qk", "v", "mlp")
"""The widths of a block, in the order of the fields."""


@dataclass(frozen=True)
class VitStructure:
    """Widths of a vision transformer.

    Attributes:
        embed: embedding channels E.
        heads: of each block.
        qk: channels of a query and of a key, of one head, for each block.
        v: channels of a value, of one head, for each block.
        mlp: neurons of the hidden layer of each block.
        head_dim: head size of the network that it was pruned from: the softmax scale is head_dim^-1/2 whatever ``qk``.

    Raises:
        UserError: a width below 1, or lists of different lengths.
    """

    embed: int
    heads: tuple[int, ...]
    qk: tuple[int, ...]
    v: tuple[int, ...]
    mlp: tuple[int, ...]
    head_dim: int = 64

    def __post_init__(self) -> None:
        lists = {name: getattr(self, name) for name in WIDTHS}
        for name, values in {"embed": (self.embed,), "head_dim": (self.head_dim,), **lists}.items():
            for value in values:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise UserError(f"The structure's {name} has {value!r}, not an integer of at least 1.", _FORM)
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1 or not self.heads:
            found = ", ".join(f"{length} of {name}" for name, length in lengths.items())
            raise UserError(f"The structure has {found}; each needs one number for every block.", _FORM)

    @property
    def depth(self) -> int:
        return len(self.heads)

    @property
    def blocks(self) -> list[tuple[int, int, int, int]]:
        """(heads, QK, V, MLP) of each block."""
        return list(zip(self.heads, self.qk, self.v, self.mlp, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and lists, as :func:`read_structure` takes them."""
        return {name: list(value) if name in WIDTHS else value for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        """A table: a row a block."""
        head = f"{self.embed} embedding channels, softmax scale {self.head_dim}^-1/2"
        rows = [f"{number:5d}{h:7d}{q:6d}{v:6d}{m:7d}" for number, (h, q, v, m) in enumerate(self.blocks)]
        return "\n".join([head, "block  heads    QK     V    MLP", *rows])


_FORM = (
    'A structure is {"embed": 480, "heads": [8, ...], "qk": [40, ...], "v": [64, ...], "mlp": [1312, ...], '
    '"head_dim": 64}, with one number for each block.'
)


def read_structure(given: VitStructure | Mapping[str, Any] | str | Path) -> VitStructure:
    """A structure from its JSON: an object, or the path of a file (:func:`structure_file`).

    A single number stands for every block where another width has a list.

    Raises:
        UserError: no such file, not JSON, unknown or missing keys, or values that are no widths.
    """
    if isinstance(given, VitStructure):
        return given
    found = structure_file(given) if isinstance(given, str | Path) else given
    if not isinstance(found, Mapping):
        raise UserError(f"The structure is a {type(found).__name__}, not an object.", _FORM)
    known = {item.name for item in dataclasses.fields(VitStructure)}
    if unknown := sorted(set(found) - known):
        raise UserError(f"The structure has the unknown key {unknown[0]}.", _FORM)
    if missing := [name for name in ("embed", *WIDTHS) if name not in found]:
        raise UserError(f"The structure lacks {', '.join(missing)}.", _FORM)
    values = dict(found)
    lists = [value for name, value in values.items() if name in WIDTHS and _is_list(value)]
    if not lists:
        raise UserError("The structure has no list, so that its number of blocks is unknown.", _FORM)
    for name in WIDTHS:
        values[name] = tuple(values[name]) if _is_list(values[name]) else (values[name],) * len(lists[0])
    return VitStructure(**values)


def structure_file(path: str | Path) -> Any:
    """The structure that a JSON file holds, unchecked: by itself, or as an argument in a model folder's ``model.json``.

    Raises:
        UserError: no such file, or not JSON.
    """
    path = Path(path).expanduser()
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no structure at '{path}' (model.args.structure).", "Give a JSON file.") from error
    for outer in ("args", "structure"):
        if isinstance(found, dict) and isinstance(found.get(outer), dict | list):
            found = found[outer]
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


# ------------------------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True)
class TokenLayout:
    """What surrounds the blocks; the defaults are those of DeiT, distilled, at 224 px.

    Attributes:
        patches: patch tokens.
        patch_values: values of a patch, channels * side^2.
        prefix: class, distillation and register tokens.
        classifiers: linear heads.
        classes: logits of each.
    """

    patches: int = 196
    patch_values: int = 768
    prefix: int = 2
    classifiers: int = 2
    classes: int = 1000

    @property
    def tokens(self) -> int:
        return self.patches + self.prefix


def count_params(structure: VitStructure, layout: TokenLayout | None = None) -> int:
    """Parameters of a DeiT with ``structure``: biases everywhere, positions for all tokens, no LayerScale.

    With P values of a patch, C classes, N tokens:
    P E + E + prefix E + N E + 2 E + heads (E C + C) + sum_i [4 E + 2 (E H QK + H QK) + E H V + H V + H V E + E + E M +
    M + M E + E] (nvit.md, section 13).
    """
    at, width = layout or TokenLayout(), structure.embed
    total = at.patch_values * width + width + (at.prefix + at.tokens) * width + 2 * width
    total += at.classifiers * (width + 1) * at.classes
    for heads, qk, v, mlp in structure.blocks:
        total += 4 * width + 2 * heads * qk * (width + 1) + heads * v * (width + 1)
        total += (heads * v + 1) * width + (width + 1) * mlp + (mlp + 1) * width
    return total


def count_macs(structure: VitStructure, layout: TokenLayout | None = None) -> int:
    """Multiply-adds of one image, without biases, norms, softmax and GELU (nvit.md, section 13).

    patches P E + heads E C + sum_i of :func:`block_macs`.
    """
    at, width = layout or TokenLayout(), structure.embed
    outside = at.patches * at.patch_values * width + at.classifiers * width * at.classes
    return outside + sum(block_macs(width, *block, tokens=at.tokens) for block in structure.blocks)


def block_macs(embed: int, heads: int, qk: int, v: int, mlp: int, tokens: int) -> int:
    """Multiply-adds of one block: N E (2 H QK + 2 H V) + 2 N E M + N^2 H (QK + V)."""
    return tokens * embed * 2 * heads * (qk + v) + 2 * tokens * embed * mlp + tokens**2 * heads * (qk + v)


# --------------------------------------------------------------------------------------------------- published rules


def revit(embed: int) -> VitStructure:
    """The redistribution rule of ReViT for E embedding channels and 12 blocks (nvit.md, section 10).

    With r = round(0.005 E) and k = round(0.05 E / 8), half to even: heads 10, 2r, 2r, 6 times 4r, 2r, 2r, 10; QK 16k,
    8k, 8k, 6 times 16k, 8k, 8k, 16k; V 64; MLP 3E three times, 6E six times, 3E three times.

    Raises:
        UserError: E so small that r or k is 0.
    """
    r, k = round(0.005 * embed), round(0.05 * embed / 8)
    if r < 1 or k < 1:
        raise UserError(
            f"ReViT's rule gives no heads for {embed} embedding channels: r = round(0.005 E) = {max(r, 0)}.",
            "Use 101 channels or more.",
        )
    heads = (10, 2 * r, 2 * r, *(4 * r,) * 6, 2 * r, 2 * r, 10)
    qk = (16 * k, 8 * k, 8 * k, *(16 * k,) * 6, 8 * k, 8 * k, 16 * k)
    mlp = (*(3 * embed,) * 3, *(6 * embed,) * 6, *(3 * embed,) * 3)
    return VitStructure(embed, heads, qk, (64,) * 12, mlp)


def _reference(embed: int, heads: int, qk: int, mlp: int) -> VitStructure:
    widths = (*(mlp,) * 3, *(2 * mlp,) * 6, *(mlp,) * 3)
    return VitStructure(embed, (heads,) * 12, (qk,) * 12, (64,) * 12, widths)


REFERENCE = {
    "base": _reference(480, 8, 40, 1312),
    "half": _reference(480, 8, 40, 1088),
    "small": _reference(400, 6, 32, 992),
    "tiny": _reference(368, 3, 24, 256),
}
"""Our stand-ins for NViT-B, -H, -S and -T: the published numbers of parameters, multiply-adds and the latency by the
official table, but not the published structures, which are only in the released checkpoints."""
