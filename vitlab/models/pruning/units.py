"""The dependency map of a vision transformer: which slices of which parameters belong to a prunable unit.

Units lie on axes (nvit.md, section 3): the embedding channels, one axis through all blocks because of the residual
connections; and in every block its heads, the query-key channels, the value channels and the neurons of the MLP. Query
and value channels are those of one head; the same channels are removed in all heads of the block.

The map is data: an :class:`Axis` has a :class:`Slice` for every parameter that its units reach into, with the layout of
the units inside that parameter. ``scored`` marks the slices that enter a unit's importance in the official code; the
others are removed with the unit and leave the importance unchanged up to a constant (Q against K and V against the
projection, by the scale invariance of the pair), or are left out there (norms, tokens, positions, classifiers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.pruning.supported import check_supported

Kind = Literal["embedding", "head", "qk", "v", "mlp"]
Scope = Literal["official", "full"]

GROUPS: dict[str, int] = {"embedding": 16, "head": 2, "qk": 8, "v": 8, "mlp": 16}
"""Units that are removed together, by kind of axis, as in the official code."""


@dataclass(frozen=True)
class Slice:
    """Where the units of an axis lie in one parameter.

    Attributes:
        parameter: name in the network.
        scored: whether it enters the importance in the official code.
        view: shape under which the units are one dimension of the parameter, e.g. (3, heads, channels, E) of a fused
            ``qkv.weight`` [3 * heads * channels, E].
        dim: the dimension of ``view`` that counts the units.
        part: (dimension of ``view``, index) to which the slice is restricted, e.g. (0, 1) for K; None: all of it.
    """

    parameter: str
    scored: bool
    view: tuple[int, ...]
    dim: int
    part: tuple[int, int] | None = None

    @property
    def units(self) -> int:
        return self.view[self.dim]

    @property
    def size(self) -> int:
        """Elements of the parameter that belong to one unit."""
        parts = self.view[self.part[0]] if self.part is not None else 1
        return math.prod(self.view) // self.units // parts

    def unfold(self, tensor: Tensor) -> tuple[Tensor, int]:
        """``tensor``, of the parameter's shape, as a view of the slice, and the dimension of the units in it."""
        shaped = tensor.view(self.view)
        if self.part is None:
            return shaped, self.dim
        fixed, index = self.part
        return shaped.select(fixed, index), self.dim - (fixed < self.dim)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values``, elementwise products of the parameter's shape, for each unit: [units]."""
        part, dim = self.unfold(values.contiguous())
        others = [one for one in range(part.ndim) if one != dim]
        return part.sum(others) if others else part  # torch takes no dimensions for all of them

    def gate_(self, parameter: Tensor, gate: Tensor) -> None:
        """Set the units whose gate [units] is false to zero in ``parameter``, in place."""
        self.zero_(parameter, (~gate).nonzero()[:, 0])

    def zero_(self, parameter: Tensor, units: Tensor) -> None:
        """Set the units with the indices ``units`` to zero in ``parameter``, in place."""
        with torch.no_grad():
            part, dim = self.unfold(parameter)
            part.index_fill_(dim, units, 0.0)


@dataclass(frozen=True)
class Axis:
    """Units of one kind that can be removed independently of each other.

    Attributes:
        name: ``embedding``, or ``blocks.<i>.<kind>``.
        block: index of the block; None for the embedding.
        units: how many there are.
        group: how many are removed together.
        slices: all that is removed with a unit.
    """

    name: str
    kind: Kind
    block: int | None
    units: int
    group: int
    slices: tuple[Slice, ...]

    @property
    def groups(self) -> int:
        return -(-self.units // self.group)

    def scored(self, scope: Scope = "official") -> tuple[Slice, ...]:
        """The slices that enter the importance: those of the official code, or all (``full``)."""
        return tuple(one for one in self.slices if one.scored or scope == "full")

    def scores(self, products: Mapping[str, Tensor], scope: Scope = "official") -> Tensor:
        """Signed sum u of weight times gradient over each unit (nvit.md, section 5): [units].

        Args:
            products: weight * gradient by parameter name, of the parameter's shape, at least for :meth:`scored`.

        Raises:
            KeyError: ``products`` lacks a parameter of the scope.
        """
        parts = [one.sum(products[one.parameter]) for one in self.scored(scope)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def find_axes(model: nn.Module, groups: Mapping[str, int] | None = None) -> list[Axis]:
    """The axes of a timm ViT or DeiT, or of a pruned one: the embedding, then heads, QK, V, MLP of each block.

    Args:
        groups: units that are removed together, by kind; kinds that it lacks have :data:`GROUPS`.

    Raises:
        UserError: a network, or a part of it, whose units are not known (:func:`check_supported`), or a group size
            below 1.
    """
    check_supported(model)
    sizes: dict[str, int] = {**GROUPS, **(groups or {})}
    for kind, size in sizes.items():
        if kind not in GROUPS or size < 1:
            raise UserError(f"Groups of {size} units of '{kind}' are not possible.", f"Kinds: {', '.join(GROUPS)}.")
    network: Any = model
    found = _Parameters(model)
    channels = int(network.embed_dim)
    axes: list[Axis] = []

    def add(kind: Kind, block: int | None, units: int, slices: Sequence[Slice | None]) -> None:
        name = kind if block is None else f"blocks.{block}.{kind}"
        present = tuple(one for one in slices if one is not None)
        axes.append(Axis(name, kind, block, units, sizes[kind], present))

    add("embedding", None, channels, _embedding(found, channels, network))
    for number, block in enumerate(network.blocks):
        at, attn = f"blocks.{number}", block.attn
        heads, (qk, v) = attn.num_heads, head_sizes(attn)
        norms = [found.last(f"{at}.attn.{norm}.{item}", qk) for norm in ("q_norm", "k_norm") for item in _AFFINE]
        projection = f"{at}.attn.proj.weight"
        add(
            *("head", number, heads),
            [
                *(found.rows(f"{at}.attn", which, 0, heads, qk, v, scored=True) for which in _QKV),
                found.at(projection, False, (channels, heads, v), 1),
            ],
        )
        add(
            *("qk", number, qk),
            [
                found.rows(f"{at}.attn", ("q", "weight"), 1, heads, qk, v, scored=True),
                found.rows(f"{at}.attn", ("q", "bias"), 1, heads, qk, v, scored=True),
                found.rows(f"{at}.attn", ("k", "weight"), 1, heads, qk, v, scored=False),
                found.rows(f"{at}.attn", ("k", "bias"), 1, heads, qk, v, scored=False),
                *norms,
            ],
        )
        add(
            *("v", number, v),
            [
                found.rows(f"{at}.attn", ("v", "weight"), 1, heads, qk, v, scored=True),
                found.rows(f"{at}.attn", ("v", "bias"), 1, heads, qk, v, scored=True),
                found.at(projection, False, (channels, heads, v), 2),
            ],
        )
        hidden = block.mlp.fc1.out_features
        add(
            *("mlp", number, hidden),
            [
                found.first(f"{at}.mlp.fc1.weight", hidden, scored=True),
                found.first(f"{at}.mlp.fc1.bias", hidden, scored=True),
                found.last(f"{at}.mlp.fc2.weight", hidden),
            ],
        )
    _check_complete(model, axes)
    return axes


def head_sizes(attn: nn.Module) -> tuple[int, int]:
    """Channels of a head for queries and keys, and for values: (QK, V)."""
    module: Any = attn
    return (module.head_dim, module.head_dim) if hasattr(module, "qkv") else (module.qk_dim, module.v_dim)


def apply_gates(model: nn.Module, axes: Sequence[Axis], gates: Sequence[Tensor]) -> None:
    """Set the units whose gate is false to zero in every parameter that they reach into.

    Args:
        gates: one boolean tensor [units] for each of ``axes``.
    """
    parameters = dict(model.named_parameters())
    for axis, gate in zip(axes, gates, strict=True):
        dead = (~gate).nonzero()[:, 0]
        if len(dead):
            for one in axis.slices:
                one.zero_(parameters[one.parameter], dead)


def all_live(axes: Sequence[Axis], device: torch.device | str | None = None) -> list[Tensor]:
    """A gate of ones for each axis."""
    return [torch.ones(axis.units, dtype=torch.bool, device=device) for axis in axes]


def count_live(model: nn.Module, axes: Sequence[Axis], gates: Sequence[Tensor]) -> int:
    """Parameters that are left when the units with a false gate are removed."""
    live = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in model.named_parameters()}
    for axis, gate in zip(axes, gates, strict=True):
        for one in axis.slices:
            part, dim = one.unfold(live[one.parameter])
            part.index_fill_(dim, (~gate.cpu()).nonzero()[:, 0], False)
    return int(sum(int(one.sum()) for one in live.values()))


def table(axes: Sequence[Axis], slices: bool = False) -> str:
    """The axes as text: name, units, units of a group, groups, parameters of a unit.

    Args:
        slices: also list where the units lie in each parameter, with ``*`` where a slice is scored.
    """
    rows = [("axis", "units", "group", "groups", "parameters of a unit")]
    lines: list[list[str]] = [[]]
    for axis in axes:
        weights = sum(one.size for one in axis.slices)
        rows.append((axis.name, str(axis.units), str(axis.group), str(axis.groups), f"{weights:,}"))
        lines.append([_describe(one) for one in axis.slices] if slices else [])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    text: list[str] = []
    for row, below in zip(rows, lines, strict=True):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        text += ["  ".join(cells), *(f"    {line}" for line in below)]
    total = sum(axis.groups for axis in axes)
    return "\n".join([*text, f"{len(axes)} axes, {sum(axis.units for axis in axes):,} units, {total:,} groups"])


def _describe(one: Slice) -> str:
    index = ["unit" if dim == one.dim else ":" for dim in range(len(one.view))]
    if one.part is not None:
        index[one.part[0]] = str(one.part[1])
    shape = " x ".join(map(str, one.view))
    return f"{'*' if one.scored else ' '} {one.parameter} ({shape})[{', '.join(index)}]"


_AFFINE = ("weight", "bias")
_QKV = [(which, item) for which in ("q", "k", "v") for item in _AFFINE]


class _Parameters:
    """Slices of the parameters that a network has; of those that it lacks (a bias), None."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}

    def at(
        self, name: str, scored: bool, view: tuple[int, ...], dim: int, part: tuple[int, int] | None = None
    ) -> Slice | None:
        if name not in self.shapes:
            return None
        assert math.prod(view) == math.prod(self.shapes[name]), (name, view, self.shapes[name])
        return Slice(name, scored, view, dim, part)

    def first(self, name: str, units: int, scored: bool = False) -> Slice | None:
        """Units along the first dimension."""
        return self.at(name, scored, (units, *self.shapes.get(name, (units,))[1:]), 0)

    def last(self, name: str, units: int, scored: bool = False) -> Slice | None:
        """Units along the last dimension."""
        before = self.shapes.get(name, (units,))[:-1]
        return self.at(name, scored, (*before, units), len(before))

    def rows(
        self, attn: str, which: tuple[str, str], dim: int, heads: int, qk: int, v: int, scored: bool
    ) -> Slice | None:
        """Rows of Q, K or V, ordered by (head, channel): the units along ``dim`` of the two; in a fused ``qkv``, whose
        rows are ordered by (Q K V, head, channel), or in a linear layer of its own."""
        letter, item = which
        if f"{attn}.qkv.{item}" in self.shapes:
            name, shape = f"{attn}.qkv.{item}", (3, heads, qk)
            return self.at(name, scored, shape + self.shapes[name][1:], dim + 1, (0, "qkv".index(letter)))
        name = f"{attn}.{letter}.{item}"
        if name not in self.shapes:
            return None
        return self.at(name, scored, (heads, v if letter == "v" else qk, *self.shapes[name][1:]), dim)


def _embedding(found: _Parameters, channels: int, network: Any) -> list[Slice | None]:
    """Slices of the embedding axis in all of the network, those of the official score first."""
    blocks = [f"blocks.{number}" for number in range(len(network.blocks))]
    scored = [found.first(f"patch_embed.proj.{item}", channels, scored=True) for item in _AFFINE]
    for at in blocks:
        inputs = ("attn.qkv", "attn.q", "attn.k", "attn.v", "mlp.fc1")
        scored += [found.last(f"{at}.{layer}.weight", channels, scored=True) for layer in inputs]
        for layer in ("attn.proj", "mlp.fc2"):
            scored += [found.first(f"{at}.{layer}.{item}", channels, scored=True) for item in _AFFINE]
    rest = ["cls_token", "dist_token", "reg_token", "pos_embed", "head.weight", "head_dist.weight"]
    norms = ["patch_embed.norm", "norm_pre", *(f"{at}.norm{number}" for at in blocks for number in (1, 2))]
    rest += [f"{norm}.{item}" for norm in (*norms, "norm", "fc_norm") for item in _AFFINE]
    rest += [f"{at}.ls{number}.gamma" for at in blocks for number in (1, 2)]
    return [*scored, *(found.last(name, channels) for name in rest)]


def _check_complete(model: nn.Module, axes: Sequence[Axis]) -> None:
    """Refuse a network with parameters that are on no axis, besides the biases of its classifiers."""
    claimed = {one.parameter for axis in axes for one in axis.slices} | {"head.bias", "head_dist.bias"}
    if unknown := [name for name, _ in model.named_parameters() if name not in claimed]:
        shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
        raise UserError(
            f"{type(model).__name__} cannot be pruned: it is not known how {shown} depend on its units.",
            "Use a ViT or DeiT of timm.",
        )
