"""The cost of a network as the sum over its blocks, and what it falls by when one unit is removed (specification 6).

A block has the dimensions embed, heads, qk, v and mlp. Its cost may be seconds (:meth:`LatencyTable.seconds
<vitlab.measure.latency_table.LatencyTable.seconds>`), multiply-adds, or parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vitlab.models.vit_structure import WIDTHS, VitStructure, block_macs

Floats = NDArray[np.float64]
Blocks = Mapping[str, NDArray[np.int64]]
"""Dimensions of all blocks: of each name an array [depth]."""

BlockCost = Callable[[Mapping[str, ArrayLike]], Floats]
"""From dimensions, numbers or arrays of one shape, to the cost of each block."""

NAME = {"embedding": "embed", "head": "heads", "qk": "qk", "v": "v", "mlp": "mlp"}
"""The dimension of a block that a kind of unit is counted by."""


def macs_cost(tokens: int) -> BlockCost:
    """Multiply-adds of a block for one image of ``tokens`` tokens."""

    def cost(dims: Mapping[str, ArrayLike]) -> Floats:
        e, h, q, v, m = (np.asarray(dims[name], float) for name in NAME.values())
        return np.asarray(block_macs(e, h, q, v, m, tokens=tokens))  # type: ignore[arg-type]  # arrays as well

    return cost


def params_cost(dims: Mapping[str, ArrayLike]) -> Floats:
    """Parameters, with biases and two LayerNorms (specification 13)."""
    e, h, q, v, m = (np.asarray(dims[name], float) for name in NAME.values())
    found: Floats = 4 * e + 2 * (e * h * q + h * q) + e * h * v + h * v + h * v * e + e + e * m + m + m * e + e
    return found


def unit_gains(cost: BlockCost, blocks: Blocks, least: Mapping[str, int]) -> dict[str, Floats]:
    """What the cost falls by when one unit is removed: d = cost(.., x, ..) - cost(.., x - 1, ..).

    Args:
        least: by kind, the number of units at and below which there is nothing to gain, since the last group of an
            axis stays. The official code has none for the embedding.

    Returns:
        By kind of unit: for ``embedding`` one number in an array [1], the sum over the blocks; for the others [depth].
    """
    now = cost(blocks)
    gains = {}
    for kind, name in NAME.items():
        free = blocks[name] > least.get(kind, 0)
        found = np.where(free, now - cost({**blocks, name: np.where(free, blocks[name] - 1, blocks[name])}), 0.0)
        gains[kind] = found.sum(keepdims=True) if kind == "embedding" else found
    return gains


def adjust(scores: Sequence[Tensor], gains: Sequence[float], eta: float) -> list[Tensor]:
    """B = A - eta d for every unit of every axis, of pruned ones too.

    Args:
        scores: A of each axis [units].
        gains: d of each axis.
        eta: importance per unit of cost.
    """
    return [one - eta * gain for one, gain in zip(scores, gains, strict=True)]


def relative_eta(scores: Sequence[Tensor], gates: Sequence[Tensor], gains: Sequence[float], eta: float) -> float:
    """``eta`` times the importance of all live units over what all of them cost; 0 where nothing is to be gained.

    With eta = 1 the two terms of B weigh the same over the whole network, whatever the scale of the loss, whose square
    is in A, and the speed of the device. The published 5e-4 is for one loss and one table.
    """
    importance = sum(float(one[gate].sum()) for one, gate in zip(scores, gates, strict=True))
    cost = sum(gain * int(gate.sum()) for gain, gate in zip(gains, gates, strict=True))
    return eta * importance / cost if cost > 0 else 0.0


def dims_of(structure: VitStructure) -> dict[str, NDArray[np.int64]]:
    """Dimensions of the blocks of a structure, arrays [depth]."""
    found = {name: np.array(getattr(structure, name)) for name in WIDTHS}
    return {"embed": np.full(structure.depth, structure.embed), **found}
