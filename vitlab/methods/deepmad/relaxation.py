"""Lagrangian relaxation of the programme, for the branch and bound of ``bound.py``.

A node fixes intervals of the channels at the ends of the stages and of the depths. There the entropy's product
ln(C_s R_s^2) S_s is at most ln(C R_s^2) S_s - ln(C / C_s) S, with C the upper end of the channels and S a log-width
that every better solution has (McCormick's envelope); so the objective is a sum over superblocks. The budgets, the
effectiveness of the last stage (by a tangent of the convex D ln(D / rho)) and the depth penalty (by its convex
conjugate) enter with multipliers; the rest separates into a chain over the channels and is maximised exactly by
dynamic programming on the full grid of 8, over every kernel and every bottleneck or ratio (:mod:`.gains`). Any
multipliers give a valid bound; cutting planes search for good ones. The ends of the intervals that no better solution
can reach are cut off. A last 1x1 convolution fixes the channels of the last stage, whose product is linear then. The
effectiveness of earlier stages is left out, which weakens the bound and keeps it valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vitlab.methods.deepmad.edges import stages_of
from vitlab.methods.deepmad.evaluate import least_log_width, penalised
from vitlab.methods.deepmad.gains import Gains, Prices
from vitlab.methods.deepmad.milp_model import penalty_slopes
from vitlab.methods.deepmad.problem import GRID, Problem

Floats = NDArray[np.float64]

NU = 100.0
"""Unit of log-width of the price of effectiveness, so that all three prices have the same magnitude."""


@dataclass(frozen=True)
class Node:
    """A part of the space, and the best multipliers known for it.

    Attributes:
        outs: interval of each superblock's output channels, in units of 8.
        depths: interval of each superblock's depth.
        prices: of params, FLOPs (as a share of the budget), effectiveness, latency if it is limited (as a share), and
            of each depth in the penalty.
        centre: relaxed depths; at their sum the tangent of the effectiveness is taken.
    """

    outs: tuple[tuple[int, int], ...]
    depths: tuple[tuple[int, int], ...]
    prices: tuple[float, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...] = field(default=())  # of the depths over the last steps


@dataclass(frozen=True)
class Chain:
    """The relaxed programme at one set of multipliers.

    Attributes:
        constant: added to every path.
        prices: of each superblock.
        nodes: channels in units of 8, of the stem and after each superblock.
        tables: the best value [I, O] of each superblock between every two channel counts.
        levels: the best value so far, of the stem and after each superblock.
        last: additional value of the outputs [O] of the last superblock.
        depth, tangent, at: where the effectiveness is linear, its slope and value there.
        steepest: deviations of the depths where the conjugate of the penalty is reached.
    """

    constant: float
    prices: list[Prices]
    nodes: list[NDArray[np.int64]]
    tables: list[Floats]
    levels: list[Floats]
    last: Floats
    depth: float
    tangent: float
    at: float
    steepest: Floats


class Relaxation:
    """The relaxed programme of one problem.

    Bounds are of the structures that score more than ``beat``, a score that some structure reaches.

    Raises:
        ValueError: the scoring has exponents.
    """

    def __init__(self, problem: Problem, beat: float = 0.0) -> None:
        space, budget = problem.space, problem.budget
        if (problem.scoring.channel_exponent, problem.scoring.kernel_exponent) != (1, 1):
            raise ValueError("the bound needs widths without exponents")
        self.problem, self.space, self.scoring = problem, space, problem.scoring
        self.beat = beat
        self.blocks = len(space.strides)
        self.sides = space.sides(problem.resolution)
        self.gains = Gains(problem)
        self.limits = (*self.gains.limits, float(budget.latency or np.inf))
        self.priced = 3 if budget.latency is None else 4
        """Prices before those of the depths."""
        stages = [one for one in stages_of(problem) if one[0] >= 0]
        self.stage_ends, self.stage_sides = [end for end, _ in stages], [side for _, side in stages]
        self.last_side = self.sides[-1] // space.strides[-1]
        self.extra = 1 if space.tail is not None else 0
        """Layers after the last superblock."""
        alphas = problem.scoring.alphas
        self.alphas = alphas[-len(self.stage_ends) :]
        self.stem_alpha = alphas[0] if len(alphas) > len(self.stage_ends) else 0.0

    def root(self, centre: tuple[float, ...], score: float) -> Node:
        """The root node: the full space."""
        top, reach = self.space.out_max // GRID, self.space.stem[1] // GRID
        outs = []
        for _ in range(self.blocks):
            reach = min(top, reach * self.space.growth) if self.space.growth else top
            outs.append((1, reach))
        depths = tuple((1, self.space.depth_at(j)) for j in range(self.blocks))
        inside = [centre[j] for j in penalised(range(self.blocks), self.scoring.penalty)]
        slopes = penalty_slopes(inside, self.scoring.beta, self.scoring.variance)
        fixed = (0.35 * score, 0.1 * score, 0.5 * score, *((0.1 * score,) if self.priced == 4 else ()))
        return Node(tuple(outs), depths, (*fixed, *slopes), centre)

    def weights(self, node: Node) -> tuple[list[float], float, float]:
        """Largest weight of a unit of log-width of each superblock, the constant of the stem, and the least log-width
        S_min of the last stage: all log-widths are at most that one, so the score is at most it times their weights."""
        factor = self.scoring.factor
        by_stage = []
        for end, side, alpha in zip(self.stage_ends, self.stage_sides, self.alphas, strict=True):
            channels = GRID * node.outs[end][1]
            if end == self.blocks - 1 and self.space.tail is not None:
                channels = self.space.tail
            by_stage.append(alpha * factor * float(np.log(channels * side * side)))
        weights = [
            sum(weight for end, weight in zip(self.stage_ends, by_stage, strict=True) if end >= j)
            for j in range(self.blocks)
        ]
        stem = float(np.log(27))
        constant = stem * sum(by_stage)
        if self.stem_alpha:
            constant += self.stem_alpha * factor * stem * float(np.log(self.space.stem[1] * self.sides[0] ** 2))
        least = max(0.0, self.beat + self.scoring.beta - constant) / max(sum(by_stage), 1e-9) + stem
        return weights, constant, least

    def evaluate(self, node: Node, prices: Floats, centre: Floats) -> tuple[float, Floats, Floats]:
        """The bound at these multipliers, its subgradient, and the depths of the maximiser."""
        chain = self._chain(node, prices, centre)
        best = float((chain.levels[-1] + chain.last).max())
        if best == -np.inf:
            return -np.inf, np.zeros(len(prices)), centre
        spent, depths = self._spent(node, chain)
        rho, inside = self.problem.budget.rho, list(penalised(range(self.blocks), self.scoring.penalty))
        lines = 1 + self.extra + 3 * depths.sum() - chain.depth
        by_price = [
            1 - spent[0] / self.limits[0] if np.isfinite(self.limits[0]) else 0.0,
            1 - spent[1] / self.limits[1] if np.isfinite(self.limits[1]) else 0.0,
            0.0 if rho is None else (spent[2] - chain.at - chain.tangent * lines) / NU,
            1 - spent[3] / self.limits[2],
        ][: self.priced]
        by_depth = chain.steepest - depths[inside]
        slope = np.array([*by_price, *(by_depth - by_depth.mean())])
        return chain.constant + best, slope, depths

    def _chain(self, node: Node, prices: Floats, centre: Floats) -> Chain:
        """The relaxed programme of ``node`` at these multipliers, as a chain over the channels."""
        scoring, rho = self.scoring, self.problem.budget.rho
        weights, constant, least = self.weights(node)
        per_param, per_flop = prices[0] / self.limits[0], prices[1] / self.limits[1]
        per_ms = prices[3] / self.limits[2] if self.priced == 4 else 0.0
        nu = float(prices[2]) / NU if rho is not None else 0.0
        total = constant + (prices[0] if np.isfinite(self.limits[0]) else 0.0)
        total += prices[1] if np.isfinite(self.limits[1]) else 0.0
        total += prices[3] if self.priced == 4 else 0.0
        # A tangent of a convex function lies below it, so relaxing the constraint to it only enlarges the feasible set.
        # Effectiveness: log-width >= D ln(D / rho) >= its tangent at the centre's depth, D = 1 + 3 N + extra.
        depth = 1 + self.extra + 3 * float(centre.sum())
        tangent = at = 0.0
        if rho is not None:
            tangent = float(np.log(depth / rho)) + 1.0  # derivative by D
            at = least_log_width(depth, rho)  # type: ignore[arg-type]  # any real depth
            total += nu * (float(np.log(27)) - at - tangent * (1 + self.extra - depth))
        # Penalty Q: at least q L - Q*(q) for every q; only slopes that sum to 0 have a finite conjugate Q*.
        inside = list(penalised(range(self.blocks), scoring.penalty))
        q = (prices[self.priced :] - prices[self.priced :].mean()) * (scoring.beta > 0)
        conjugate, steepest = self._conjugate(q)
        plane = np.zeros(self.blocks)
        plane[inside] = q
        each = [3 * nu * tangent + float(slope) for slope in plane]
        prices_of = [
            Prices(weight + nu, per_param, per_flop, per_ms, one) for weight, one in zip(weights, each, strict=True)
        ]
        side = self.sides[0]
        nodes = [np.arange(self.space.stem[0] // GRID, self.space.stem[1] // GRID + 1)]
        c = GRID * nodes[0].astype(np.float64)
        lo, hi = node.outs[-1]
        outs = np.arange(lo, hi + 1)
        last, more = self._closing(outs, least, prices_of[-1])
        total += more
        chain = Chain(float(total + conjugate), prices_of, nodes, [], [], last, depth, tangent, at, steepest)
        stem = -per_param * 29 * c - per_flop * 30 * c * side * side
        if per_ms and self.gains.latencies is not None:
            stem = stem - per_ms * self.gains.latencies.stem(GRID * nodes[0], side)
        chain.levels.append(stem)
        for j, (lo, hi) in enumerate(node.outs):
            outs = np.arange(lo, hi + 1)
            nodes.append(outs)
            chain.tables.append(self.gains.block(j, nodes[j], outs, prices_of[j], node.depths[j]))
            chain.levels.append((chain.levels[j][:, None] + chain.tables[j]).max(0))
        return chain

    def _closing(self, outs: NDArray[np.int64], least: float, prices: Prices) -> tuple[Floats, float]:
        """What follows the last superblock: by its outputs [O], and in any case.

        ``prices`` are the last superblock's; its price of log-width is that of the last 1x1 convolution, too.
        """
        classes, tail, o = self.problem.classes, self.space.tail, GRID * outs
        if tail is None:
            last: Floats = -self.alphas[-1] * self.scoring.factor * least * np.log(outs[-1] / outs)
            if classes is None:
                return last, 0.0
            return last - o * classes * (prices.param + prices.flop), -prices.param * classes  # and its biases
        last = prices.width * np.log(o) - prices.param * (o + 2) * tail
        last -= prices.flop * (o + 3) * tail * self.last_side**2
        if prices.ms and self.gains.latencies is not None:
            last -= prices.ms * self.gains.latencies.tail(tail, self.last_side)[outs]
        if classes is None:
            return last, 0.0
        return last, -prices.param * (tail + 1) * classes - prices.flop * tail * classes

    def trim(self, node: Node) -> Node | None:
        """``node`` without the ends of its intervals whose bound at these multipliers does not exceed ``beat``.

        None where no channels are left.
        """
        chain = self._chain(node, np.array(node.prices), np.array(node.centre))
        after = chain.last  # the best value of the remaining superblocks, by the channels so far
        outs, depths = list(node.outs), list(node.depths)
        for j in reversed(range(self.blocks)):
            kept = chain.nodes[j + 1][chain.constant + chain.levels[j + 1] + after > self.beat]
            if not len(kept):
                return None
            outs[j] = (int(kept[0]), int(kept[-1]))

            def reach(depth: int, j: int = j, after: Floats = after) -> bool:
                """Whether a better solution may have this depth: its best value is convex in it."""
                table = self.gains.block(j, chain.nodes[j], chain.nodes[j + 1], chain.prices[j], (depth, depth))
                best = float((chain.levels[j][:, None] + table + after[None, :]).max())
                return chain.constant + best > self.beat

            depths[j] = _ends(reach, *node.depths[j])
            after = (chain.tables[j] + after[None, :]).max(1)
        return replace(node, outs=tuple(outs), depths=tuple(depths))

    def _conjugate(self, q: Floats) -> tuple[float, Floats]:
        """max over L of q L - Q(L) for slopes that sum to 0, and the deviations L - mean(L) where it is reached."""
        beta, n = self.scoring.beta, len(q)
        # Q depends on the deviations through std alone, so the maximum lies along q: one dimension is left.
        length = float(np.sqrt(q @ q))
        pull = length * n**0.5  # q L <= |q| sqrt(n) std(L)
        if beta == 0 or length == 0:
            return -beta, np.zeros(n)
        if self.scoring.variance:
            low, high = 0.0, 10.0  # of std, where 2 beta std exp(std^2) = pull
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if 2 * beta * middle * np.exp(middle**2) < pull else (low, middle)
            std = low
            return pull * high - beta * float(np.exp(low**2)), q / length * std * n**0.5
        std = float(np.log(max(pull / beta, 1.0)))
        return pull * std - beta * float(np.exp(std)), q / length * std * n**0.5

    def _spent(self, node: Node, chain: Chain) -> tuple[Floats, Floats]:
        """Params, FLOPs, log-width and milliseconds of the maximiser, and its depths."""
        rows: list[tuple[int, int, int, int]] = []
        at = int((chain.levels[-1] + chain.last).argmax())
        for j in reversed(range(self.blocks)):
            before = int((chain.levels[j] + chain.tables[j][:, at]).argmax())
            i, o = GRID * int(chain.nodes[j][before]), GRID * int(chain.nodes[j + 1][at])
            out, prices = np.array([float(o)]), chain.prices[j]
            narrow = self.gains.narrow(j, out, node.depths[j][0])
            gains = self.gains.gains(j, out, narrow, prices, node.depths[j])[:, 0]
            kernels, _, more = self.gains.parts(j, out, narrow, prices)
            narrow = narrow.ravel()
            k, b = np.unravel_index(int((gains - self.gains.entry(j, i, narrow, prices)).argmax()), gains.shape)
            depth = node.depths[j][1 if more[k, 0, b] > 0 else 0]
            rows.append((o, int(narrow[b]), int(kernels[k]), depth))
            at, stem = before, i
        structure = self.space.build(stem, rows[::-1])
        found = self.problem.evaluate(structure)
        took = self.problem.latency(structure) if self.priced == 4 else 0.0
        spent = np.array([found.params, found.flops, found.stages[-1].log_width, took], np.float64)
        return spent, np.array([row[3] for row in rows[::-1]], np.float64)


def _ends(reach: Callable[[int], bool], low: int, high: int) -> tuple[int, int]:
    """The interval without its unreachable ends, by bisection.

    The best value is convex in the depth, so at least one end is reachable and the unreachable depths are an interval.
    """
    if not reach(high):
        inside, outside = low, high
        while outside - inside > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if reach(middle) else (inside, middle)
        return low, inside
    if low < high and not reach(low):
        outside, inside = low, high
        while inside - outside > 1:
            middle = (inside + outside) // 2
            outside, inside = (outside, middle) if reach(middle) else (middle, inside)
        return inside, high
    return low, high
