"""The *solve* stage: from the options to a structure on disk. No torch, unless costs are measured."""

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
CHECKED = 4  # networks that a cost table is checked on


def solve(context: Context, options: DeepMADOptions) -> dict[str, object]:
    """Design, and write ``structure.json``, ``design.json``, ``design.txt``, ``design.png`` and the journal."""
    config = context.config
    if not context.is_main:
        # Rank 0 designs; the other ranks wait for its result by polling, since there is no process group yet.
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
            full = options
            options = replace(options, solver="anneal", chains=256, steps=300, time_limit="20s", certify="0s")
        design = design_with(options, problem, seed, folder=context.folder, quiet=False)
        if context.dry_run:
            estimate = estimate_seconds(full, design.seconds / (256 * 300))
    design.structure.save(context.folder / STRUCTURE)
    save_design(context.folder / DESIGN, design)
    table = text_table(design.structure, problem.resolution)
    text = f"{table}\n\n{summary(problem, design.structure)}\n{certificate(design)}\n"
    atomic_write(context.folder / "design.txt", text)
    picture(design.structure, problem.resolution, title_of(problem, design), context.folder / "design.png")
    print(f"\n{text}")
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
        "notes": [*explain_score(problem, design, options), *design.notes],
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


def estimate_seconds(options: DeepMADOptions, each: float) -> float:
    """Seconds of a design, with annealing at ``each`` seconds a move; the other solvers use the full time limit."""
    limit = seconds(options.time_limit) or float("inf")
    moves = options.chains * options.steps if options.solver == "anneal" else float("inf")
    return round(min(limit, each * moves) + seconds(options.certify), 1)


def certificate(design: Design) -> str:
    """The proven bound of the design, if any, and the notes of the solver."""
    lines = []
    if design.bound is not None:
        lines.append(f"bound   {design.bound:,.2f}: no network of this space scores more; gap {design.gap:.2%}")
    return "\n".join([*lines, *design.notes])


def explain_score(problem: Problem, design: Design, options: DeepMADOptions) -> list[str]:
    """Notes for the report: what the score means, and what is proven of it."""
    found = problem.evaluate(design.structure)
    notes = [
        f"The designed network scores {found.score:,.0f} (entropy {found.entropy:,.0f}, depth penalty "
        f"{found.penalty:,.0f}) at an effectiveness rho of {found.rho:.3f}. The score is an upper bound of the entropy "
        "that the network's features can carry, computed from widths, depths and sides alone; it is no measured "
        "accuracy, and of two networks the one that scores more need not classify better."
    ]
    if design.bound is not None:
        notes.append(
            f"It is proven that no network of this space and these budgets scores more than {design.bound:,.0f} "
            f"({design.gap:.2%} above)."
        )
    elif options.structure is None:
        notes.append("It is the best that was found; no upper bound was computed (method.certify=2min).")
    return notes


def title_of(problem: Problem, design: Design) -> str:
    """One line above the picture."""
    spent = problem.evaluate(design.structure)
    return f"{spent.params / 1e6:.3g} M parameters, {spent.flops / 1e9:.3g} G FLOPs, rho {spent.rho:.2f}"


def cost_table(context: Context, options: DeepMADOptions) -> CostTable | None:
    """The table of layer costs of ``method.costs``, measured now if that is "measure"; a copy is kept in the folder."""
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

    accelerator = context.config.trainer.accelerator
    device = "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
    problem = problem_of(options, context.config.dataset.size, latency=False, classes=options.classes)
    most = max([1.0, *options.sweep])
    partial = context.folder / "costs.partial.json"
    params, flops = problem.budget.params, problem.budget.flops
    table = measure(
        problem.space,
        problem.resolution,
        batch=options.cost_batch,
        device=device,
        networks=sample_structures(problem, CHECKED),
        affordable=lambda weights, side: (
            (params is None or weights <= most * params) and (flops is None or weights * side**2 <= most * flops)
        ),
        say=lambda text: print(f"measuring costs: {text}", flush=True),
        partial=partial,
    )
    table.save(kept)
    partial.unlink(missing_ok=True)
    return table


def sample_structures(problem: Problem, count: int) -> list[Structure]:
    """Random members of the space to check a cost table on, evenly spread over the smaller half by FLOPs."""
    import numpy as np

    from vitlab.methods.deepmad.anneal import Moves
    from vitlab.methods.deepmad.population import Population

    population = Population(problem)
    genes = Moves(population).start(np.random.default_rng(0), 256)
    genes[-population.blocks :] = np.minimum(genes[-population.blocks :], 8)  # depths, to keep the check short
    order = np.argsort(population.evaluate(genes).flops)
    return [population.decode(genes, int(order[(number + 1) * 128 // count])) for number in range(count)]


def class_count(context: Context, options: DeepMADOptions) -> int | None:
    """Classes of the data set, where the head is counted and ``method.classes`` is null."""
    if not options.count_head or options.classes is not None:
        return options.classes
    from vitlab.data.build import build_source

    return len(build_source(context.config.dataset, "train", context.config.seed).classes)
