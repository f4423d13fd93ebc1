"""Designs for several budgets: the Pareto front of score, parameters, FLOPs and latency, beside hand-made networks."""

from __future__ import annotations

from typing import Any

from vitlab.config import ModelConfig
from vitlab.files import atomic_write, write_json
from vitlab.methods.base import Context
from vitlab.methods.deepmad.figures import pareto_picture, points_table
from vitlab.methods.deepmad.latency import CostTable
from vitlab.methods.deepmad.options import DeepMADOptions, beside_of, problem_of
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.search import Design, load_design
from vitlab.methods.deepmad.solve import class_count, design_with, estimate_seconds


def sweep(context: Context, options: DeepMADOptions) -> dict[str, object]:
    """Design within every multiple of the budgets; write ``sweep.json``, ``.md``, ``.png`` and each design.

    A finished design of an earlier session is kept.
    """
    config, solved = context.config, context.artifact("solve")
    costs = CostTable.load(solved / "costs.json") if (solved / "costs.json").exists() else None
    classes = class_count(context, options)
    seed = config.seed if options.seed is None else options.seed
    points, spent_seconds = [], 0.0
    for times in options.sweep[:1] if context.dry_run else options.sweep:
        problem = problem_of(options, config.dataset.size, classes=classes, costs=costs, times=times)
        path = context.folder / f"times_{times:g}" / "design.json"
        if path.exists():
            design = load_design(path)
        elif context.dry_run:
            design = load_design(solved / "design.json")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            design = design_with(options, problem, seed, folder=path.parent, quiet=False)
            write_json(path, design.to_dict())
        spent_seconds += design.seconds
        points.append(point(f"x{times:g}", problem, design))
    points += handmade_points(
        config.model, options, problem_of(options, config.dataset.size, classes=classes, costs=costs)
    )
    write_json(context.folder / "sweep.json", points)
    table = points_table(points, options.budget.rho)
    atomic_write(context.folder / "sweep.md", table)
    print(f"\n{table}")
    pareto_picture(points, context.folder / "sweep.png")
    if context.dry_run:
        rehearsal = load_design(solved / "design.json")
        spent_seconds = len(options.sweep) * estimate_seconds(
            options, rehearsal.seconds / max(1, rehearsal.evaluations)
        )
    return {"seconds": round(spent_seconds, 2), "designs": len(points)}


def handmade_points(model: ModelConfig, options: DeepMADOptions, problem: Problem) -> list[dict[str, Any]]:
    """Rows of the hand-made networks: those of ``method.beside``, and those that are trained."""
    shown = beside_of(options)
    if options.baseline:
        shown.setdefault(model.name, model)
    if options.other.name:
        shown.setdefault(options.other.name, options.other)
    if not shown:
        return []
    from vitlab.methods.deepmad.reference_networks import handmade_point

    return [
        handmade_point(name, one, problem.resolution, problem.scoring, problem.classes, problem.costs)
        for name, one in shown.items()
    ]


def point(name: str, problem: Problem, design: Design) -> dict[str, Any]:
    """One row of ``sweep.json``."""
    spent = problem.evaluate(design.structure)
    return {
        "name": name,
        "designed": True,
        "score": design.score,
        "params": spent.params,
        "flops": spent.flops,
        "rho": spent.rho,
        "latency_ms": None if problem.costs is None else problem.latency(design.structure),
        "bound": design.bound,
        "units": design.structure.to_list(),
    }
