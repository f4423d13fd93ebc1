"""The stage that designs: from the options to a structure on disk. No torch, unless costs are measured."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from vitlab.files import atomic_write
from vitlab.methods.base import Context
from vitlab.methods.deepmad.figures import picture, summary, text_table
from vitlab.methods.deepmad.latency import CostTable
from vitlab.methods.deepmad.options import DeepMADOptions, problem_of, seconds, start_of
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.search import Design, save_design
from vitlab.methods.deepmad.structure import Structure
from vitlab.training.interrupt import stop_if_requested

STRUCTURE, DESIGN, COSTS = "structure.json", "design.json", "costs.json"
CHECKED = 4  # whole networks that a cost table is checked on


def solve(context: Context, options: DeepMADOptions) -> dict[str, object]:
    """Design, and leave ``structure.json``, ``design.json``, ``design.txt``, ``design.png`` and the journal."""
    config = context.config
    if not context.is_main:
        # One process designs; the others need its answer, and have no process group yet to wait in.
        while not (context.folder / DESIGN).exists():
            stop_if_requested()
            time.sleep(0.5)
        return {}
    costs = cost_table(context, options)
    problem = problem_of(options, config.dataset.size, classes=class_count(context, options), costs=costs)
    seed = config.seed if options.seed is None else options.seed
    estimate = None
    if options.structure is not None:
        structure = Structure.load(Path(options.structure).expanduser())
        over = problem.violations(structure)
        design = Design(structure, problem.evaluate(structure).score, "given")
        design.notes = [f"The given structure is outside the programme: {one}." for one in over]
    else:
        if context.dry_run:
            whole = options
            options = replace(options, solver="anneal", chains=256, steps=300, time_limit="20s", certify="0s")
        design = design_with(options, problem, seed, folder=context.folder, quiet=False)
        if context.dry_run:
            estimate = expected(whole, design.seconds / (256 * 300))
    design.structure.save(context.folder / STRUCTURE)
    save_design(context.folder / DESIGN, design)
    table = text_table(design.structure, problem.resolution)
    told = f"{table}\n\n{summary(problem, design.structure)}\n{certificate(design)}\n"
    atomic_write(context.folder / "design.txt", told)
    picture(design.structure, problem.resolution, title_of(problem, design), context.folder / "design.png")
    print(f"\n{told}")
    spent = problem.evaluate(design.structure)
    return {
        "seconds": design.seconds if estimate is None else estimate,
        "params": spent.params,
        "flops": spent.flops,
        "score": design.score,
        "rho": spent.rho,
        "bound": design.bound,
        "gap": design.gap,
        "evaluations": design.evaluations,
        "notes": [*meaning(problem, design, options), *design.notes],
    }


def design_with(
    options: DeepMADOptions, problem: Problem, seed: int, folder: Path | None = None, quiet: bool = True
) -> Design:
    """Design with the solver of ``options``; add a proven bound if there is time for one."""
    limit = seconds(options.time_limit) or None
    if options.solver == "anneal":
        from vitlab.methods.deepmad import anneal

        settings = anneal.AnnealSettings(chains=options.chains, steps=options.steps)
        design = anneal.design(problem, settings, seed, folder=folder, time_limit=limit, quiet=quiet)
    elif options.solver == "milp":
        from vitlab.methods.deepmad import milp

        rounds = milp.MilpSettings()
        design = milp.design(problem, rounds, seed, folder=folder, time_limit=limit, quiet=quiet)
    else:
        from vitlab.methods.deepmad import evolution

        loop = evolution.EvolutionSettings(evaluations=options.evaluations, frozen_last=options.frozen_last)
        start = start_of(options, problem)
        design = evolution.design(problem, loop, seed, start, folder=folder, time_limit=limit, quiet=quiet)
    if seconds(options.certify) > 0:
        from vitlab.methods.deepmad.bound import certify

        certify(problem, design, seconds(options.certify), quiet=quiet)
    return design


def expected(options: DeepMADOptions, each: float) -> float:
    """Seconds of a design, of which the annealing takes ``each`` for one move; the others take the time they have."""
    limit = seconds(options.time_limit) or float("inf")
    moves = options.chains * options.steps if options.solver == "anneal" else float("inf")
    return round(min(limit, each * moves) + seconds(options.certify), 1)


def certificate(design: Design) -> str:
    """How good the design is known to be, and what the solver has to say."""
    lines = []
    if design.bound is not None:
        lines.append(f"bound   {design.bound:,.2f}: no network of this space scores more; gap {design.gap:.2%}")
    return "\n".join([*lines, *design.notes])


def meaning(problem: Problem, design: Design, options: DeepMADOptions) -> list[str]:
    """What the score is and is not, for the report."""
    found = problem.evaluate(design.structure)
    told = [
        f"The designed network scores {found.score:,.0f} (entropy {found.entropy:,.0f}, depth penalty "
        f"{found.penalty:,.0f}) at an effectiveness rho of {found.rho:.3f}. The score is an upper bound of the entropy "
        "that the network's features can carry, computed from widths, depths and sides alone; it is no measured "
        "accuracy, and of two networks the one that scores more need not classify better."
    ]
    if design.bound is not None:
        told.append(
            f"It is proven that no network of this space and these budgets scores more than {design.bound:,.0f} "
            f"({design.gap:.2%} above)."
        )
    elif problem.space.kind == "K1KXK1" and options.structure is None:
        told.append("It is the best that was found; how much more is possible was not asked (method.certify=2min).")
    elif options.structure is None:
        told.append("It is the best that was found; no upper bound of the score is known for depthwise spaces.")
    return told


def title_of(problem: Problem, design: Design) -> str:
    """One line above the picture."""
    spent = problem.evaluate(design.structure)
    return f"{spent.params / 1e6:.3g} M parameters, {spent.flops / 1e9:.3g} G FLOPs, rho {spent.rho:.2f}"


def cost_table(context: Context, options: DeepMADOptions) -> CostTable | None:
    """The table of layer costs that the options name, measured now if they say so; a copy stays in the folder."""
    if options.costs is None:
        return None
    kept = context.folder / COSTS
    if kept.exists():
        return CostTable.load(kept)
    if options.costs != "measure":
        table = CostTable.load(Path(options.costs).expanduser())
        table.save(kept)
        return table
    import torch

    from vitlab.methods.deepmad.latency import measure

    wanted = context.config.trainer.accelerator
    device = "cuda" if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
    problem = problem_of(options, context.config.dataset.size, latency=False, classes=options.classes)
    most = max([1.0, *options.sweep])
    partial = context.folder / "costs.partial.json"
    params, flops = problem.budget.params, problem.budget.flops
    table = measure(
        problem.space,
        problem.resolution,
        batch=options.cost_batch,
        device=device,
        networks=samples(problem, CHECKED),
        affordable=lambda weights, side: (
            (params is None or weights <= most * params) and (flops is None or weights * side**2 <= most * flops)
        ),
        say=lambda text: print(f"measuring costs: {text}", flush=True),
        partial=partial,
    )
    table.save(kept)
    partial.unlink(missing_ok=True)
    return table


def samples(problem: Problem, count: int) -> list[Structure]:
    """Members of the space to check a cost table on: random ones, of different sizes up to the middling."""
    import numpy as np

    from vitlab.methods.deepmad.anneal import Moves
    from vitlab.methods.deepmad.population import Population

    population = Population(problem)
    genes = Moves(population).start(np.random.default_rng(0), 256)
    genes[-population.blocks :] = np.minimum(genes[-population.blocks :], 8)  # depths, to keep the check short
    order = np.argsort(population.evaluate(genes).flops)
    return [population.decode(genes, int(order[(number + 1) * 128 // count])) for number in range(count)]


def class_count(context: Context, options: DeepMADOptions) -> int | None:
    """Classes of the data set, where the head is counted and the options do not say."""
    if not options.count_head or options.classes is not None:
        return options.classes
    from vitlab.data.build import build_source

    return len(build_source(context.config.dataset, "train", context.config.seed).classes)
