"""The tabulated programme in matrices, for HiGHS.

Over edges (see :mod:`vitlab.methods.deepmad.edges`) the design is a path within knapsack rows. The products
ln(C_s R_s^2) S_s become one variable for each stage and channel count; the effectiveness, rho_s <= rho <=> S_s >= D_s
ln(D_s / rho), convex in the integer depth D_s, is exact by the lines through consecutive depths; the penalty, convex
too, is bounded from below by supporting planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csc_array, vstack

from vitlab.methods.deepmad.edges import STEM_WIDTH, Edges
from vitlab.methods.deepmad.evaluate import depth_penalty, least_log_width, penalised
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.structure import Structure

Floats = NDArray[np.float64]
Term = tuple[NDArray[np.int64], NDArray[np.floating[Any]] | float]


@dataclass(frozen=True)
class Programme:
    """Maximise ``constant + values x`` within ``matrix`` and ``0 <= x <= high``; the first columns are the edges."""

    edges: Edges
    values: Floats
    constant: float
    matrix: csc_array
    lower: Floats
    upper: Floats
    high: Floats

    @property
    def count(self) -> int:
        """Number of edges."""
        return len(self.edges.block)


@dataclass(frozen=True)
class Solved:
    """The solution of one table."""

    structure: Structure | None
    bound: float  # of every solution in the table
    edges: int


class _Rows:
    """Sparse rows lower <= a x <= upper."""

    def __init__(self) -> None:
        self.row: list[NDArray[np.int64]] = []
        self.column: list[NDArray[np.int64]] = []
        self.value: list[Floats] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(self, terms: Sequence[Term], lower: float, upper: float) -> None:
        for columns, values in terms:
            self.row.append(np.full(len(columns), len(self.lower)))
            self.column.append(columns)
            self.value.append(np.broadcast_to(np.asarray(values, np.float64), columns.shape))
        self.lower.append(lower)
        self.upper.append(upper)

    def matrix(self, width: int) -> csc_array:
        data = np.concatenate(self.value), (np.concatenate(self.row), np.concatenate(self.column))
        return coo_array(data, shape=(len(self.lower), width)).tocsc()


def build(problem: Problem, edges: Edges, beat: float | None = None) -> Programme:
    """The programme over ``edges``; with ``beat``, of the solutions that score at least so much.

    Raises:
        ValueError: the scoring has exponents.
    """
    space, scoring, budget = problem.space, problem.scoring, problem.budget
    if (scoring.channel_exponent, scoring.kernel_exponent) != (1, 1):
        raise ValueError("the tabulated programme needs widths without exponents")
    count, blocks = len(edges.block), len(space.strides)
    rows, inf = _Rows(), np.inf
    index = [np.flatnonzero(edges.block == block) for block in range(blocks)]
    rows.add([(index[0], 1.0)], 1, 1)
    for block in range(blocks - 1):
        for channels in np.union1d(edges.out[index[block]], edges.into[index[block + 1]]):
            enter = index[block][edges.out[index[block]] == channels]
            leave = index[block + 1][edges.into[index[block + 1]] == channels]
            rows.add([(enter, 1.0), (leave, -1.0)], 0, 0)
    every = np.arange(count)
    for values, limit in (
        (edges.params, budget.params),
        (edges.flops, budget.flops),
        (edges.latency, budget.latency),
    ):
        if limit is not None and values is not None:
            rows.add([(every, values / limit)], -inf, 1)
    # Columns after the edges: y of every stage and channel count, then the penalty.
    gain, constant = np.zeros(count), 0.0
    extra_gain: list[float] = []
    extra_high: list[float] = []
    least, most = edges.width_range()
    for stage, (last, side) in enumerate(edges.stages):
        alpha = scoring.alphas[stage] * scoring.factor
        before = np.flatnonzero(edges.block <= last)
        closing = stage == len(edges.stages) - 1
        widths = edges.width[before]
        if closing and space.tail is not None:  # the tail's own width is ln of the last output
            widths = widths + np.where(edges.block[before] == last, np.log(edges.out[before]), 0.0)
        if budget.rho is not None:
            _rho_rows(rows, edges, before, widths, 1 + (closing and space.tail is not None), budget.rho, last)
        if alpha == 0:
            continue
        if last < 0 or (closing and space.tail is not None):
            if last < 0:  # the stem alone: its channels stand on the first edges
                gain[index[0]] += alpha * np.log(edges.into[index[0]] * side * side) * STEM_WIDTH
            else:
                value = alpha * float(np.log((space.tail or 0) * side * side))
                gain[before] += value * widths
                constant += value * STEM_WIDTH
            continue
        # y_c = S if the stage ends with c channels, else 0.
        nodes = np.unique(edges.out[index[last]])
        y = count + len(extra_gain) + np.arange(len(nodes))
        rows.add([(y, 1.0), (before, -widths)], STEM_WIDTH, STEM_WIDTH)
        for at, channels in zip(y, nodes, strict=True):
            ending = index[last][edges.out[index[last]] == channels]
            # A count that no path reaches (its edges were left out) has no range; its y is 0.
            low, high = least[last].get(int(channels), 0.0), most[last].get(int(channels), 0.0)
            rows.add([(np.array([at]), 1.0), (ending, -high)], -inf, 0)
            rows.add([(np.array([at]), 1.0), (ending, -low)], 0, inf)
            extra_gain.append(alpha * float(np.log(channels * side * side)))
            extra_high.append(high)
    penalty = count + len(extra_gain)
    extra_gain.append(-1.0)
    extra_high.append(inf)
    _penalty_rows(rows, problem, edges, penalty)
    values = np.concatenate([gain, extra_gain])
    if beat is not None:
        unit = max(1.0, abs(beat))
        rows.add([(np.arange(penalty + 1), values / unit)], (beat - constant) / unit, inf)
    return Programme(
        edges,
        values,
        constant,
        rows.matrix(penalty + 1),
        np.array(rows.lower, np.float64),
        np.array(rows.upper, np.float64),
        np.concatenate([np.ones(count), extra_high]),
    )


def solve(problem: Problem, programme: Programme, seconds: float, gap: float, beat: float | None = None) -> Solved:
    """Branch and bound, as far as ``seconds`` allow.

    Args:
        gap: stop when the best solution is proven within this share.
        beat: what the programme was built with; where nothing scores so much, the bound is this.
    """
    count = programme.count
    result = milp(
        -programme.values,
        constraints=LinearConstraint(programme.matrix, programme.lower, programme.upper),
        bounds=Bounds(np.zeros(len(programme.high)), programme.high),
        integrality=(np.arange(len(programme.high)) < count).astype(np.int64),
        options={"time_limit": max(seconds, 1.0), "mip_rel_gap": gap},
    )
    if result.status == 2:
        return Solved(None, -np.inf if beat is None else beat, count)
    bound = np.inf if result.mip_dual_bound is None else programme.constant - result.mip_dual_bound
    if result.x is None:
        return Solved(None, bound, count)
    path = np.flatnonzero(result.x[:count] > 0.5)
    return Solved(programme.edges.structure(problem.space, path[np.argsort(programme.edges.block[path])]), bound, count)


def reduced_costs(programme: Programme, seconds: float) -> Floats | None:
    """Reduced costs of the edges [edges] in the relaxed programme; None where it was not solved in time.

    Edges of small reduced cost are kept when a table is too large for branch and bound.
    """
    equal = programme.lower == programme.upper
    low, high = np.isfinite(programme.lower) & ~equal, np.isfinite(programme.upper) & ~equal
    rows = programme.matrix.tocsr()
    result = linprog(
        -programme.values,
        A_ub=vstack([rows[high], -rows[low]]),
        b_ub=np.concatenate([programme.upper[high], -programme.lower[low]]),
        A_eq=rows[equal],
        b_eq=programme.lower[equal],
        bounds=np.stack([np.zeros(len(programme.high)), programme.high], 1),
        method="highs",
        options={"time_limit": max(seconds, 1.0)},
    )
    if result.status != 0:
        return None
    costs: Floats = result.lower.marginals[: programme.count] + result.upper.marginals[: programme.count]
    return costs


def _rho_rows(
    rows: _Rows,
    edges: Edges,
    before: NDArray[np.int64],
    widths: Floats,
    extra: int,
    rho: float,
    last: int,
) -> None:
    """S >= g(1 + 3 N) by the lines through consecutive integer depths N."""
    if last < 0:
        return
    low = sum(int(edges.depth[edges.block == block].min()) for block in range(last + 1))
    high = sum(int(edges.depth[edges.block == block].max()) for block in range(last + 1))
    depth = edges.depth[before].astype(np.float64)
    for n in range(low, max(high, low + 1)):
        here = least_log_width(extra + 3 * n, rho)
        slope = least_log_width(extra + 3 * (n + 1), rho) - here
        # STEM_WIDTH + sum T >= here + slope (N - n)
        rows.add([(before, widths - slope * depth)], here - slope * n - STEM_WIDTH, np.inf)


def _penalty_rows(rows: _Rows, problem: Problem, edges: Edges, penalty: int) -> None:
    """Supporting planes of the convex penalty at the depths of the table, at most a few hundred of them."""
    scoring = problem.scoring
    blocks = penalised(range(len(problem.space.strides)), scoring.penalty)
    if scoring.beta == 0 or not blocks:
        return
    choices = [np.unique(edges.depth[edges.block == block]).tolist() for block in blocks]
    points = {tuple(d - point[0] for d in point): point for point in product(*choices)}
    variance = scoring.variance
    chosen = sorted(points.values(), key=lambda point: (depth_penalty(point, scoring.beta, variance), point))[:600]
    column = np.array([penalty])
    for point in chosen:
        here = depth_penalty(point, scoring.beta, variance)
        if here > 1e6:
            break
        slopes = penalty_slopes(point, scoring.beta, variance)
        terms: list[Term] = [(column, 1.0)]
        for block, slope in zip(blocks, slopes, strict=True):
            of_block = np.flatnonzero(edges.block == block)
            terms.append((of_block, -slope * edges.depth[of_block]))
        rows.add(terms, here - float(np.dot(slopes, point)), np.inf)


def penalty_slopes(depths: Sequence[float], beta: float, variance: bool) -> list[float]:
    """Gradient of the depth penalty; 0 where all depths are equal, which is a subgradient there."""
    mean = sum(depths) / len(depths)
    var = sum((depth - mean) ** 2 for depth in depths) / len(depths)
    if var == 0:
        return [0.0] * len(depths)
    value = depth_penalty(depths, beta, variance)
    by_depth = 2.0 if variance else 1.0 / var**0.5
    return [value * by_depth * (depth - mean) / len(depths) for depth in depths]
