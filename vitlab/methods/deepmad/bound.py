"""A proven upper bound of the score in the space of ResNet units: Lagrangian relaxation in a branch and bound.

A node fixes intervals of the channels at the ends of the stages and of the depths. There the weights ln(C_s R_s^2) of
the log-widths are at most those of the upper ends, so the objective is a sum over superblocks. The budgets, the
effectiveness of the last stage (by a tangent of the convex D ln(D / rho)) and the depth penalty (by its convex
conjugate) enter with multipliers; what is left separates into a chain over the channels and is maximised exactly by
dynamic programming on the whole grid of 8. Any multipliers give a valid bound; cutting planes look for good ones. A
latency budget and the effectiveness of earlier stages are left out, which makes the bound weaker and no less valid.
"""

from __future__ import annotations

import heapq
import sys
import time
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from vitlab.methods.deepmad.evaluate import least_log_width, penalised
from vitlab.methods.deepmad.problem import GRID, Problem, to_grid
from vitlab.methods.deepmad.programme import penalty_slopes
from vitlab.methods.deepmad.search import Design
from vitlab.training.interrupt import stop_if_asked

Floats = NDArray[np.float64]

NU = 100.0
"""The price of effectiveness is that of so much log-width: then all three prices are of one size."""


@dataclass(frozen=True)
class Node:
    """A part of the space, and the best multipliers known for it.

    Attributes:
        outs: interval of each superblock's output channels, in units of 8.
        depths: interval of each superblock's depth.
        prices: of params, FLOPs (as a share of the budget), effectiveness, and of each depth in the penalty.
        centre: relaxed depths; at their sum the tangent of the effectiveness is taken.
    """

    outs: tuple[tuple[int, int], ...]
    depths: tuple[tuple[int, int], ...]
    prices: tuple[float, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...] = field(default=())  # of the depths over the last steps


class Relaxation:
    """The relaxed programme of one problem.

    Raises:
        ValueError: the space is not that of ResNet units, or the scoring has exponents.
    """

    def __init__(self, problem: Problem) -> None:
        space, budget = problem.space, problem.budget
        if space.kind != "K1KXK1" or space.tail is not None:
            raise ValueError("the bound is for K1KXK1 superblocks without a last convolution")
        if (problem.scoring.channel_exponent, problem.scoring.kernel_exponent) != (1, 1):
            raise ValueError("the bound knows widths without exponents")
        self.problem, self.space, self.scoring = problem, space, problem.scoring
        self.blocks = len(space.strides)
        self.sides = space.sides(problem.resolution)
        self.limits = (float(budget.params or np.inf), float(budget.flops or np.inf))
        # No bottleneck beyond what the budget of parameters pays for alone: k^2 b^2 <= params.
        top = space.out_max // GRID
        if budget.params:
            top = min(top, int((budget.params**0.5) / min(space.kernels_at(self.sides[-1])) / GRID) + 1)
        self.narrow = GRID * np.arange(1, max(1, top) + 1, dtype=np.float64)
        self.stage_ends = [j - 1 for j, stride in enumerate(space.strides) if stride == 2 and j] + [self.blocks - 1]
        alphas = problem.scoring.alphas
        self.alphas = alphas[-len(self.stage_ends) :]
        self.stem_alpha = alphas[0] if len(alphas) > len(self.stage_ends) else 0.0

    def root(self, centre: tuple[float, ...], score: float) -> Node:
        """The whole space."""
        top, reach = self.space.out_max // GRID, self.space.stem[1] // GRID
        outs = []
        for _ in range(self.blocks):
            reach = min(top, reach * self.space.growth) if self.space.growth else top
            outs.append((1, reach))
        depths = tuple((1, self.space.depth_at(j)) for j in range(self.blocks))
        inside = [centre[j] for j in penalised(range(self.blocks), self.scoring.penalty)]
        slopes = penalty_slopes(inside, self.scoring.beta, self.scoring.mode == "paper")
        return Node(tuple(outs), depths, (0.35 * score, 0.1 * score, 0.5 * score, *slopes), centre)

    def weights(self, node: Node) -> tuple[list[float], float]:
        """Most that a unit of log-width of each superblock can weigh, and the constant of the stem."""
        factor = self.scoring.factor
        by_stage = []
        for end, alpha in zip(self.stage_ends, self.alphas, strict=True):
            side = self.sides[end] // self.space.strides[end]
            by_stage.append(alpha * factor * float(np.log(GRID * node.outs[end][1] * side * side)))
        weights = [
            sum(weight for end, weight in zip(self.stage_ends, by_stage, strict=True) if end >= j)
            for j in range(self.blocks)
        ]
        stem = float(np.log(27))
        constant = stem * sum(by_stage)
        if self.stem_alpha:
            constant += self.stem_alpha * factor * stem * float(np.log(self.space.stem[1] * self.sides[0] ** 2))
        return weights, constant

    def bound(self, node: Node, target: float, steps: int = 25, passes: int = 2) -> tuple[float, Node]:
        """A bound of the scores in ``node``, and the node with better multipliers; stops early below ``target``.

        Kelley's cutting planes within a trust region. The weights of the planes are a relaxed solution; its depths
        are where the next pass takes the tangent and the supporting plane, and their spread tells where to branch.
        """
        low, high = (np.array([one[side] for one in node.depths], np.float64) for side in (0, 1))
        prices, centre = np.array(node.prices), np.clip(np.array(node.centre), low, high)
        best, kept = np.inf, node
        for _ in range(passes):
            cuts: list[tuple[float, Floats, Floats, Floats]] = []
            weights = np.ones(1)
            for _ in range(steps):
                value, slope, depths = self._evaluate(node, prices, centre)
                if value == -np.inf:
                    return -np.inf, node
                cuts.append((value, slope, prices, depths))
                if value < best:
                    best, kept = value, replace(node, prices=tuple(prices.tolist()), centre=tuple(centre.tolist()))
                if best <= target:
                    return best, kept
                prices, floor, weights = _next_prices(cuts, 0.1 * abs(target))
                if min(cut[0] for cut in cuts) - floor < 2e-4 * abs(target):
                    break
            table = np.array([cut[3] for cut in cuts])[-len(weights) :]
            mean = weights @ table
            kept = replace(kept, spread=tuple(np.sqrt(weights @ (table - mean) ** 2).tolist()))
            centre = np.clip(mean, low, high)
            prices = np.array(kept.prices)
        return best, replace(kept, centre=tuple(centre.tolist()))

    def _evaluate(self, node: Node, prices: Floats, centre: Floats) -> tuple[float, Floats, Floats]:
        """The bound at these multipliers, its subgradient, and the depths of the maximiser."""
        problem, scoring, rho = self.problem, self.scoring, self.problem.budget.rho
        weights, constant = self.weights(node)
        per_param, per_flop = prices[0] / self.limits[0], prices[1] / self.limits[1]
        nu = float(prices[2]) / NU if rho is not None else 0.0
        total = constant + (prices[0] if np.isfinite(self.limits[0]) else 0.0)
        total += prices[1] if np.isfinite(self.limits[1]) else 0.0
        # Effectiveness: log-width >= D ln(D / rho) >= its tangent at the centre's depth, D = 1 + 3 N.
        depth = 1 + 3 * float(centre.sum())
        tangent = at = 0.0
        if rho is not None:
            tangent = float(np.log(depth / rho)) + 1.0  # derivative by D
            at = least_log_width(depth, rho)  # type: ignore[arg-type]  # any real depth
            total += nu * (float(np.log(27)) - at - tangent * (1 - depth))
        # Penalty Q: at least q L - Q*(q) for every q; only slopes that sum to 0 have a finite conjugate Q*.
        inside = list(penalised(range(self.blocks), scoring.penalty))
        q = (prices[3:] - prices[3:].mean()) * (scoring.beta > 0)
        conjugate, steepest = self._conjugate(q)
        total += conjugate
        plane = np.zeros(self.blocks)
        plane[inside] = q
        stems = np.arange(self.space.stem[0] // GRID, self.space.stem[1] // GRID + 1)
        side = self.sides[0]
        nodes = stems
        c = GRID * stems.astype(np.float64)
        reached = -per_param * 29 * c - per_flop * 30 * c * side * side
        levels, tables = [reached], []
        for j in range(self.blocks):
            lo, hi = node.outs[j]
            outs = np.arange(lo, hi + 1)
            table = self._block(
                j, nodes, outs, weights[j] + nu, per_param, per_flop, 3 * nu * tangent + plane[j], node.depths[j]
            )
            if j == self.blocks - 1 and problem.classes is not None:
                table = table - GRID * outs * problem.classes * (per_param + per_flop)
            whole = reached[:, None] + table
            tables.append((nodes, outs, whole))
            reached = whole.max(0)
            levels.append(reached)
            nodes = outs
        best = float(reached.max())
        if best == -np.inf:
            return -np.inf, np.zeros(len(prices)), centre
        spent, depths = self._spent(node, tables, weights, nu, per_param, per_flop, tangent, plane)
        by_price = [
            1 - spent[0] / self.limits[0] if np.isfinite(self.limits[0]) else 0.0,
            1 - spent[1] / self.limits[1] if np.isfinite(self.limits[1]) else 0.0,
            0.0 if rho is None else (spent[2] - at - tangent * (1 + 3 * depths.sum() - depth)) / NU,
        ]
        by_depth = steepest - depths[inside]
        slope = np.array([*by_price, *(by_depth - by_depth.mean())])
        return float(total) + best, slope, depths

    def _conjugate(self, q: Floats) -> tuple[float, Floats]:
        """max over L of q L - Q(L) for slopes that sum to 0, and the deviations L - mean(L) where it is reached."""
        beta, n = self.scoring.beta, len(q)
        length = float(np.sqrt(q @ q))
        pull = length * n**0.5  # q L <= |q| sqrt(n) std(L)
        if beta == 0 or length == 0:
            return -beta, np.zeros(n)
        if self.scoring.mode == "paper":
            low, high = 0.0, 10.0  # of std, where 2 beta std exp(std^2) = pull
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if 2 * beta * middle * np.exp(middle**2) < pull else (low, middle)
            std = low
            return pull * high - beta * float(np.exp(low**2)), q / length * std * n**0.5
        std = float(np.log(max(pull / beta, 1.0)))
        return pull * std - beta * float(np.exp(std)), q / length * std * n**0.5

    def _parts(
        self, j: int, out: Floats, weight: float, per_param: float, per_flop: float, each: float
    ) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Best kernel [O, B], value of the first unit less its input's part, and of each further unit."""
        space, side = self.space, self.sides[j]
        after = (side // space.strides[j]) ** 2
        o, b = out[:, None], self.narrow[None, :]
        firsts, mores = [], []
        kernels = space.kernels_at(side)
        for k in kernels:
            v = 2 * np.log(b) + 2 * np.log(k)
            dense = k * k * b * b
            params = dense + b * o + 4 * b + 4 * o
            flops = side * side * 3 * b + after * (dense + 3 * b + b * o + 6 * o)
            firsts.append(weight * v - per_param * params - per_flop * flops - each)
            params = 2 * b * o + dense + 4 * b + 2 * o
            flops = after * (2 * b * o + dense + 6 * b + 3 * o)
            mores.append(weight * (np.log(o) + v) - per_param * params - per_flop * flops - each)
        return np.array(kernels), np.array(firsts), np.array(mores)

    def _gains(
        self,
        j: int,
        out: Floats,
        weight: float,
        per_param: float,
        per_flop: float,
        each: float,
        depths: tuple[int, int],
    ) -> Floats:
        """[K, O, B]: value of a superblock less what its input decides; -inf where the bottleneck is not allowed."""
        _, first, more = self._parts(j, out, weight, per_param, per_flop, each)
        gains: Floats = first + np.where(more > 0, (depths[1] - 1) * more, (depths[0] - 1) * more)
        least = np.array([min(to_grid(o * self.space.bottleneck_share), o) for o in out])
        b = self.narrow[None, :]
        gains[:, (b < least[:, None]) | (b > out[:, None])] = -np.inf
        return gains

    def _block(
        self,
        j: int,
        nodes: NDArray[np.int64],
        outs: NDArray[np.int64],
        weight: float,
        per_param: float,
        per_flop: float,
        each: float,
        depths: tuple[int, int],
    ) -> Floats:
        """[I, O]: the best value of superblock ``j`` between every two channel counts."""
        side, space = self.sides[j], self.space
        i, o = GRID * nodes.astype(np.float64)[:, None], GRID * outs.astype(np.float64)[None, :]
        gains = self._gains(j, o[0], weight, per_param, per_flop, each, depths).max(0)
        price = per_param + per_flop * side * side
        found = np.full((len(nodes), len(outs)), -np.inf)
        for number, b in enumerate(self.narrow):
            column = gains[:, number]
            if column.max() > -np.inf:
                np.maximum(found, column[None, :] - price * b * i, out=found)
        after = (side // space.strides[j]) ** 2
        found += weight * np.log(i) - (per_param + per_flop * after) * i * o
        if space.strides[j] == 2:
            found -= per_flop * side * side * i
        wrong = np.zeros(found.shape, bool)
        if space.monotone:
            wrong |= o < i
        if space.growth is not None:
            wrong |= o > space.growth * i
        found[wrong] = -np.inf
        return found

    def _spent(
        self,
        node: Node,
        tables: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]],
        weights: list[float],
        nu: float,
        per_param: float,
        per_flop: float,
        tangent: float,
        plane: Floats,
    ) -> tuple[Floats, Floats]:
        """Params, FLOPs and log-width of the maximiser, and its depths."""
        rows: list[tuple[int, int, int, int]] = []
        at = int(tables[-1][2].max(0).argmax())
        for j in reversed(range(self.blocks)):
            nodes, outs, whole = tables[j]
            before = int(whole[:, at].argmax())
            i, o = GRID * int(nodes[before]), GRID * int(outs[at])
            weight, each = weights[j] + nu, 3 * nu * tangent + float(plane[j])
            out = np.array([float(o)])
            gains = self._gains(j, out, weight, per_param, per_flop, each, node.depths[j])[:, 0]
            price = per_param + per_flop * self.sides[j] ** 2
            k, b = np.unravel_index(int((gains - price * self.narrow * i).argmax()), gains.shape)
            kernels, _, more = self._parts(j, out, weight, per_param, per_flop, each)
            depth = node.depths[j][1 if more[k, 0, b] > 0 else 0]
            rows.append((o, int(self.narrow[b]), int(kernels[k]), depth))
            at, stem = before, i
        structure = self.space.build(stem, rows[::-1])
        found = self.problem.evaluate(structure)
        spent = np.array([found.params, found.flops, found.stages[-1].log_width], np.float64)
        return spent, np.array([row[3] for row in rows[::-1]], np.float64)

    def split(self, node: Node, score: float) -> list[Node]:
        """Two halves of ``node``: of the channels that loosen the weights most, or of the least settled depth."""
        losses = []
        for end, alpha in zip(self.stage_ends, self.alphas, strict=True):
            low, high = node.outs[end]
            share = alpha / max(self.alphas)
            losses.append((share * float(np.log(high / low)) / 10, end))
        loss, end = max(losses)
        widths = [high - low for low, high in node.depths]
        spread = node.spread or tuple(map(float, widths))
        unsettled = [one if width else -1.0 for one, width in zip(spread, widths, strict=True)]
        block = int(np.argmax(unsettled))
        by_depth = unsettled[block] / 40
        if node.outs[end][0] < node.outs[end][1] and (loss > 0.25 * by_depth or unsettled[block] < 0):
            low, high = node.outs[end]
            middle = (low + high) // 2
            halves = ((low, middle), (middle + 1, high))
            return [replace(node, outs=_with(node.outs, end, half)) for half in halves]
        if unsettled[block] < 0:
            return []
        low, high = node.depths[block]
        middle = min(high - 1, max(low, int(node.centre[block])))
        return [replace(node, depths=_with(node.depths, block, half)) for half in ((low, middle), (middle + 1, high))]


def _next_prices(cuts: list[tuple[float, Floats, Floats, Floats]], reach: float) -> tuple[Floats, float, Floats]:
    """Where the planes found so far are lowest, near the best point; how low; and the weights of the planes."""
    slopes = np.array([cut[1] for cut in cuts])
    heights = np.array([float(cut[1] @ cut[2]) - cut[0] for cut in cuts])
    around = min(cuts, key=lambda cut: cut[0])[2]
    width = np.array([reach if number < 3 else 0.02 * reach for number in range(len(around))])
    floor = np.array([0.0 if number < 3 else -np.inf for number in range(len(around))])
    bounds = [*zip(np.maximum(around - width, floor), around + width, strict=True), (None, None)]
    found = linprog(
        [*np.zeros(len(around)), 1.0], A_ub=np.column_stack([slopes, -np.ones(len(cuts))]), b_ub=heights, bounds=bounds
    )
    weights = np.maximum(-found.ineqlin.marginals, 0.0)
    return found.x[:-1], float(found.fun), weights / max(float(weights.sum()), 1e-12)


def _with(rows: tuple[tuple[int, int], ...], at: int, value: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return (*rows[:at], value, *rows[at + 1 :])


def certify(
    problem: Problem,
    design: Design,
    seconds: float,
    quiet: bool = True,
    enough: float = 1e-3,
    parts: int | None = None,
) -> None:
    """Give ``design`` an upper bound, as tight as ``seconds`` allow; stops at a gap of ``enough``.

    ``parts`` stops it after so many parts of the space instead, which does not depend on the machine.

    In spaces that have no such bound a note says so.
    """
    if problem.space.kind != "K1KXK1":
        design.notes.append("No upper bound is known for depthwise spaces.")
        return
    start = spoken = time.monotonic()
    relaxation = Relaxation(problem)
    centre = tuple(float(block.depth) for block in design.structure.blocks)
    root = relaxation.root(centre, abs(design.score))
    best, root = relaxation.bound(root, design.score)
    heap, count, settled = [(-best, 0, root)], 1, design.score
    while heap and time.monotonic() - start < seconds and (parts is None or count < parts):
        stop_if_asked()
        value, _, node = heapq.heappop(heap)
        if -value <= design.score * (1 + enough):
            heapq.heappush(heap, (value, 0, node))
            break
        halves = relaxation.split(node, design.score)
        if not halves:  # a single point of channels and depths: its bound stays as it is
            settled = max(settled, -value)
            continue
        for half in halves:
            found, half = relaxation.bound(half, design.score, 12)
            found = min(found, -value)
            count += 1
            if found > design.score:
                heapq.heappush(heap, (-found, count, half))
        if not quiet and time.monotonic() - spoken > 5:
            spoken = time.monotonic()
            top = max(settled, -heap[0][0] if heap else settled)
            print(f"bound: {top:,.2f} over {design.score:,.2f}, {len(heap):,} parts open", file=sys.stderr, flush=True)
    design.bound = max(settled, -heap[0][0] if heap else settled)
    design.notes.append(f"The bound was found in {time.monotonic() - start:.0f} s over {count:,} parts of the space.")
