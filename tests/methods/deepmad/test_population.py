"""The formulas over arrays agree with those for one structure, in every space and mode."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitlab.methods.deepmad.anneal import Moves
from vitlab.methods.deepmad.evaluate import MODES, PENALTIES, Scoring, evaluate
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import Budget, Problem, Space, depthwise_space, resnet_space

SPACES = {
    "resnet": resnet_space((2, 2, 2, 1, 2)),
    "se": depthwise_space((2, 2, 2, 1, 2), squeeze=True, tail=1792),
    "depthwise": depthwise_space((1, 2, 2, 2, 2), squeeze=False, tail=None),
    "fixed": depthwise_space((2, 2, 2, 1, 2), squeeze=True, tail=1280, expansion=6.0),
}
ALPHAS = (1.0, 0.0, 1.0, 2.0, 8.0)


def problem(space: Space, mode: str = "corrected", penalty: str = "last3", classes: int | None = None) -> Problem:
    scoring = Scoring(ALPHAS, 10.0, mode, penalty, *((1.0, 1.0) if classes is None else (0.9, 1.2)))
    return Problem(space, scoring, Budget(10_000_000, 10**9, 0.4), 224, classes)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("mode", "penalty"), list(zip(MODES, PENALTIES, strict=True)))
@pytest.mark.parametrize("classes", [None, 10])
def test_agrees_with_the_scalar_form(name: str, mode: str, penalty: str, classes: int | None) -> None:
    posed = problem(SPACES[name], mode, penalty, classes)
    population = Population(posed)
    genes = Moves(population).start(np.random.default_rng(1), 60)
    scores = population.evaluate(genes)
    excess = population.excess(scores)
    for column in range(genes.shape[1]):
        structure = population.decode(genes, column)
        assert not posed.space.violations(structure, 224)
        found = posed.evaluate(structure)
        assert (found.params, found.flops) == (scores.params[column], scores.flops[column])
        assert scores.entropy[column] == pytest.approx(found.entropy, rel=1e-12)
        assert scores.penalty[column] == pytest.approx(found.penalty, rel=1e-9)
        assert scores.log_rho[column] == pytest.approx(math.log(found.rho), abs=1e-12)
        assert (excess[column] > 0) == bool(posed.excess(structure))
        again = population.encode([structure])
        assert population.decode(again, 0) == structure


def test_chunks_change_nothing() -> None:
    population = Population(problem(SPACES["resnet"]))
    genes = Moves(population).start(np.random.default_rng(0), 5000)
    full, part = population.evaluate(genes), population.evaluate(genes[:, 4990:])
    assert np.array_equal(full.score[4990:], part.score)


@pytest.mark.parametrize("name", SPACES)
def test_moves_stay_in_the_space(name: str) -> None:
    posed = problem(SPACES[name])
    population = Population(posed)
    moves, rng = Moves(population), np.random.default_rng(0)
    genes = moves.start(rng, 40)
    for reach in (0.5, 0.1, 0.01):
        for _ in range(20):
            genes = moves.propose(genes, rng, reach)
        assert moves.allowed(genes).all()
        for column in range(genes.shape[1]):
            assert not posed.space.violations(population.decode(genes, column), 224)


def test_invalid_scorings_are_refused() -> None:
    structure = SPACES["resnet"].build(32, [(64, 16, 3, 1)] * 5)
    with pytest.raises(ValueError, match="multiple of 32"):
        evaluate(structure, 220, Scoring((1.0,) * 5, 0.0))
    with pytest.raises(ValueError, match="4 alphas for 5 stages"):
        evaluate(structure, 224, Scoring((1.0,) * 4, 0.0))
    with pytest.raises(ValueError, match="mode"):
        Scoring((1.0,), 0.0, "right")


def test_flops_at_a_small_side_are_integers() -> None:
    """FLOPs are integers at every allowed side, also where only one pixel is left."""
    structure = SPACES["resnet"].build(8, [(8, 8, 1, 1)] * 5)
    found = evaluate(structure, 32, Scoring((1.0,) * 5, 0.0))
    assert isinstance(found.flops, int)
    assert found.stages[-1].side == 1
