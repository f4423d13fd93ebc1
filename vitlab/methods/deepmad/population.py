"""Many structures at once: the formulas of :mod:`vitlab.methods.deepmad.evaluate` over numpy arrays.

A population is an integer array ``genes [1 + 4 B, n]`` of ``n`` structures with ``B`` superblocks: row 0 is the stem,
rows ``1..B`` the output channels, then ``B`` rows each of bottlenecks, kernels and depths. Channels are in units of 8.
In depthwise spaces the bottleneck rows hold the ratio to the output channels in tenths instead, so that the ratio
survives a change of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlab.methods.deepmad.evaluate import Scoring
from vitlab.methods.deepmad.problem import GRID, Problem, Space, bottleneck_of
from vitlab.methods.deepmad.structure import Structure

Floats = NDArray[np.float64]
Genes = NDArray[np.int32]

CHUNK = 4096
"""Structures evaluated at a time, so that the arrays stay in the cache."""

_LOG = np.log(np.maximum(np.arange(1 << 14), 1).astype(np.float64))


@dataclass(frozen=True)
class Scores:
    """Arrays [n], as :class:`~vitlab.methods.deepmad.evaluate.Evaluation` names them."""

    entropy: Floats
    penalty: Floats
    log_rho: Floats
    params: Floats  # integers, which float64 holds exactly
    flops: Floats
    latency: Floats | None

    @property
    def score(self) -> Floats:
        return self.entropy - self.penalty


class Population:
    """Evaluates and encodes the structures of one problem.

    Attributes:
        rows: number of genes, 1 + 4 B.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.space: Space = problem.space
        self.blocks = len(self.space.strides)
        self.rows = 1 + 4 * self.blocks
        self.full = self.space.kind == "K1KXK1"
        self.squeeze = self.space.kind == "K1DWSEK1"

    def encode(self, structures: list[Structure]) -> Genes:
        """Genes [1 + 4 B, n] of structures that lie in the space (their channels at least on the grid).

        Raises:
            ValueError: a structure has other superblocks, or channels off the grid.
        """
        columns = []
        for structure in structures:
            blocks = structure.blocks
            if len(blocks) != self.blocks or any(
                out % GRID for out in (structure.stem.out, *(one.out for one in blocks))
            ):
                raise ValueError("the structure does not lie in the space")
            narrow = [self._narrow(one.out, one.bottleneck) for one in blocks]
            outs = [one.out // GRID for one in blocks]
            kernels, depths = [one.kernel for one in blocks], [one.depth for one in blocks]
            columns.append([structure.stem.out // GRID, *outs, *narrow, *kernels, *depths])
        return np.array(columns, np.int32).T.copy()

    def _narrow(self, out: int, bottleneck: int) -> int:
        if self.full:
            return bottleneck // GRID
        return min(self.space.ratios, key=lambda ratio: abs(bottleneck_of(ratio, out) - bottleneck))

    def decode(self, genes: Genes, column: int) -> Structure:
        """The structure of one column."""
        stem, outs, narrow, kernels, depths = self._split(genes[:, column : column + 1])
        rows = [(int(outs[j][0]), int(narrow[j][0]), int(kernels[j][0]), int(depths[j][0])) for j in range(self.blocks)]
        return self.space.build(int(stem[0]), rows)

    def _split(self, genes: Genes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Genes, Genes]:
        """Channels (not units of 8) of stem, outputs and bottlenecks; kernels, depths."""
        n = self.blocks
        out = genes[1 : 1 + n].astype(np.int64) * GRID
        narrow = genes[1 + n : 1 + 2 * n].astype(np.int64)
        if self.full:
            narrow = narrow * GRID
        else:
            narrow = np.maximum(np.rint(narrow * out / (10 * GRID)), 1).astype(np.int64) * GRID
        return genes[0].astype(np.int64) * GRID, out, narrow, genes[1 + 2 * n : 1 + 3 * n], genes[1 + 3 * n :]

    def evaluate(self, genes: Genes) -> Scores:
        """Scores of every column."""
        parts = [self._evaluate(genes[:, at : at + CHUNK]) for at in range(0, genes.shape[1], CHUNK)]
        if len(parts) == 1:
            return parts[0]
        times = [one.latency for one in parts if one.latency is not None]
        return Scores(
            np.concatenate([one.entropy for one in parts]),
            np.concatenate([one.penalty for one in parts]),
            np.concatenate([one.log_rho for one in parts]),
            np.concatenate([one.params for one in parts]),
            np.concatenate([one.flops for one in parts]),
            np.concatenate(times) if times else None,
        )

    def _evaluate(self, genes: Genes) -> Scores:
        problem, space, scoring = self.problem, self.space, self.problem.scoring
        stem, outs, narrow, kernels, depths = self._split(genes)
        ce, ke = scoring.channel_exponent, scoring.kernel_exponent
        plain = ce == 1 and ke == 1
        side = problem.resolution // 2
        i, i_log = stem.astype(np.float64), _LOG[stem]
        params = 29.0 * i
        flops = 30.0 * side * side * i
        layers: Floats | float = 1.0
        width: Floats | float = _LOG[27]
        weighted: Floats | float = ce * _LOG[3] + 2 * ke * _LOG[3]
        entropy, log_rho = np.zeros_like(i), np.full_like(i, -np.inf)
        stage, counted = 0, side
        for j, stride in enumerate(space.strides):
            if stride == 2:
                stage = self._close(stage, entropy, log_rho, i_log, counted, layers, width, weighted)
            o, b, k, depth = (one[j].astype(np.float64) for one in (outs, narrow, kernels, depths))
            o_log, b_log, k_log = _LOG[outs[j]], _LOG[narrow[j]], _LOG[kernels[j]]
            more = depth - 1
            before, after = float(side * side), float((side // stride) ** 2)
            kk = k * k
            spatial = kk * b * b if self.full else kk * b
            core = spatial + b * o  # weights of the second and third convolution
            ib = i * b
            if self.full:
                io = i * o
                extra = 4 * b + 2 * o
                params += ib + io + 2 * o + core + extra + more * (b * o + core + extra)
                first = before * (ib + 3 * b) + after * (core + 3 * b + 6 * o + io)
                if stride == 2:
                    first += before * i
            else:
                extra = 4 * b + 2 * o
                if self.squeeze:
                    q = 8 * np.maximum(1.0, np.floor(np.rint(b / 4) / 8))
                    extra = extra + 2 * b * q + 2 * q + 2 * b
                params += ib + core + extra + more * (b * o + core + extra)
                first = before * (ib + 3 * b) + after * (core + 3 * b + 3 * o)
                if stride == 2:
                    first += before * np.where(i == o, i, 0.0)
            flops += first + (more * after) * (b * o + core + 6 * b + 3 * o)
            logs = ((2.0 if self.full else 1.0) * depth) * b_log + i_log + more * o_log
            spatial_log = (2 * depth) * k_log
            layers = layers + 3 * depth
            width = width + (logs + spatial_log)
            weighted = width if plain else weighted + ce * logs + ke * spatial_log
            side //= stride
            counted = max(1, counted // stride)
            if scoring.mode == "official" and self.squeeze:
                counted = 1
            i, i_log = o, o_log
        if space.tail is not None:
            tail = float(space.tail)
            params += (i + 2) * tail
            flops += (i + 3) * (tail * side * side)
            layers, width, weighted = layers + 1, width + i_log, weighted + ce * i_log
            i, i_log = np.full_like(i, tail), np.full_like(i_log, _LOG[space.tail])
        self._close(stage, entropy, log_rho, i_log, counted, layers, width, weighted)
        if problem.classes is not None:
            params += (i + 1) * problem.classes
            flops += i * problem.classes
        latency = (
            None if problem.costs is None else problem.costs.predict_many(problem, stem, outs, narrow, kernels, depths)
        )
        return Scores(entropy, self.penalty(depths, scoring), log_rho, params, flops, latency)

    def _close(
        self,
        stage: int,
        entropy: Floats,
        log_rho: Floats,
        channel_log: Floats,
        side: int,
        layers: Floats | float,
        width: Floats | float,
        weighted: Floats | float,
    ) -> int:
        """Add the stage that ends here; returns the number of the next one."""
        scoring = self.problem.scoring
        alpha = scoring.alphas[stage]
        if alpha:
            entropy += (alpha * scoring.factor) * ((channel_log + 2 * np.log(side)) * weighted)
        np.maximum(log_rho, np.log(layers) - width / layers, out=log_rho)
        return stage + 1

    def penalty(self, depths: Genes, scoring: Scoring) -> Floats:
        """Depth penalty [n] of depths [B, n]."""
        rows = depths[-3:] if scoring.penalty == "last3" else depths[1:] if scoring.penalty == "drop_first" else depths
        if scoring.beta == 0 or len(rows) == 0:
            return np.zeros(depths.shape[1])
        table = rows.astype(np.float64)
        centred = table - table.sum(0) / len(table)
        var = np.einsum("jn,jn->n", centred, centred) / len(table)
        spread: Floats = scoring.beta * np.exp(np.minimum(var if scoring.variance else np.sqrt(var), 700.0))
        return spread

    def excess(self, scores: Scores) -> Floats:
        """How far each structure is beyond its budgets: the sum of ln(spent / allowed) where that is positive [n]."""
        budget, total = self.problem.budget, np.zeros_like(scores.params)
        if budget.params is not None:
            total += np.maximum(np.log(scores.params / budget.params), 0.0)
        if budget.flops is not None:
            total += np.maximum(np.log(scores.flops / budget.flops), 0.0)
        if budget.rho is not None:
            total += np.maximum(scores.log_rho - np.log(budget.rho), 0.0)
        if budget.latency is not None and scores.latency is not None:
            total += np.maximum(np.log(scores.latency / budget.latency), 0.0)
        return total
