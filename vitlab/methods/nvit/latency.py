"""The *latency* stage: times of a network's parts on this device, over a grid of their widths (specification 6, 12.2).

A block's latency is that of its attention, a function of (embed, heads, qk, v), plus that of its MLP, of (embed,
mlp): the released table of 9,375 points is additive in the two to 0.3 %, so that two small grids are enough. What is
not in the blocks (patch embedding, positions, last norm, classifier) depends on embed alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial as partial_
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.measure.latency_table import Grid, HeldOut, HeldOutNetwork, LatencyTable, Part, measure_table
from vitlab.measure.timing import Conditions
from vitlab.methods.nvit.gains import NAME, dims_of
from vitlab.methods.nvit.options import LatencyOptions
from vitlab.models.pruning.export import arguments
from vitlab.models.vit_structure import WIDTHS, VitStructure

Dims = Mapping[str, int]

REST = "rest"
"""Name of the grid of what is not in the blocks; its seconds are divided over them."""


def grid_points(full: int, group: int, count: int) -> list[int]:
    """At most ``count`` widths from one group to ``full``, evenly spaced in groups."""
    groups = max(1, full // group)
    places = sorted({round(place) for place in np.linspace(1, groups, min(count, groups))})
    return sorted({min(full, group * place) for place in places} | {full})


def measure(
    network: nn.Module,
    structure: VitStructure,
    groups: Mapping[str, int],
    options: LatencyOptions,
    *,
    device: torch.device,
    partial: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time the parts of ``network`` for all widths up to its own, and random structures to compare with.

    Args:
        network: a timm ViT, for what surrounds the blocks; it is not changed.
        structure: its widths.
        groups: smallest widths, by kind of unit.
        options: batch, precision, points, rounds.
        partial: file from which an interrupted measurement continues.

    Returns:
        Seconds of a block; with ``options.scope`` network, every block has an equal part of the rest of the network.
    """
    net: Any = network
    tokens = int(net.patch_embed.num_patches) + int(net.num_prefix_tokens)
    full = {"embed": structure.embed, **{name: max(getattr(structure, name)) for name in WIDTHS}}
    kinds = {name: kind for kind, name in NAME.items()}
    axes = {
        name: grid_points(width, groups[kinds[name]], options.mlp_points if name == "mlp" else options.points)
        for name, width in full.items()
    }

    def values(embed: int) -> Tensor:
        return torch.randn(options.batch, tokens, embed)

    def images() -> Tensor:
        return torch.randn(options.batch, net.patch_embed.proj.in_channels, *net.patch_embed.img_size)

    def one_block(embed: int, heads: int = 1, qk: int = 1, v: int = 1, mlp: int = 1) -> Any:
        return build_like(network, VitStructure(embed, (heads,), (qk,), (v,), (mlp,), structure.head_dim))

    def attention(dims: Dims) -> tuple[nn.Module, Tensor]:
        made = one_block(**dims).blocks[0]
        return Residual(made.norm1, made.attn, made.ls1), values(dims["embed"])

    def mlp(dims: Dims) -> tuple[nn.Module, Tensor]:
        made = one_block(**dims).blocks[0]
        return Residual(made.norm2, made.mlp, made.ls2), values(dims["embed"])

    def rest(dims: Dims) -> tuple[nn.Module, Tensor]:
        made = one_block(dims["embed"])
        made.blocks = nn.Sequential()
        return made, images()

    parts = {
        "attention": Part({name: axes[name] for name in ("embed", "heads", "qk", "v")}, attention),
        "mlp": Part({name: axes[name] for name in ("embed", "mlp")}, mlp),
    }
    whole = options.scope == "network"
    if whole:
        parts[REST] = Part({"embed": axes["embed"]}, rest)
    draws = np.random.default_rng(0)
    structures = [random_structure(structure, groups, draws) for _ in range(options.held_out)]

    def held_out(one: VitStructure) -> tuple[nn.Module, Tensor]:
        made: Any = build_like(network, one)
        return (made, images()) if whole else (made.blocks, values(one.embed))

    table = measure_table(
        f"a block of {type(network).__name__}, {tokens} tokens",
        parts,
        device=device,
        batch=options.batch,
        precision=options.precision,
        held_out=[HeldOutNetwork(rows_of(one), partial_(held_out, one)) for one in structures],
        rounds=options.rounds,
        partial=partial,
        progress=progress,
    )
    return _share_rest(table, structure.depth) if whole else table


class Residual(nn.Module):
    """x + scale(part(norm(x))): half of a block."""

    def __init__(self, norm: nn.Module, part: nn.Module, scale: nn.Module) -> None:
        super().__init__()
        self.norm, self.part, self.scale = norm, part, scale

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.scale(self.part(self.norm(x)))
        return result


def build_like(network: nn.Module, structure: VitStructure) -> nn.Module:
    """A compact network of ``structure`` with everything else as in ``network``; weights at random."""
    made: nn.Module = timm.create_model("pruned_vit", num_classes=network.num_classes, **arguments(network, structure))
    return made


def _share_rest(table: LatencyTable, depth: int) -> LatencyTable:
    """The table in which each of ``depth`` blocks has an equal part of the rest of the network."""
    grid = table.grids[REST]
    grids = {**table.grids, REST: Grid(grid.axes, grid.seconds / depth, grid.spread)}
    shared = LatencyTable(table.what, table.conditions, table.repeats, table.busy, grids)
    for one in table.held_out:
        shared.held_out.append(HeldOut(one.structure, shared.network_seconds(one.structure), one.measured))
    return shared


def random_structure(full: VitStructure, groups: Mapping[str, int], draws: np.random.Generator) -> VitStructure:
    """A structure whose widths are random numbers of groups, from one to those of ``full``."""

    def width(most: int, kind: str) -> int:
        size = groups[kind]
        return min(most, size * int(draws.integers(1, max(1, most // size) + 1)))

    widths = {
        NAME[kind]: tuple(width(most, kind) for most in getattr(full, NAME[kind]))
        for kind in ("head", "qk", "v", "mlp")
    }
    return VitStructure(width(full.embed, "embedding"), **widths, head_dim=full.head_dim)


def rows_of(structure: VitStructure) -> list[dict[str, int]]:
    """Dimensions of each block."""
    dims = dims_of(structure)
    return [{name: int(values[number]) for name, values in dims.items()} for number in range(structure.depth)]


# ------------------------------------------------------------------------------------------------------------ files


def load_table(path: Path) -> LatencyTable:
    """A latency table of ours, or one of the released code, whose JSON has four levels: embedding, (heads, QK), V, MLP.

    Raises:
        UserError: no such file, or neither.
    """
    value = read_json(path) if path.is_file() else {}
    if isinstance(value, dict) and value and "format" not in value:
        return read_official(value, str(path))
    return LatencyTable.load(path)


def read_official(value: Mapping[str, Any], name: str) -> LatencyTable:
    """The released table: seconds of one block, a batch of 256 on a V100 (specification 6).

    The MLP's width 0 was measured at 1 and is 1 here; a row of zeros at embedding 0 is left out, since nothing is
    pruned to 0 channels.

    Raises:
        UserError: a level or a point is missing, or is no number.
    """
    cells: dict[tuple[int, ...], float] = {}

    def walk(level: Any, place: tuple[int, ...]) -> None:
        if isinstance(level, Mapping):
            for key, below in level.items():
                walk(below, (*place, *(int(digits) for digits in re.findall(r"\d+", str(key)))))
        elif len(place) == 5 and isinstance(level, int | float) and not isinstance(level, bool):
            embed, heads, qk, v, mlp = place
            if embed:
                cells[embed, heads, qk, v, max(1, mlp)] = float(level)
        elif place and place[0]:
            raise ValueError(f"{place}: {level!r}")

    cure = "Its levels are embedding, (heads, QK), V, MLP, its values seconds; method.latency.table=measure makes one."
    try:
        walk(value, ())
        axes = {at: tuple(sorted({cell[number] for cell in cells})) for number, at in enumerate(NAME.values())}
        seconds = np.array([cells[point] for point in product(*axes.values())]).reshape(
            [len(one) for one in axes.values()]
        )
        if not cells or not np.isfinite(seconds).all() or (seconds < 0).any():
            raise ValueError("times that are no seconds")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{name}' is no latency table: {error}.", cure) from error
    grid = Grid(axes, seconds, np.zeros_like(seconds))
    conditions = Conditions("V100 (released table)", 0, 256, "fp16", "eager", False, "", "")
    return LatencyTable("a block of DeiT-B, 198 tokens", conditions, 1, False, {"block": grid})
