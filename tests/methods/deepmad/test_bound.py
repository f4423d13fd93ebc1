"""The bound is valid: above the best of all enumerated structures, and it tightens."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.methods.deepmad.tables import made_up
from vitlab.methods.deepmad import anneal
from vitlab.methods.deepmad.bound import certify, split, tightest
from vitlab.methods.deepmad.evaluate import Scoring, depth_penalty
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import Budget, Problem, depthwise_space, resnet_space
from vitlab.methods.deepmad.relaxation import Relaxation
from vitlab.methods.deepmad.search import Design

TINY = Problem(
    replace(resnet_space((1, 2), stem_max=16), out_max=48, first_depth=2, depth_max=4),
    Scoring((1.0, 8.0), 10.0, penalty="all"),
    Budget(60_000, 6_000_000, 0.45),
    resolution=32,
)


def everything(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Scores and genes of all solutions of a tiny problem."""
    space = problem.space
    grid = range(1, space.out_max // 8 + 1)
    depths = [range(1, space.depth_at(j) + 1) for j in range(2)]
    narrow = space.ratios or grid
    kernels = [space.kernels_at(side) for side in space.sides(problem.resolution)]
    stems = range(space.stem[0] // 8, space.stem[1] // 8 + 1)
    rows = itertools.product(stems, grid, grid, narrow, narrow, *kernels, *depths)
    genes = np.array(list(rows), np.int32).T.copy()
    population = Population(problem)
    genes = genes[:, anneal.Moves(population).allowed(genes)]
    scores = population.evaluate(genes)
    solution = population.excess(scores) <= 0
    return scores.score[solution], genes[:, solution]


def best_of_all(problem: Problem) -> float:
    """The best solution of a tiny problem, by enumeration."""
    return float(everything(problem)[0].max())


@pytest.mark.parametrize("mode", ["corrected", "paper"])
@pytest.mark.parametrize("beta", [0.0, 10.0])
@pytest.mark.parametrize("classes", [None, 10])
def test_bound_holds_and_closes(mode: str, beta: float, classes: int | None) -> None:
    problem = replace(TINY, scoring=replace(TINY.scoring, mode=mode, beta=beta), classes=classes)
    best = best_of_all(problem)
    design = anneal.design(problem, anneal.AnnealSettings(chains=256, steps=200), 0)
    assert design.score == pytest.approx(best, rel=1e-9)
    relaxation = Relaxation(problem)
    root, _ = tightest(relaxation, relaxation.root((1.0, 1.0), best), best)
    assert root >= best
    certify(problem, design, 1.0)
    assert design.bound is not None
    assert best - 1e-6 <= design.bound <= root * 1.001  # its root starts from another centre
    assert design.gap is not None
    assert 0 <= design.gap < 0.03


def test_any_multipliers_give_a_bound() -> None:
    best, rng = best_of_all(TINY), np.random.default_rng(0)
    relaxation = Relaxation(TINY)
    root = relaxation.root((2.0, 3.0), best)
    bounded = Relaxation(TINY, best * (1 - 1e-9))
    tighter = 0
    for _ in range(30):
        prices = np.abs(rng.normal(size=5)) * best
        prices[3:] = rng.normal(size=2) * 20
        centre = rng.uniform(1, 4, 2)
        value, _, _ = relaxation.evaluate(root, prices, centre)
        assert value >= best
        # Knowing that a score is reached tightens the bound of what is better.
        tight, _, _ = bounded.evaluate(root, prices, centre)
        assert best <= tight <= value
        tighter += tight < value
    assert tighter > 0


@pytest.mark.parametrize("classes", [None, 10])
def test_costs_of_the_relaxation_are_those_of_structures(classes: int | None) -> None:
    """At all multipliers the slope, from the counts of a real structure, supports the bound, from formulas."""
    problem, rng = replace(TINY, classes=classes), np.random.default_rng(1)
    relaxation = Relaxation(problem)
    centre, best = np.array([2.0, 2.0]), 400.0
    root = relaxation.root((2.0, 2.0), best)
    scale = best * np.array([1.0, 1.0, 1.0, 0.05, 0.05])
    points = [scale * np.append(rng.uniform(0, 2, 3), rng.normal(size=2)) for _ in range(30)]
    found = [relaxation.evaluate(root, point, centre)[:2] for point in points]
    for (value, slope), at in zip(found, points, strict=True):
        for (other, _), there in zip(found, points, strict=True):
            assert other >= value + float(slope @ (there - at)) - 1e-6 * abs(value)


def test_trimmed_structures_are_not_better() -> None:
    """The intervals shrink, and every structure that scores more than ``beat`` stays inside them."""
    scores, genes = everything(TINY)
    best = float(scores.max())
    beat = float(np.sort(scores)[-40])
    better = genes[:, scores > beat]
    relaxation = Relaxation(TINY, beat)
    bound, root = tightest(relaxation, relaxation.root((1.0, 1.0), best), best)
    assert bound >= best
    trimmed = relaxation.trim(root)
    assert trimmed is not None
    assert trimmed.outs != root.outs
    for (low, high), outs in zip(trimmed.outs, better[1:3], strict=True):
        assert low <= outs.min() and outs.max() <= high
    for (low, high), depths in zip(trimmed.depths, better[-2:], strict=True):
        assert low <= depths.min() and depths.max() <= high
    # Of a part with nothing better in it nothing is left, or the bound says so.
    parts = split(relaxation, trimmed)
    assert len(parts) == 2
    for part in parts:
        found, part = tightest(relaxation, part, beat)
        inside = np.ones(better.shape[1], bool)
        for (low, high), row in zip((*part.outs, *part.depths), (*better[1:3], *better[-2:]), strict=True):
            inside &= (low <= row) & (row <= high)
        assert found > beat or not inside.any()
        assert relaxation.trim(part) is not None or not inside.any()


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_conjugate(mode: str) -> None:
    """q L - Q(L) never exceeds Q*(q), and reaches it."""
    relaxation = Relaxation(replace(TINY, scoring=replace(TINY.scoring, mode=mode)))
    rng = np.random.default_rng(0)
    for _ in range(50):
        q = rng.normal(size=2) * 30
        q -= q.mean()
        value, deviation = relaxation._conjugate(q)
        reached = float(q @ deviation) - depth_penalty(deviation.tolist(), 10.0, mode == "paper")
        assert reached == pytest.approx(value, rel=1e-6, abs=1e-6)
        for other in rng.normal(size=(20, 2)) * 3:
            assert float(q @ other) - depth_penalty(other.tolist(), 10.0, mode == "paper") <= value + 1e-9


def depthwise(squeeze: bool, tail: int | None, **changes: Any) -> Problem:
    """A depthwise problem small enough to enumerate."""
    space = depthwise_space((1, 2), squeeze=squeeze, tail=tail, stem_max=16)
    space = replace(space, out_max=48, first_depth=2, depth_max=3, ratios=(15, 30, 60))
    return replace(Problem(space, TINY.scoring, Budget(30_000, 3_000_000, 0.8), resolution=32), **changes)


@pytest.mark.parametrize(
    "problem",
    [
        depthwise(False, None),
        depthwise(True, 64, classes=10),
        depthwise(True, 64, scoring=replace(TINY.scoring, mode="official")),
        depthwise(True, None, scoring=replace(TINY.scoring, spread="variance")),
        replace(TINY, costs=made_up(TINY.space, 0.7), budget=Budget(60_000, None, 0.45, 0.21)),
        depthwise(True, 64, costs=made_up(depthwise(True, 64).space, 0.8), budget=Budget(None, None, 0.8, 0.79)),
    ],
    ids=["depthwise", "se", "official", "variance", "latency", "se-latency"],
)
def test_bound_of_other_spaces_and_of_latency(problem: Problem) -> None:
    """Above the best of all, at any multipliers; it closes; slopes from real structures support it."""
    scores, genes = everything(problem)
    best = float(scores.max())
    spent = Population(problem).evaluate(genes[:, [int(scores.argmax())]])
    if problem.budget.latency is not None:
        assert spent.latency is not None and spent.latency[0] > 0.9 * problem.budget.latency, "the budget binds"
    relaxation, rng = Relaxation(problem), np.random.default_rng(0)
    root = relaxation.root((1.5, 2.0), best)
    scale = best * np.array([1.0] * relaxation.priced + [0.05] * 2)
    points = [scale * np.append(rng.uniform(0, 2, relaxation.priced), rng.normal(size=2)) for _ in range(12)]
    centre = np.array([1.5, 2.0])
    found = [relaxation.evaluate(root, point, centre)[:2] for point in points]
    for (value, slope), at in zip(found, points, strict=True):
        assert value >= best
        for (other, _), there in zip(found, points, strict=True):
            assert other >= value + float(slope @ (there - at)) - 1e-6 * abs(value)
    design = Design(Population(problem).decode(genes, int(scores.argmax())), best, "enumeration")
    certify(problem, design, 30.0, parts=60)
    assert design.bound is not None and design.gap is not None
    assert design.bound >= best - 1e-6
    assert design.gap < 0.05, design.gap
