"""The reference solver: the programme over a table of candidates, solved by HiGHS (in SciPy), with a zoom.

The first round's table covers the whole space coarsely, so that the solver has a start of its own beside the annealed
one. Each further round takes a large table around the best so far, keeps the edges of least reduced cost in the relaxed
programme, and solves the rest by branch and bound; the result is the next centre, improved by exhaustive small moves.
The proof of a round holds for its edges only. See :mod:`vitlab.methods.deepmad.milp_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vitlab.files import stable_dict
from vitlab.methods.deepmad.anneal import AnnealSettings, anneal, polish
from vitlab.methods.deepmad.edges import Edges, Table, edges_of
from vitlab.methods.deepmad.milp_model import build, reduced_costs, solve
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import GRID, Problem, to_grid
from vitlab.methods.deepmad.search import Design, Search
from vitlab.methods.deepmad.structure import Structure


@dataclass(frozen=True)
class Spread:
    """Candidates of a table around a centre.

    Attributes:
        outs, narrow: of outputs and bottlenecks: a positive number multiplies, a negative one -n stands for n steps up
            and down, of 8 channels, or of a tenth where the bottleneck is a ratio to the output.
        depths: steps up and down; 1 is always a candidate.
    """

    outs: tuple[float, ...]
    narrow: tuple[float, ...]
    depths: tuple[int, ...]

    FIRST: ClassVar[tuple[str, ...]] = ("outs", "narrow", "depths")


WIDE = Spread((0.4, 0.55, 0.7, 0.85, 1.2, 1.45, 1.8, 2.4), (0.7, 0.85, 1.2, 1.45), (1, 2, 4))
MIDDLE = Spread((0.5, 0.75, 1.35, 2.0, -1, -3, -7), (0.8, 1.25, -1), (1, 2))
NEAR = Spread((-1, -2, -5, -9), (-1, -2), (1, 2, 3))


@dataclass(frozen=True)
class MilpSettings:
    """Rounds of the zoom.

    Attributes:
        seed: the annealing that gives a first centre, within half of the time; without a good centre the tables, a few
            hundred edges each, end in a local optimum (section 8 seeds them with an evolution; ours ended lower that
            way).
        spreads: of the tables, in turn; when none of them improves the best any more, twice as many edges are kept.
        round_seconds: most seconds of one round; the best table solution by then is taken.
        edges, edges_max: most edges that branch and bound is given at first, and at last; more make a round slower
            and its result better. The search ends when that many do not improve it either.
        gap: share of the objective within which a round is taken as solved.
        enough: a round that improves the score by less than this share did not improve it.
        polish: add exhaustive moves of up to this many variables after each round; 0: none.
        coarse: factor between the candidates of the table that covers the whole space.
    """

    seed: AnnealSettings = field(default_factory=lambda: AnnealSettings(chains=1024, steps=6000))
    spreads: tuple[Spread, ...] = (WIDE, MIDDLE, NEAR)
    round_seconds: float = 120.0
    edges: int = 500
    edges_max: int = 1000
    gap: float = 1e-4
    enough: float = 2e-5
    polish: int = 3
    coarse: float = 2.0

    FIRST: ClassVar[tuple[str, ...]] = (
        *("seed", "spreads", "round_seconds", "edges"),
        *("edges_max", "gap", "enough", "polish"),
    )
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""


def table_around(problem: Problem, centre: Structure, spread: Spread) -> Table:
    """Candidates near ``centre`` that lie in the space."""
    space = problem.space

    def channels(value: int, high: int, rules: Sequence[float], low: int = GRID) -> tuple[int, ...]:
        found = {value, *(to_grid(value * factor) for factor in rules if factor > 0)}
        found.update(value + sign * int(-steps) * GRID for steps in rules if steps < 0 for sign in (-1, 1))
        return tuple(sorted(one for one in found if low <= one <= high))

    def depths(value: int, high: int) -> tuple[int, ...]:
        found = {1, value, *(value + sign * step for step in spread.depths for sign in (-1, 1))}
        return tuple(sorted(one for one in found if 1 <= one <= high))

    def ratios(value: float) -> tuple[int, ...]:
        targets = [value, *(value * factor for factor in spread.narrow if factor > 0)]
        targets += [value + sign * -steps for steps in spread.narrow if steps < 0 for sign in (-1, 1)]
        if all(factor > 0 for factor in spread.narrow):  # a wide table: also the ends of the range
            targets += [space.ratios[0], space.ratios[-1]]
        return tuple(sorted({min(space.ratios, key=lambda ratio, one=one: abs(ratio - one)) for one in targets}))  # type: ignore[misc]

    blocks = centre.blocks
    if space.ratios:
        narrow = [ratios(one.bottleneck / one.out * 10) for one in blocks]
    else:
        narrow = [channels(one.bottleneck, space.out_max, spread.narrow) for one in blocks]
    return Table(
        channels(centre.stem.out, space.stem[1], spread.outs, space.stem[0]),
        tuple(channels(one.out, space.out_max, spread.outs) for one in blocks),
        tuple(narrow),
        tuple(space.kernels_at(side) for side in space.sides(problem.resolution)),
        tuple(depths(one.depth, space.depth_at(number)) for number, one in enumerate(blocks)),
    )


START_GAP = 0.01
"""Share of the objective within which the coarse table is solved: its solution is a start, not a result."""


def coarse_table(problem: Problem, step: float) -> Table:
    """Candidates over the whole space, each about ``step`` times the one before, with the ends of every range."""
    space = problem.space

    def between(low: int, high: int) -> tuple[int, ...]:
        found, value = {low, high}, float(low)
        while (value := value * step) < high:
            found.add(to_grid(value) if low % GRID == 0 else round(value))
        return tuple(sorted(found))

    outs = between(GRID, space.out_max)
    narrow = between(space.ratios[0], space.ratios[-1]) if space.ratios else outs
    blocks = range(len(space.strides))
    return Table(
        between(*space.stem),
        (outs,) * len(blocks),
        (narrow,) * len(blocks),
        tuple(space.kernels_at(side) for side in space.sides(problem.resolution)),
        tuple(between(1, space.depth_at(block)) for block in blocks),
    )


def affordable(problem: Problem, edges: Edges) -> Edges:
    """The edges that do not exceed a budget by themselves."""
    budget, keep = problem.budget, np.ones(len(edges.block), bool)
    limits = (edges.params, budget.params), (edges.flops, budget.flops), (edges.latency, budget.latency)
    for spent, limit in limits:
        if spent is not None and limit is not None:
            keep &= spent <= limit
    return edges.take(np.flatnonzero(keep))


def start(problem: Problem, settings: MilpSettings, search: Search) -> None:
    """The solver's own start: the best of a coarse table of the whole space, with more edges while it finds nothing."""
    full = affordable(problem, edges_of(problem, coarse_table(problem, settings.coarse)))
    beat = search.score if search.best is not None else None
    if len(np.unique(full.block)) < len(problem.space.strides):
        return
    costs = reduced_costs(build(problem, full, beat), min(settings.round_seconds, search.left) / 4)
    size = max(1, settings.edges // 4)
    while not search.over:
        edges = full
        if costs is not None and size < len(full.block):
            edges = full.take(np.sort(np.argsort(np.abs(costs), kind="stable")[:size]))
        size *= 4
        if len(np.unique(edges.block)) < len(problem.space.strides) and len(edges.block) < len(full.block):
            continue  # some superblock has no edge left
        limit = min(settings.round_seconds, search.left) / 4
        found = solve(problem, build(problem, edges, beat), limit, START_GAP, beat)
        if found.structure is not None:
            search.offer(found.structure)
        if search.best is not None or len(edges.block) == len(full.block):
            search.notes.append(
                f"A coarse table of the space, {len(edges.block):,} of {len(full.block):,} edges: "
                + (f"score {search.score:,.2f}." if search.best is not None else "no solution.")
            )
            return


def narrowed(problem: Problem, edges: Edges, search: Search, count: int, seconds: float) -> Edges:
    """The ``count`` edges of least reduced cost in the relaxed programme, and those of the best so far."""
    if len(edges.block) <= count or search.best is None:
        return edges
    costs = reduced_costs(build(problem, edges, search.score), seconds)
    if costs is None:
        return edges
    keep = np.argsort(np.abs(costs), kind="stable")[:count]
    return edges.take(np.union1d(keep, edges.path(search.best)))


def design(problem: Problem, settings: MilpSettings, seed: int, **search_options: Any) -> Design:
    """Design by zooming tables; ``search_options`` are those of :class:`Search`."""
    search = Search(problem, "milp", {"settings": stable_dict(settings), "seed": seed}, **search_options)
    rounds, idle, size = 0, 0, settings.edges
    state = search.resume()
    if state is not None and "rounds" in state:  # else it is the state of the annealing
        rounds, idle, size = int(state["rounds"]), int(state["idle"]), int(state["size"])
    else:
        limit, search.time_limit = search.time_limit, None if search.time_limit is None else search.time_limit / 2
        anneal(search, settings.seed, seed)
        search.total, search.time_limit = None, limit
        start(problem, settings, search)
        if settings.polish:
            polish(search, Population(problem), settings.polish)
        search.save({"rounds": rounds, "idle": idle, "size": size})
    while search.best is not None and size <= settings.edges_max and not search.over:
        before = search.score
        limit = min(settings.round_seconds, search.left)
        table = table_around(problem, search.best, settings.spreads[rounds % len(settings.spreads)])
        full = edges_of(problem, table)
        edges = narrowed(problem, full, search, size, limit)
        programme = build(problem, edges, before)
        found = solve(problem, programme, limit, settings.gap, before)
        rounds += 1
        if found.structure is not None:
            search.offer(found.structure)
        short = max(0.0, found.bound / search.score - 1) if search.score > 0 else float("inf")
        text = f"Round {rounds}: {len(edges.block):,} of {len(full.block):,} edges, the best of these {proven(short)}"
        if settings.polish:
            polish(search, Population(problem), settings.polish)
        search.notes.append(f"{text}, score {search.score:,.2f}.")
        idle = 0 if search.score - before > settings.enough * abs(before) else idle + 1
        if idle == len(settings.spreads):
            idle, size = 0, 2 * size
        search.report(f"round {rounds}")
        search.save({"rounds": rounds, "idle": idle, "size": size})
    search.notes.append(STATEMENT)
    return search.finish()


STATEMENT = (
    "Each round is solved within its own table, a few hundred choices of channels, bottlenecks, kernels and depths; "
    "nothing is proven of the rest of the space (method.certify bounds all of it)."
)


def proven(short: float) -> str:
    """What branch and bound says of one table."""
    return f"solved within {short:.3%}" if np.isfinite(short) else "not solved in time"
