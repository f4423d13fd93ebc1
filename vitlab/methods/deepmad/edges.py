"""Edges of the tabulated programme: one for each choice of a superblock, with its costs and log-width."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from vitlab.methods.deepmad.evaluate import conv_flops, conv_params, unit_flops, unit_params
from vitlab.methods.deepmad.problem import Problem, Space, bottleneck_of
from vitlab.methods.deepmad.structure import Structure

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

STEM_WIDTH = log(27)
"""ln of the stem's width, 3 channels times a 3x3 kernel."""


@dataclass(frozen=True)
class Table:
    """Candidates: of the stem's channels, and of each superblock's outputs, bottlenecks, kernels and depths.

    In depthwise spaces ``narrow`` holds ratios to the output in tenths instead of bottlenecks.
    """

    stem: tuple[int, ...]
    outs: tuple[tuple[int, ...], ...]
    narrow: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    depths: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Edges:
    """Arrays [edges]; the costs of the stem are added to the edges of the first superblock, those of what follows the
    last superblock to the edges of the last."""

    block: Numbers
    into: Numbers
    out: Numbers
    bottleneck: Numbers
    kernel: Numbers
    depth: Numbers
    params: Floats
    flops: Floats
    width: Floats  # sum of ln(width) over the superblock's layers
    latency: Floats | None
    stages: tuple[tuple[int, int], ...]  # of each stage: its last superblock (-1: the stem), the side of its output

    def structure(self, space: Space, path: Numbers) -> Structure:
        """The structure of one edge for each superblock."""
        rows = [(int(self.out[e]), int(self.bottleneck[e]), int(self.kernel[e]), int(self.depth[e])) for e in path]
        return space.build(int(self.into[path[0]]), rows)

    def take(self, selected: Numbers) -> Edges:
        """The edges ``selected``."""
        latency = None if self.latency is None else self.latency[selected]
        rows = (self.block, self.into, self.out, self.bottleneck, self.kernel, self.depth)
        block, into, out, narrow, kernel, depth = (row[selected] for row in rows)
        return Edges(
            block,
            into,
            out,
            narrow,
            kernel,
            depth,
            self.params[selected],
            self.flops[selected],
            self.width[selected],
            latency,
            self.stages,
        )

    def path(self, structure: Structure) -> Numbers:
        """The edges of ``structure`` that the table has."""
        found, into = [], structure.stem.out
        for number, unit in enumerate(structure.blocks):
            here = (self.block == number) & (self.into == into) & (self.out == unit.out) & (self.depth == unit.depth)
            here &= (self.bottleneck == unit.bottleneck) & (self.kernel == unit.kernel)
            found += np.flatnonzero(here).tolist()
            into = unit.out
        return np.array(found, np.int64)

    def width_range(self) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
        """Least and most log-width of a path from the image to each channel count after each superblock."""
        found: list[list[dict[int, float]]] = []
        for best in (min, max):
            levels: list[dict[int, float]] = []
            for block in range(int(self.block.max()) + 1):
                level: dict[int, float] = {}
                for e in np.flatnonzero(self.block == block):
                    into, out = int(self.into[e]), int(self.out[e])
                    if block and into not in levels[-1]:
                        continue
                    value = (levels[-1][into] if block else STEM_WIDTH) + float(self.width[e])
                    level[out] = best(level.get(out, value), value)
                levels.append(level)
            found.append(levels)
        return found[0], found[1]


def edges_of(problem: Problem, table: Table) -> Edges:
    """The edges of a table that lie in the space, without those that another one dominates."""
    space, costs = problem.space, problem.costs
    parts: list[Floats] = []
    side = problem.resolution // 2
    before: tuple[int, ...] = table.stem
    for block, stride in enumerate(space.strides):
        part = _superblock(problem, table, block, before, side, stride)
        side //= stride
        if block == len(space.strides) - 1:
            part[6:8] += _closing(problem, part[2], side)
        part = np.concatenate([part, np.zeros((1, part.shape[1]))])
        if costs is not None:
            part[9] = costs.predict_edges(problem, block, part[:6].astype(np.int64))
        part = part[:, _undominated(part, (6, 7, 9))]
        parts.append(part)
        before = tuple(int(one) for one in np.unique(part[2]))
    full = np.concatenate(parts, 1)
    names = ("block", "into", "out", "bottleneck", "kernel", "depth")
    columns = {name: full[row].astype(np.int64) for row, name in enumerate(names)}
    latency = full[9] if costs is not None else None
    stages = tuple(stages_of(problem))
    return Edges(**columns, params=full[6], flops=full[7], width=full[8], latency=latency, stages=stages)


def _closing(problem: Problem, out: Floats, side: int) -> Floats:
    """Parameters and FLOPs [2, n] of what follows the last superblock: 1x1 convolution and classifier."""
    tail, classes = problem.space.tail, problem.classes
    cost = np.zeros((2, len(out)))
    last = out
    if tail is not None:
        cost[0] += (out + 2) * tail
        cost[1] += (out + 3) * tail * side * side
        last = np.full_like(out, tail)
    if classes is not None:
        cost[0] += (last + 1) * classes
        cost[1] += last * classes
    return cost


def stages_of(problem: Problem) -> list[tuple[int, int]]:
    """Of each stage its last superblock (-1: the stem) and the side of its output, as the mode counts it."""
    space = problem.space
    found, side = [], problem.resolution // 2
    squeezing = problem.scoring.mode == "official" and space.kind == "K1DWSEK1"
    for block, stride in enumerate(space.strides):
        if stride == 2:
            found.append((block - 1, 1 if squeezing and block else side))
        side //= stride
    return [*found, (len(space.strides) - 1, 1 if squeezing else side)]


def _superblock(problem: Problem, table: Table, block: int, before: tuple[int, ...], side: int, stride: int) -> Floats:
    """Edges of one superblock: rows block, into, out, bottleneck, kernel, depth, params, flops, width, latency."""
    space = problem.space
    full = space.kind == "K1KXK1"
    columns: list[tuple[float, ...]] = []
    for into in before:
        # The stem comes with the first superblock.
        stem_params = conv_params(3, into, 3) if block == 0 else 0
        stem_flops = conv_flops(3, into, 3, side) if block == 0 else 0
        for out in table.outs[block]:
            if (space.monotone and out < into) or (space.growth is not None and out > space.growth * into):
                continue
            members = set(space.bottlenecks(out))
            wanted = {bottleneck_of(one, out) for one in table.narrow[block]} if space.ratios else table.narrow[block]
            for b in sorted(members.intersection(wanted)):
                for k in table.kernels[block]:
                    first_p = unit_params(space.kind, into, out, b, k, True)
                    more_p = unit_params(space.kind, out, out, b, k, False)
                    first_f = unit_flops(space.kind, into, out, b, k, stride, side, True)
                    more_f = unit_flops(space.kind, out, out, b, k, 1, side // stride, False)
                    for depth in table.depths[block]:
                        more = depth - 1
                        width = log(into) + more * log(out) + depth * ((2 if full else 1) * log(b) + 2 * log(k))
                        columns.append(
                            (
                                *(block, into, out, b, k, depth),
                                stem_params + first_p + more * more_p,
                                stem_flops + first_f + more * more_f,
                                width,
                            )
                        )
    return np.array(columns, np.float64).reshape(-1, 9).T


def _undominated(part: Floats, costs: tuple[int, ...]) -> NDArray[np.bool_]:
    """Edges for which no other one with the same ends and depth costs no more and is at least as wide."""
    keep = np.ones(part.shape[1], bool)
    groups: dict[tuple[float, ...], list[int]] = {}
    for e in range(part.shape[1]):
        groups.setdefault((part[1, e], part[2, e], part[5, e]), []).append(e)
    for group in groups.values():
        for e in group:
            for other in group:
                no_worse = all(part[row, other] <= part[row, e] for row in costs) and part[8, other] >= part[8, e]
                same = all(part[row, other] == part[row, e] for row in costs) and part[8, other] == part[8, e]
                if other != e and keep[other] and no_worse and not (same and other > e):
                    keep[e] = False
                    break
    return keep
