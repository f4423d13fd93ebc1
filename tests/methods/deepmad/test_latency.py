"""Cost tables: interpolation, the three ways of predicting agree, budgets of latency are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.methods.deepmad.tables import made_up, only
from vitlab.errors import UserError
from vitlab.measure.latency_table import ROUNDS
from vitlab.methods.deepmad import anneal
from vitlab.methods.deepmad.edges import edges_of
from vitlab.methods.deepmad.evaluate import Scoring
from vitlab.methods.deepmad.latency import CHANNELS, CostTable, measure
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import Budget, Problem, Space, depthwise_space, resnet_space

SPACES = [
    resnet_space((1, 2, 1, 1, 2)),
    depthwise_space((1, 2, 1, 1, 2), squeeze=True, tail=64, stem_max=16),
]


def posed(space: Space, table: CostTable, latency: float | None = None) -> Problem:
    scoring = Scoring((1.0, 1.0, 8.0), 10.0, penalty="all")
    return Problem(space, scoring, Budget(300_000, None, 1.5, latency), 32, costs=table)


def test_interpolation_is_linear_in_logarithms() -> None:
    table = made_up(SPACES[0], power=0.7)
    into, out = np.array([8, 24, 100, 2048]), np.array([16, 24, 64, 8])
    assert table.pointwise_ms(into, out, 8) == pytest.approx(1e-6 * (into * out) ** 0.7 * 64)
    kernels = np.array([3, 5, 3, 5])
    assert table.spatial_ms(into, kernels, 2, 4) == pytest.approx(1e-6 * (kernels**2 * into) ** 0.7 * 16)


@pytest.mark.parametrize(
    ("space", "fingerprint", "times"),
    [
        (
            SPACES[0],
            "5f2782580e526314",
            [0.00262062416347023, 0.016866434883679924, 0.07199185579858342, 3.789999529651335],
        ),
        (
            SPACES[1],
            "433643cfed2bf997",
            [0.00218282871750123, 0.01569563229373356, 0.06542295086119781, 3.448711437192658],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Space) else "",
)
def test_tables_of_before_keep_their_numbers(
    space: Space, fingerprint: str, times: list[float], tmp_path: Path
) -> None:
    """Times and fingerprints as the first version of the table gave them, from the keys that its files have."""
    table = made_up(space, 0.7)
    table.save(tmp_path / "costs.json")
    plain = json.loads((tmp_path / "costs.json").read_text())
    keys = {"device", "batch", "kind", "channels", "pointwise", "spatial", "stem", "scale", "error"}
    assert set(plain) == keys
    assert CostTable.load(tmp_path / "costs.json").fingerprint == fingerprint
    i, o, b = np.array([8, 24, 100, 2048]), np.array([16, 24, 64, 900]), np.array([9, 33, 70, 1000])
    k, depth = np.array([3, 5, 3, 5]), np.array([1, 2, 3, 4])
    assert table.superblock_ms(space.kind, i, o, b, k, depth, 2, 8) == pytest.approx(times, rel=1e-14)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kind)
def test_structure_population_and_edges_agree(space: Space) -> None:
    problem = posed(space, made_up(space))
    population = Population(problem)
    genes = anneal.Moves(population).start(np.random.default_rng(0), 20)
    latency = population.evaluate(genes).latency
    assert latency is not None
    for column in range(20):
        structure = population.decode(genes, column)
        assert latency[column] == pytest.approx(problem.latency(structure))
        edges = edges_of(problem, only(structure, space))
        assert edges.latency is not None
        assert edges.latency[edges.path(structure)].sum() == pytest.approx(latency[column])


def test_a_budget_of_latency_is_kept() -> None:
    table = made_up(SPACES[0])
    settings = anneal.AnnealSettings(chains=128, steps=300)
    free = anneal.design(posed(SPACES[0], table), settings, 0)
    took = table.predict(free.structure, 32)
    bound = posed(SPACES[0], table, took / 2)
    found = anneal.design(bound, settings, 0)
    assert bound.violations(found.structure) == []
    assert bound.latency(found.structure) <= took / 2
    assert found.score < free.score
    assert any("ms of" in one for one in bound.violations(free.structure))


def test_measured_tables(tmp_path: Path) -> None:
    space = replace(resnet_space((2, 2)), kernels=(3,))
    networks = [space.build(16, [(32, 8, 3, 1), (64, 16, 3, 2)])]
    calls: list[str] = []
    again = partial(
        measure, space, 32, batch=1, device="cpu", networks=networks, say=calls.append, channels=(8, 32, 64),
        partial=tmp_path / "partial.json",
    )  # fmt: skip
    table = again()
    assert set(table.pointwise) == {"16", "8", "4"}
    assert set(table.spatial) == {"3/2/8", "3/1/8", "3/2/4", "3/1/4"}
    assert all(value > 0 for rows in table.pointwise.values() for row in rows for value in row)
    assert table.error == 0.0  # one network: the scale fits it exactly
    assert all(np.all(np.diff(rows, axis=axis) >= 0) for rows in table.pointwise.values() for axis in (0, 1))
    assert table.measured is not None
    assert table.measured["held_out"] == []  # no other network gives a scale
    assert (table.measured["conditions"]["batch"], table.measured["repeats"]) == (1, ROUNDS)
    kept = json.loads((tmp_path / "partial.json").read_text())["seconds"]
    assert len(kept) == 3 * 3 * 3 + 4 * 3 + 3 + 1
    assert np.median(kept["stem/16 64"]) * 1e3 <= table.stem["16"][-1] * (1 + 1e-12)
    assert again().stem == table.stem, "what was measured is not measured again"
    table.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == table
    assert len(calls) > 4
    # Layers that no budget pays for are not timed: they cost as much more as they have more weights.
    subset = partial(measure, space, 32, batch=1, device="cpu", networks=[], say=calls.append, channels=(8, 32, 64))
    networks.append(space.build(16, [(16, 8, 3, 1), (64, 16, 3, 1)]))
    cheap = subset(affordable=lambda weights, side: weights <= 9 * 32**2, networks=networks)
    assert cheap.measured is not None
    one, two = cheap.measured["held_out"]  # each predicted with the scale of the other
    assert one["predicted"] / one["measured"] == pytest.approx(two["measured"] / two["predicted"])
    assert one["structure"] == networks[0].to_list()
    assert cheap.spatial["3/1/8"][2] == pytest.approx(4 * cheap.spatial["3/1/8"][1])
    none = subset(affordable=lambda weights, side: False)
    rows = none.pointwise["8"]
    assert rows[2][1] == pytest.approx(rows[0][0] * (64 / 8) * (32 / 8))
    with pytest.raises(UserError, match="3/1/16"):
        table.spatial_ms(np.array([8]), np.array([3]), 1, 16)
    with pytest.raises(UserError, match="no cost table"):
        CostTable.load(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="no cost table"):
        CostTable.load(tmp_path / "other.json")
    assert CHANNELS[-1] == 2048
