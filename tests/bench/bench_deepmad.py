"""The designers at equal time on the R18 problem: best score over time, and a picture of it.

    python tests/bench/bench_deepmad.py [SECONDS] [FOLDER]

Also structures evaluated per second, one by one and in batches.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from vitlab.files import atomic_write
from vitlab.methods.deepmad import anneal, evolution, milp
from vitlab.methods.deepmad.evaluate import Scoring
from vitlab.methods.deepmad.population import Population
from vitlab.methods.deepmad.problem import Budget, Problem, resnet_space
from vitlab.methods.deepmad.search import Design
from vitlab.report.style import LIGHT, figure, png, themed

PROBLEM = Problem(
    resnet_space((2, 2, 2, 1, 2)),
    Scoring((1.0, 1.0, 1.0, 1.0, 8.0), 10.0),
    Budget(11_690_000, 1_820_000_000, 0.3),
    resolution=224,
)
START = PROBLEM.space.build(
    32, [(256, 64, 3, 1), (512, 128, 3, 1), (768, 256, 3, 1), (1024, 256, 3, 1), (2048, 512, 3, 1)]
)
BEST_KNOWN = 36_538.34


def speed(seconds: float) -> tuple[float, float]:
    """Evaluations a second: one by one, and in batches of 4096."""
    population = Population(PROBLEM)
    genes = anneal.Moves(population).start(np.random.default_rng(0), 4096)
    structures = [population.decode(genes, column) for column in range(200)]

    def rate(work: int, run: object) -> float:
        assert callable(run)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            run()
            count += work
        return count / (time.perf_counter() - start)

    one = rate(200, lambda: [PROBLEM.evaluate(structure) for structure in structures])
    return one, rate(4096, lambda: population.evaluate(genes))


def designs(seconds: float) -> dict[str, Design]:
    """What each designer finds within ``seconds``; the annealing's schedule is cut to about that time."""
    probe = anneal.design(PROBLEM, anneal.AnnealSettings(steps=60), 0)
    steps = max(100, int(0.8 * 60 * seconds / probe.seconds))
    forever = 10**9
    return {
        "evolution, as released": evolution.design(
            PROBLEM, evolution.EvolutionSettings(forever, frozen_last=True), 0, START, time_limit=seconds
        ),
        "evolution, repaired": evolution.design(
            PROBLEM, evolution.EvolutionSettings(forever), 0, START, time_limit=seconds
        ),
        "annealing": anneal.design(PROBLEM, anneal.AnnealSettings(steps=steps), 0, time_limit=seconds),
        "MILP, from a short annealing": milp.design(PROBLEM, milp.MilpSettings(), 0, time_limit=seconds),
    }


def picture(found: dict[str, Design], seconds: float, path: Path) -> None:
    """Best score over time, a line for each designer."""
    with themed(LIGHT):
        drawing, axes = figure(6.4, 3.4, "best score over time, R18 problem, one core")
        for (name, design), colour in zip(found.items(), LIGHT.series, strict=False):
            x = [max(point.seconds, 0.05) for point in design.trace] + [max(seconds, design.seconds)]
            y = [point.score for point in design.trace] + [design.score]
            axes.step(x, y, where="post", color=colour, label=f"{name}: {design.score:,.0f}")
        axes.axhline(BEST_KNOWN, color=LIGHT.quiet, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(26_000, 37_000)
        axes.set_xlabel("seconds")
        axes.set_ylabel("score (no accuracy)")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.12, 0.0), fontsize=7.5)
        atomic_write(path, png(drawing))


def main(seconds: float = 60.0, folder: Path | None = None) -> dict[str, Design]:
    one, many = speed(min(2.0, seconds / 4))
    print(f"evaluations a second: {one:,.0f} one by one, {many:,.0f} in batches of 4096")
    found = designs(seconds)
    print(f"{'designer':<30} {'score':>10} {'seconds':>8} {'evaluations':>12}")
    for name, design in found.items():
        print(f"{name:<30} {design.score:>10,.2f} {design.seconds:>8.1f} {design.evaluations:>12,}")
    path = (folder or Path(tempfile.mkdtemp())) / "deepmad_designers.png"
    picture(found, seconds, path)
    print(f"picture: {path}")
    return found


@pytest.mark.bench
def test_bench(tmp_path: Path) -> None:
    found = main(1.0, tmp_path)
    assert (tmp_path / "deepmad_designers.png").exists()
    assert all(PROBLEM.violations(design.structure) == [] for design in found.values())


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 60.0,
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
