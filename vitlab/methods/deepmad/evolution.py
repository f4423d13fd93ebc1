"""The released evolutionary search (specification of the code, section 7), on the analytic evaluator.

A population of 256 copies of a start; a parent is drawn uniformly, its child is two mutations of single units away; a
child within the budgets joins, and when the population is too large, duplicates are removed and the best 256 stay.
There is no crossover. Plain Python, since every child depends on the one before it.

Two defects of the released code can be switched on: ``frozen_last`` (the last unit of the list can never mutate) and,
through the problem's mode ``official``, its arithmetic. One generator, seeded, makes every choice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from vitlab.errors import UserError
from vitlab.files import stable_dict
from vitlab.methods.deepmad.anneal import AnnealSettings, anneal
from vitlab.methods.deepmad.problem import Problem, Space, to_grid
from vitlab.methods.deepmad.search import Design, Search
from vitlab.methods.deepmad.structure import Conv, Structure, Superblock, Unit

RESNET_SCALES = (1.5, 1.25, 0.8, 0.6, 0.5)
DEPTHWISE_SCALES = tuple(tenths / 10 for tenths in range(5, 21))


@dataclass(frozen=True)
class EvolutionSettings:
    """Sizes of the search and its switches.

    Attributes:
        evaluations: children in all, whether within the budgets or not.
        population: structures kept.
        mutations: of single units, from parent to child.
        frozen_last: the last unit never mutates, as in the released code since version 2.0.
        minor: change channels and bottlenecks only.
    """

    evaluations: int = 500_000
    population: int = 256
    mutations: int = 2
    frozen_last: bool = False
    minor: bool = False

    FIRST: ClassVar[tuple[str, ...]] = ("evaluations", "population", "mutations", "frozen_last", "minor")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""


class Mutation:
    """Changes one unit at a time, as the released search spaces do."""

    def __init__(self, space: Space, resolution: int, settings: EvolutionSettings) -> None:
        self.space, self.resolution, self.settings = space, resolution, settings
        self.sides = space.sides(resolution)
        self.scales = DEPTHWISE_SCALES if space.ratios else RESNET_SCALES
        self.what = ("out", "bottleneck") if settings.minor else ("out", "kernel", "bottleneck", "depth")

    def child(self, parent: Structure, rng: random.Random) -> Structure:
        """``parent`` after the configured number of mutations."""
        units = list(parent.units)
        for _ in range(self.settings.mutations):
            number = rng.randrange(len(units) - 1 if self.settings.frozen_last else len(units))
            units[number] = self._mutate(units, number, rng)
        return Structure(tuple(units))

    def _mutate(self, units: list[Unit], number: int, rng: random.Random) -> Unit:
        unit = units[number]
        if isinstance(unit, Conv):
            if number:  # the last convolution stays as it is
                return unit
            low, high = self.space.stem
            out = max(low, min(high, to_grid(unit.out * rng.choice(self.scales))))
            # The input of the next unit follows the stem; its own channels stay.
            return unit._replace(out=out)
        before = units[number - 1].out
        after = units[number + 1] if number + 1 < len(units) else None
        limit = after.out if after is not None and self.space.monotone else self.space.out_max
        what = rng.choice(self.what)
        if what == "out":
            changed = self._out(unit, before, limit, after, rng)
        elif what == "kernel":
            kernel = unit.kernel
            for _ in self.space.kernels:
                kernel = rng.choice(self.space.kernels)
                if kernel != unit.kernel:
                    break
            changed = unit._replace(kernel=kernel)
        elif what == "bottleneck":
            changed = unit._replace(bottleneck=self._bottleneck(unit, rng))
        else:
            most = self.space.depth_at(number - 1)
            changed = unit._replace(depth=max(1, min(most, unit.depth + rng.choice((-2, -1, 1, 2)))))
        if not self.space.ratios and changed.bottleneck < changed.out * self.space.bottleneck_share:
            changed = changed._replace(bottleneck=to_grid(changed.out * self.space.bottleneck_share))
        return changed._replace(kernel=self.space.kernel_at(changed.kernel, self.sides[number - 1]))

    def _out(self, unit: Superblock, before: int, limit: int, after: Unit | None, rng: random.Random) -> Superblock:
        space = self.space
        out = min(space.out_max, to_grid(unit.out * rng.choice(self.scales)))
        if space.monotone:
            out = max(out, before)
        if space.growth is not None:
            out = min(out, space.growth * before)
        out = min(out, limit)
        if space.growth is not None and isinstance(after, Superblock) and out < to_grid(after.out / space.growth):
            out = to_grid(after.out / space.growth)
        if not space.ratios:
            return unit._replace(out=out, bottleneck=min(unit.bottleneck, out))
        ratio = min(space.ratios, key=lambda tenths: abs(tenths / 10 - unit.bottleneck / unit.out))
        return unit._replace(out=out, bottleneck=to_grid(ratio * out / 10))

    def _bottleneck(self, unit: Superblock, rng: random.Random) -> int:
        if self.space.ratios:
            return to_grid(rng.choice(self.space.ratios) * unit.out / 10)
        return min(to_grid(unit.bottleneck * rng.choice(self.scales)), unit.out)


def evolve(search: Search, start: Structure, settings: EvolutionSettings, seed: int) -> None:
    """Run the loop; ``search`` keeps the best solution.

    Children are accepted on the budgets alone, as in the released code; the result is the best that also lies in the
    space.

    Raises:
        UserError: ``start`` exceeds a budget.
    """
    problem = search.problem
    if over := problem.excess(start):
        raise UserError(f"The start of the evolution exceeds a budget: {'; '.join(over)}.", "Give a smaller one.")
    rng = random.Random(seed)
    mutation = Mutation(problem.space, problem.resolution, settings)
    budget = problem.budget
    count = 0
    if (state := search.resume()) is not None:
        version, inner, gauss = state["rng"]
        rng.setstate((version, tuple(inner), gauss))
        members = [(float(score), Structure.from_list(units)) for score, units in state["members"]]
        count = int(state["count"])
    else:
        members = [(problem.evaluate(start).score, start)] * settings.population
        search.offer(start)
    search.total = settings.evaluations
    while count < settings.evaluations and not search.over:
        for _ in range(min(100, settings.evaluations - count)):
            child = mutation.child(rng.choice(members)[1], rng)
            found = problem.evaluate(child)
            count += 1
            search.evaluations += 1
            if (
                (budget.params is not None and found.params > budget.params)
                or (budget.flops is not None and found.flops > budget.flops)
                or (budget.rho is not None and found.rho > budget.rho)
                or (budget.latency is not None and problem.latency(child) > budget.latency)
            ):
                continue
            score = found.score
            members.append((score, child))
            if score > search.score:
                search.offer(child)
            if len(members) > settings.population:
                members = _select(members, settings.population)
        if search.report():
            search.save(_state(rng, members, count))
    if count < settings.evaluations:
        search.notes.append(f"The time was over after {count:,} of {settings.evaluations:,} evaluations.")
    best_score, best = members[0] if members else (search.score, start)
    if best_score > search.score + 1e-9:
        search.notes.append(
            f"The evolution also found a score of {best_score:,.2f} outside the space: "
            f"{'; '.join(problem.violations(best))}."
        )


def _select(members: list[tuple[float, Structure]], count: int) -> list[tuple[float, Structure]]:
    """The best ``count`` different structures, best first."""
    distinct = {structure: score for score, structure in members}
    ranked = sorted(((score, structure) for structure, score in distinct.items()), key=lambda one: -one[0])
    return ranked[:count]


def _state(rng: random.Random, members: list[tuple[float, Structure]], count: int) -> dict[str, Any]:
    return {
        "rng": rng.getstate(),
        "members": [(score, structure.to_list()) for score, structure in members],
        "count": count,
    }


def find_start(problem: Problem, seed: int) -> Structure:
    """The start where none is given: the first solution of a short annealing."""
    search = Search(problem, "start", {}, first=True)
    anneal(search, AnnealSettings(chains=256, steps=2000), seed)
    return search.finish().structure


def design(
    problem: Problem, settings: EvolutionSettings, seed: int, start: Structure | None = None, **search_options: Any
) -> Design:
    """Design by evolution from ``start``; ``search_options`` are those of :class:`Search`."""
    options = {"settings": stable_dict(settings), "seed": seed, "start": start.to_list() if start else None}
    search = Search(problem, "evolution", options, **search_options)
    evolve(search, start or find_start(problem, seed), settings, seed)
    return search.finish()
