"""The programme itself, tabulated, for a mixed-integer solver (HiGHS, in SciPy).

With ``u = ln out + 2 ln b + 2 ln k`` the sum of ln(width) telescopes over a superblock, so parameters, FLOPs, depth
and log-width are constants of an edge ``(superblock, c_in, c_out, bottleneck, kernel, depth)``. Over a small table of
candidates the design is a path of edges within knapsack rows; the products ln(C_s R_s^2) S_s become one variable for
each stage and channel count; the effectiveness, rho_s <= rho <=> S_s >= D_s ln(D_s / rho), convex in the whole depth
D_s, is exact by the lines through consecutive depths; the penalty is bounded from below by supporting planes.

A table is solved, re-centred on what came out and narrowed (rounds); what a round proves, it proves for its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from vitlab.methods.deepmad.anneal import polish
from vitlab.methods.deepmad.edges import STEM_WIDTH, Edges, Table, edges_of
from vitlab.methods.deepmad.evaluate import depth_penalty, least_log_width, penalised
from vitlab.methods.deepmad.evolution import EvolutionSettings, evolve, find_start
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import GRID, Problem, to_grid
from vitlab.methods.deepmad.search import Design, Search
from vitlab.methods.deepmad.structure import Structure

Floats = NDArray[np.float64]
Term = tuple[NDArray[np.int64], NDArray[np.floating[Any]] | float]


@dataclass(frozen=True)
class MilpSettings:
    """Rounds of the zoom.

    Attributes:
        seed_evaluations: of the evolution that gives the centre of the first table.
        factors: of each round, what the centre's channels, bottlenecks and depths are multiplied with besides 1.
        round_seconds: most seconds of one round; the best table solution by then is taken.
        gap: share of the objective within which a round is taken as solved.
        enough: a round that improves the score by less than this share makes the next table narrower.
        polish: add exhaustive moves of up to this many variables after each round; 0: none.
    """

    seed_evaluations: int = 20_000
    factors: tuple[tuple[float, ...], ...] = ((0.6, 1.5), (0.75, 1.3), (0.85, 1.15), (0.93, 1.07), (0.97, 1.03))
    round_seconds: float = 120.0
    gap: float = 1e-4
    enough: float = 2e-4
    polish: int = 3


def table_around(problem: Problem, centre: Structure, factors: Sequence[float]) -> Table:
    """Candidates near ``centre``: its values, multiplied with ``factors`` and brought to the grid.

    The nearest neighbours on the grid are taken where a factor changes nothing.
    """
    space = problem.space

    def channels(value: int, high: int, low: int = GRID) -> tuple[int, ...]:
        found = {value}
        for factor in factors:
            near = to_grid(value * factor)
            found.add(near if near != value else value + (GRID if factor > 1 else -GRID))
        return tuple(sorted(one for one in found if low <= one <= high))

    def depths(value: int, high: int) -> tuple[int, ...]:
        found = {value}
        for factor in factors:
            near = round(value * factor)
            found.add(near if near != value else value + (1 if factor > 1 else -1))
        return tuple(sorted(one for one in found if 1 <= one <= high))

    blocks = centre.blocks
    if space.ratios:
        centres = [min(space.ratios, key=lambda r, o=one: abs(r * o.out / 10 - o.bottleneck)) for one in blocks]  # type: ignore[misc]
        narrow = [
            tuple(sorted({ratio, *(min(space.ratios, key=lambda r, w=ratio * f: abs(r - w)) for f in factors)}))  # type: ignore[misc]
            for ratio in centres
        ]
    else:
        narrow = [channels(one.bottleneck, space.out_max) for one in blocks]
    return Table(
        channels(centre.stem.out, space.stem[1], space.stem[0]),
        tuple(channels(one.out, space.out_max) for one in blocks),
        tuple(narrow),
        tuple(space.kernels_at(side) for side in space.sides(problem.resolution)),
        tuple(depths(one.depth, space.depth_at(number)) for number, one in enumerate(blocks)),
    )


@dataclass(frozen=True)
class Solved:
    """What one table gave."""

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

    def constraint(self, width: int) -> LinearConstraint:
        data = np.concatenate(self.value), (np.concatenate(self.row), np.concatenate(self.column))
        return LinearConstraint(coo_array(data, shape=(len(self.lower), width)).tocsc(), self.lower, self.upper)


def solve_table(problem: Problem, table: Table, seconds: float, gap: float) -> Solved:
    """The best solution of ``problem`` among the structures of ``table``, as far as ``seconds`` allow."""
    space, scoring, budget = problem.space, problem.scoring, problem.budget
    if (scoring.channel_exponent, scoring.kernel_exponent) != (1, 1):
        raise ValueError("the tabulated programme knows widths without exponents")
    edges = edges_of(problem, table)
    count, blocks = len(edges.block), len(space.strides)
    if any(not (edges.block == block).any() for block in range(blocks)):
        return Solved(None, -np.inf, count)
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
            low, high = least[last][int(channels)], most[last][int(channels)]
            rows.add([(np.array([at]), 1.0), (ending, -high)], -inf, 0)
            rows.add([(np.array([at]), 1.0), (ending, -low)], 0, inf)
            extra_gain.append(alpha * float(np.log(channels * side * side)))
            extra_high.append(high)
    penalty = count + len(extra_gain)
    extra_gain.append(-1.0)
    extra_high.append(inf)
    _penalty_rows(rows, problem, edges, table, penalty)
    result = milp(
        -np.concatenate([gain, extra_gain]),
        constraints=rows.constraint(penalty + 1),
        bounds=Bounds(np.zeros(penalty + 1), np.concatenate([np.ones(count), extra_high])),
        integrality=np.concatenate([np.ones(count), np.zeros(len(extra_gain))]),
        options={"time_limit": max(seconds, 1.0), "mip_rel_gap": gap},
    )
    if result.status == 2:
        return Solved(None, -np.inf, count)
    bound = inf if result.mip_dual_bound is None else constant - result.mip_dual_bound
    if result.x is None:
        return Solved(None, bound, count)
    path = np.flatnonzero(result.x[:count] > 0.5)
    return Solved(edges.structure(space, path[np.argsort(edges.block[path])]), bound, count)


def _rho_rows(
    rows: _Rows,
    edges: Edges,
    before: NDArray[np.int64],
    widths: Floats,
    extra: int,
    rho: float,
    last: int,
) -> None:
    """S >= g(1 + 3 N) by the lines through consecutive whole depths N."""
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


def _penalty_rows(rows: _Rows, problem: Problem, edges: Edges, table: Table, penalty: int) -> None:
    """Supporting planes of the convex penalty at the depths of the table, at most a few hundred of them."""
    scoring = problem.scoring
    blocks = penalised(range(len(problem.space.strides)), scoring.penalty)
    if scoring.beta == 0 or not blocks:
        return
    choices = [table.depths[block] for block in blocks]
    points = {tuple(d - point[0] for d in point): point for point in product(*choices)}
    variance = scoring.mode == "paper"
    chosen = sorted(points.values(), key=lambda point: (depth_penalty(point, scoring.beta, variance), point))[:600]
    column = np.array([penalty])
    for point in chosen:
        here = depth_penalty(point, scoring.beta, variance)
        if here > 1e6:
            break
        slopes = penalty_slopes(point, scoring.beta, variance)
        terms: list[Term] = [(column, 1.0)]
        for block, slope in zip(blocks, slopes, strict=True):
            some = np.flatnonzero(edges.block == block)
            terms.append((some, -slope * edges.depth[some]))
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


def design(problem: Problem, settings: MilpSettings, seed: int, **search_options: Any) -> Design:
    """Design by zooming tables; ``search_options`` are those of :class:`Search`."""
    search = Search(problem, "milp", {"settings": asdict(settings), "seed": seed}, **search_options)
    state = search.resume()
    if state is None:
        evolve(search, find_start(problem, seed), EvolutionSettings(settings.seed_evaluations), seed)
        search.notes.clear()
    rounds, narrower = (0, 0) if state is None else (int(state["rounds"]), int(state["narrower"]))
    while search.best is not None and narrower < len(settings.factors) and not search.over:
        before = search.score
        table = table_around(problem, search.best, settings.factors[narrower])
        found = solve_table(problem, table, min(settings.round_seconds, search.left), settings.gap)
        rounds += 1
        if found.structure is not None:
            search.offer(found.structure)
        if settings.polish:
            polish(search, Population(problem), settings.polish)
        short = max(0.0, found.bound / search.score - 1) if search.score > 0 else float("inf")
        told = (
            f"Round {rounds}: {found.edges:,} edges, channels times {settings.factors[narrower]}, table solved within "
        )
        search.notes.append(f"{told}{short:.3%}, score {search.score:,.2f}.")
        if search.score - before <= settings.enough * abs(before):
            narrower += 1
        if search.pulse(f"round {rounds}") or found.structure is not None:
            search.save({"rounds": rounds, "narrower": narrower})
    return search.finish()
