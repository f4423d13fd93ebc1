"""The designers: solutions only, the same ones for the same seed, resumable, with errors for impossible problems."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.methods.deepmad.tables import only
from vitlab.errors import Interrupted, UserError
from vitlab.methods.deepmad import anneal, evolution, milp
from vitlab.methods.deepmad.edges import Table, edges_of
from vitlab.methods.deepmad.evaluate import Scoring, depth_penalty
from vitlab.methods.deepmad.milp_model import build, penalty_slopes, reduced_costs, solve
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import Budget, Problem, Space, count, depthwise_space, milliseconds, resnet_space
from vitlab.methods.deepmad.search import JOURNAL, Design, Search, load_design, save_design

SMALL = Problem(
    resnet_space((1, 2, 1, 1, 2)), Scoring((1.0, 1.0, 8.0), 10.0), Budget(300_000, 20_000_000, 0.3), resolution=32
)
SE = Problem(
    depthwise_space((2, 2, 2, 1, 2), squeeze=True, tail=512),
    Scoring((1.0, 1.0, 1.0, 1.0, 8.0), 10.0, "official", "all"),
    Budget(5_000_000, 400_000_000, 0.8),
    resolution=224,
)
SMALL_SE = replace(
    SMALL,
    space=depthwise_space((1, 2, 1, 1, 2), squeeze=True, tail=None),
    scoring=replace(SMALL.scoring, penalty="all"),
    budget=Budget(300_000, 20_000_000, 0.5),
)
TINY = milp.Spread((-1,), (-1,), (1,))
QUICK = anneal.AnnealSettings(chains=128, steps=300)


def by_anneal(problem: Problem, seed: int, **options: Any) -> Design:
    return anneal.design(problem, QUICK, seed, **options)


def by_evolution(problem: Problem, seed: int, **options: Any) -> Design:
    return evolution.design(problem, evolution.EvolutionSettings(1500, population=64), seed, **options)


def by_milp(problem: Problem, seed: int, **options: Any) -> Design:
    settings = milp.MilpSettings(
        seed=replace(QUICK, steps=50), spreads=(TINY,), edges=40, edges_max=40, polish=1, coarse=8
    )
    return milp.design(problem, settings, seed, **options)


DESIGNERS = {"anneal": by_anneal, "evolution": by_evolution, "milp": by_milp}
Designer = Callable[..., Design]


@pytest.mark.parametrize("designer", DESIGNERS.values(), ids=list(DESIGNERS))
@pytest.mark.parametrize("problem", [SMALL, SE], ids=["resnet", "se"])
def test_designs_are_solutions(designer: Designer, problem: Problem, tmp_path: Path) -> None:
    found = designer(problem, 3)
    assert problem.violations(found.structure) == []
    assert problem.evaluate(found.structure).score == found.score
    scores = [point.score for point in found.trace]
    assert scores == sorted(scores)
    assert scores[-1] == found.score
    save_design(tmp_path / "design.json", found)
    assert load_design(tmp_path / "design.json") == found


@pytest.mark.parametrize("designer", [by_anneal, by_evolution], ids=["anneal", "evolution"])
def test_same_seed_same_design(designer: Designer) -> None:
    one, two, other = designer(SMALL, 5), designer(SMALL, 5), designer(SMALL, 6)
    assert one.structure == two.structure
    assert [(p.evaluations, p.score) for p in one.trace] == [(p.evaluations, p.score) for p in two.trace]
    assert [p.score for p in one.trace] != [p.score for p in other.trace]


class Ticks:
    """A clock that advances a second at every reading, and interrupts after ``last`` of them."""

    def __init__(self, last: float = float("inf")) -> None:
        self.now, self.last = 0.0, last

    def __call__(self) -> float:
        self.now += 1.0
        if self.now > self.last:
            raise Interrupted("enough")
        return self.now


@pytest.mark.parametrize("designer", [by_anneal, by_evolution], ids=["anneal", "evolution"])
def test_interrupted_and_resumed_is_uninterrupted(designer: Designer, tmp_path: Path) -> None:
    full = designer(SMALL, 1)
    for last in (18, 30):  # killed twice, with a half-written line the second time
        with pytest.raises(Interrupted):
            designer(SMALL, 1, folder=tmp_path, clock=Ticks(last))
        with open(tmp_path / JOURNAL, "a") as file:
            file.write('{"seconds": 1')
    resumed = designer(SMALL, 1, folder=tmp_path)
    assert resumed.structure == full.structure
    assert resumed.evaluations == full.evaluations
    assert [(p.evaluations, p.score) for p in resumed.trace] == [(p.evaluations, p.score) for p in full.trace]
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines[1:]] == [p.score for p in full.trace]


def test_milp_resumes_after_its_rounds(tmp_path: Path) -> None:
    first = by_milp(SMALL, 1, folder=tmp_path)
    again = by_milp(SMALL, 1, folder=tmp_path)
    assert again.structure == first.structure
    assert again.evaluations == first.evaluations  # no round is done twice


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    by_anneal(SMALL, 1, folder=tmp_path)
    with pytest.raises(UserError, match="seed was 1, is 2"):
        by_anneal(SMALL, 2, folder=tmp_path)


def test_time_limit() -> None:
    found = anneal.design(SMALL, replace(QUICK, steps=100_000), 0, time_limit=60.0, clock=Ticks())
    assert any("time was over" in note for note in found.notes)
    assert SMALL.violations(found.structure) == []


def test_frozen_last() -> None:
    start = evolution.find_start(SMALL, 0)
    settings = evolution.EvolutionSettings(1500, population=64, frozen_last=True)
    found = evolution.design(SMALL, settings, 0, start)
    assert found.structure.blocks[-1] == start.blocks[-1]
    assert found.structure != start
    free = evolution.design(SMALL, replace(settings, frozen_last=False), 0, start)
    assert free.structure.blocks[-1] != start.blocks[-1]


def test_minor_mutations_leave_kernels_and_depths() -> None:
    start = SMALL.space.build(16, [(32, 8, 3, 1), (48, 8, 3, 2), (48, 8, 3, 1), (64, 8, 3, 1), (64, 16, 3, 1)])
    settings = evolution.EvolutionSettings(minor=True)
    mutation, rng = evolution.Mutation(SMALL.space, 32, settings), random.Random(0)
    one = start
    for _ in range(200):
        one = mutation.child(one, rng)
    assert [(b.kernel, b.depth) for b in one.blocks] == [(b.kernel, b.depth) for b in start.blocks]
    assert one != start


def test_a_start_beyond_the_budget_is_refused() -> None:
    start = SMALL.space.build(32, [(128, 64, 3, 3)] * 5)
    with pytest.raises(UserError, match="start of the evolution exceeds"):
        evolution.design(SMALL, evolution.EvolutionSettings(10), 0, start)


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(UserError, match=r"method.budget.params is 1,000, and the smallest network .* needs"):
        by_anneal(replace(SMALL, budget=Budget(1000, None, 0.3)), 0)
    with pytest.raises(UserError, match="found no network within the budgets"):
        by_anneal(replace(SMALL, budget=Budget(6000, None, 0.01)), 0)


def test_problems_that_cannot_be_posed() -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        replace(SMALL, resolution=28)
    with pytest.raises(UserError, match="2 weights"):
        replace(SMALL, scoring=Scoring((1.0, 8.0), 10.0))
    with pytest.raises(UserError, match="cost"):
        replace(SMALL, budget=Budget(latency=1.0))


def test_violations_are_named() -> None:
    problem = replace(SMALL, budget=Budget(300_000, 20_000_000, 0.6))
    space = problem.space
    good: list[tuple[int, int, int, int]] = [(32, 8, 3, 1), (48, 8, 3, 1), (48, 8, 3, 1), (64, 8, 3, 1), (64, 16, 3, 1)]

    def message(number: int, *block: Any) -> str:
        blocks = list(good)
        blocks[number] = block
        return "; ".join(problem.violations(space.build(16, blocks)))

    assert problem.violations(space.build(16, good)) == []
    assert "superblock 5 has fewer channels (56) than its input (64)" in message(4, 56, 16, 3, 1)
    assert "multiples of 8" in message(1, 44, 8, 3, 1)
    assert "128 > 4 times 16" in message(0, 128, 16, 3, 1)
    assert "bottleneck of 8 for 200" in message(4, 200, 8, 3, 1)
    assert "kernel 7" in message(2, 48, 8, 7, 1)
    assert "4 > 3 units" in message(0, 32, 8, 3, 4)
    assert "parameters of 300,000" in message(4, 256, 128, 3, 9)
    assert "stem has 40" in "; ".join(space.violations(space.build(40, good), 32))


def test_kernels_shrink_with_the_side() -> None:
    space = depthwise_space((2, 2, 2, 2), squeeze=False, tail=None)
    assert [space.kernels_at(side) for side in (56, 8, 7, 4, 1)] == [(3, 5, 7), (3, 5), (3,), (1,), (1,)]


def test_amounts() -> None:
    assert [count(text, "k") for text in ("0.3M", "1.82G", "1.82e9", "12", "5k")] == [
        *(300_000, 1_820_000_000, 1_820_000_000, 12, 5000)
    ]
    assert [milliseconds(text, "k") for text in ("2.5ms", "0.5s", "5min", "10us")] == [2.5, 500.0, 300_000.0, 0.01]
    with pytest.raises(UserError, match=r"Perhaps 0.3M"):
        count("0.3", "method.x")
    for wrong in ("0.3X", "", "M", "-1M", "0"):
        with pytest.raises(UserError, match=r"method\.x"):
            count(wrong, "method.x")


# ----------------------------------------------------------------------------------------------------- the programme


TABLE = Table(
    stem=(16, 32),
    outs=((32, 64), (48, 64), (64, 96), (96, 128), (128, 160)),
    narrow=((8, 16), (8, 16), (16,), (16,), (16, 24)),
    kernels=((3,), (3,), (3, 5), (5,), (5,)),
    depths=((1, 2), (1,), (1, 3), (2,), (1, 3)),
)


def every(space: Space, table: Table) -> list[tuple[int, list[tuple[int, int, int, int]]]]:
    """Every structure of a table."""
    blocks = [
        list(itertools.product(*four))
        for four in zip(table.outs, table.narrow, table.kernels, table.depths, strict=True)
    ]
    return [(stem, list(rows)) for stem in table.stem for rows in itertools.product(*blocks)]


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_a_table_is_solved_to_optimality(mode: str) -> None:
    """The programme finds the best of 16,384 structures, which a full enumeration confirms."""
    problem = replace(SMALL, scoring=replace(SMALL.scoring, mode=mode, penalty="drop_first"))
    space, population = problem.space, Population(problem)
    structures = [space.build(stem, rows) for stem, rows in every(space, TABLE)]
    genes = population.encode(structures)
    scores = population.evaluate(genes)
    allowed = anneal.Moves(population).allowed(genes) & (population.excess(scores) <= 0)
    best = float(np.where(allowed, scores.score, -np.inf).max())
    programme = build(problem, edges_of(problem, TABLE))
    found = solve(problem, programme, 60, 1e-7)
    assert found.structure is not None
    assert problem.violations(found.structure) == []
    assert problem.evaluate(found.structure).score == pytest.approx(best, rel=1e-9)
    assert best <= found.bound + 1e-4
    costs = reduced_costs(programme, 60)
    assert costs is not None
    assert len(costs) == programme.count
    # Nothing scores more than the best: the programme says so instead of returning something worse.
    beaten = solve(problem, build(problem, edges_of(problem, TABLE), best + 1.0), 60, 1e-7, best + 1.0)
    assert (beaten.structure, beaten.bound) == (None, best + 1.0)


def test_edges_cost_what_structures_cost() -> None:
    for problem in (SMALL, replace(SMALL, classes=10), replace(SE, classes=7)):
        space = problem.space
        rng = np.random.default_rng(0)
        population = Population(problem)
        structure = population.decode(anneal.Moves(population).start(rng, 1), 0)
        edges = edges_of(problem, only(structure, space))
        path = edges.path(structure)
        assert edges.structure(space, path) == structure
        spent = problem.evaluate(structure)
        assert (edges.params[path].sum(), edges.flops[path].sum()) == (spent.params, spent.flops)


def test_penalty_planes_support_it() -> None:
    rng = np.random.default_rng(0)
    for variance in (False, True):
        for _ in range(200):
            at, other = rng.integers(1, 5, 3), rng.integers(1, 5, 3)
            slopes = penalty_slopes(at.tolist(), 10.0, variance)
            plane = depth_penalty(at.tolist(), 10.0, variance) + float(np.dot(slopes, other - at))
            assert plane <= depth_penalty(other.tolist(), 10.0, variance) + 1e-9


@pytest.mark.parametrize("problem", [SMALL, SMALL_SE], ids=["resnet", "se"])
def test_the_programme_starts_by_itself(problem: Problem) -> None:
    """Where the annealed seed finds nothing, the solver's own coarse table gives a start."""
    seed = anneal.AnnealSettings(chains=4, steps=2)
    with pytest.raises(UserError, match="found no network"):
        anneal.design(problem, seed, 0)
    settings = milp.MilpSettings(seed=seed, round_seconds=20, edges=400, edges_max=0, polish=0, coarse=2.5)
    found = milp.design(problem, settings, 0)
    assert problem.violations(found.structure) == []
    assert found.notes[0].startswith("A coarse table of the space, ")
    assert found.notes[-1] == milp.STATEMENT, "what is proven, and of what"


def test_a_coarse_table_covers_the_space() -> None:
    for problem in (SMALL, SMALL_SE):
        table, space = milp.coarse_table(problem, 2.0), problem.space
        assert (table.stem[0], table.stem[-1]) == space.stem
        for block in range(5):
            assert (table.outs[block][0], table.outs[block][-1]) == (8, space.out_max)
            assert (table.depths[block][0], table.depths[block][-1]) == (1, space.depth_at(block))
        if space.ratios:
            assert table.narrow == ((15, 30, 60),) * 5
        edges = edges_of(problem, table)
        kept = milp.affordable(problem, edges)
        assert 0 < len(kept.block) < len(edges.block)
        assert problem.budget.params is not None and kept.params.max() <= problem.budget.params


def test_the_zoom_moves_ratios_near_and_far() -> None:
    """Tenths in the near tables, where the ratio did not move at all, and the ends of the range in the wide ones."""
    out = SE.space.build(16, [(64, 192, 3, 1)] * 5)  # a ratio of 3
    near, middle, wide = (
        milp.table_around(SE, out, spread).narrow[0] for spread in (milp.NEAR, milp.MIDDLE, milp.WIDE)
    )
    assert near == (28, 29, 30, 31, 32)
    assert middle == (24, 29, 30, 31, 37)
    assert (wide[0], wide[-1]) == (15, 60) and {21, 25, 36, 43} <= set(wide)
    fixed = replace(SE, space=replace(SE.space, ratios=(30,)))
    assert milp.table_around(fixed, out, milp.WIDE).narrow[0] == (30,)


def test_designs_are_verified_by_building() -> None:
    search = Search(SMALL, "test", {})
    assert not search.offer(SMALL.space.build(32, [(128, 64, 3, 3)] * 5))
    with pytest.raises(UserError, match="found no network"):
        search.finish()
