"""What the designers must reach on the R18 problem; minutes each."""

from __future__ import annotations

import pytest

from vitlab.methods.deepmad import anneal, evolution, milp
from vitlab.methods.deepmad.bound import certify
from vitlab.methods.deepmad.evaluate import Scoring
from vitlab.methods.deepmad.problem import Budget, Problem, resnet_space
from vitlab.methods.deepmad.search import Design
from vitlab.methods.deepmad.structure import Structure
from vitlab.models.deepmad import published_structure

R18 = Problem(
    resnet_space((2, 2, 2, 1, 2)),
    Scoring((1.0, 1.0, 1.0, 1.0, 8.0), 10.0, "corrected", "last3"),
    Budget(11_690_000, 1_820_000_000, 0.3),
    resolution=224,
)
START = R18.space.build(32, [(256, 64, 3, 1), (512, 128, 3, 1), (768, 256, 3, 1), (1024, 256, 3, 1), (2048, 512, 3, 1)])


def print_design(design: Design) -> None:
    assert R18.violations(design.structure) == []
    print(f"\n{design.solver}: {design.score:,.2f} of {design.bound} in {design.seconds:.0f} s, {design.structure}")
    print("\n".join(design.notes))


def test_the_published_network_is_no_solution() -> None:
    structure = Structure.from_list(published_structure("r18"))
    wrong = "; ".join(R18.violations(structure))
    assert "1,837,323,208 FLOPs" in wrong
    assert "fewer channels (672)" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_evolution_repaired(seed: int) -> None:
    design = evolution.design(R18, evolution.EvolutionSettings(50_000), seed, START)
    print_design(design)
    assert design.score >= 33_500


@pytest.mark.slow
def test_evolution_as_released() -> None:
    design = evolution.design(R18, evolution.EvolutionSettings(50_000, frozen_last=True), 0, START)
    print_design(design)
    assert design.score < 30_500
    assert design.structure.blocks[-1] == START.blocks[-1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_anneal(seed: int) -> None:
    design = anneal.design(R18, anneal.AnnealSettings(steps=6000), seed, time_limit=300)
    print_design(design)
    assert design.score >= 36_450


@pytest.mark.slow
def test_milp_and_bound() -> None:
    design = milp.design(R18, milp.MilpSettings(), 0, time_limit=600)
    assert any("solved within" in note for note in design.notes)
    certify(R18, design, float("inf"), parts=100)  # parts, not seconds: the gap is that of no one machine
    print_design(design)
    assert design.score >= 36_400
    assert design.bound is not None
    assert design.bound >= 36_527.24  # the best known by other means
    assert design.gap is not None
    assert design.gap < 0.05
