"""Simulated annealing of many chains at once, then exhaustive small moves.

Budgets are soft during the annealing: a structure beyond them is penalised in proportion to ln(spent / allowed), so
that chains may pass through infeasible structures; only feasible ones are kept. All chains move in one numpy step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitlab.files import stable_dict
from vitlab.methods.deepmad.population import Genes, Population
from vitlab.methods.deepmad.problem import GRID, Problem, to_grid
from vitlab.methods.deepmad.search import Design, Search

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class AnnealSettings:
    """Length and temperatures of the annealing.

    Attributes:
        chains: moved at once.
        steps: of every chain.
        hot, cold: first and last temperature, as a share of the score.
        price: penalty of exceeding a budget e times, as a multiple of the score.
        renew: how many times the worst fifth of the chains is replaced by the best fifth.
    """

    chains: int = 1024
    steps: int = 30_000
    hot: float = 0.02
    cold: float = 1e-5
    price: float = 2.0
    renew: int = 60

    FIRST: ClassVar[tuple[str, ...]] = ("chains", "steps", "hot", "cold", "price", "renew")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""


class Moves:
    """Random changes of genes that stay in the space."""

    def __init__(self, population: Population) -> None:
        space, blocks = population.space, population.blocks
        self.space, self.blocks, self.full = space, blocks, population.full
        self.rows = population.rows
        self.out = slice(1, 1 + blocks)
        self.narrow = slice(1 + blocks, 1 + 2 * blocks)
        self.kernel = slice(1 + 2 * blocks, 1 + 3 * blocks)
        self.depth = slice(1 + 3 * blocks, 1 + 4 * blocks)
        top = space.out_max // GRID
        self.low, self.high = np.ones(self.rows, np.int64), np.full(self.rows, top)
        self.low[0], self.high[0] = space.stem[0] // GRID, space.stem[1] // GRID
        if not self.full:
            self.low[self.narrow], self.high[self.narrow] = space.ratios[0], space.ratios[-1]
        self.high[self.depth] = [space.depth_at(block) for block in range(blocks)]
        choices = [space.kernels_at(side) for side in space.sides(population.problem.resolution)]
        self.choices = choices
        most = max(map(len, choices))
        self.kernels = np.array([(row * most)[:most] for row in choices], np.int32)
        self.kernel_counts = np.array([len(row) for row in choices])
        # Least bottleneck, in units of 8, for every number of output channels.
        self.floor = np.array(
            [min(to_grid(GRID * o * space.bottleneck_share) // GRID, max(o, 1)) for o in range(top + 1)], np.int32
        )

    def start(self, rng: np.random.Generator, count: int) -> Genes:
        """Random members of the space [rows, count], log-uniform: small ones more often."""
        genes = np.empty((self.rows, count), np.int32)
        low, high = np.log(self.low)[:, None], np.log(self.high + 1)[:, None]
        genes[:] = np.exp(rng.uniform(size=genes.shape) * (high - low) + low)
        for block in range(self.blocks):
            genes[self.kernel][block] = rng.choice(self.choices[block], count)
        self.repair(genes)
        return genes

    def propose(self, genes: Genes, rng: np.random.Generator, reach: float) -> Genes:
        """Change one to three genes of each column; channels by up to about ``reach`` of their value."""
        new = genes.copy()
        columns = np.arange(genes.shape[1])
        self._change(new, columns, rng, reach)
        # Two or three genes at once, often enough: near a budget one gene must shrink for another to grow.
        for share in (0.6, 0.3):
            chosen = columns[rng.random(len(columns)) < share]
            self._change(new, chosen, rng, reach)
        self.repair(new)
        return new

    def _change(self, genes: Genes, columns: Numbers, rng: np.random.Generator, reach: float) -> None:
        n = len(columns)
        row = rng.integers(0, self.rows, n)
        old = genes[row, columns]
        # Steps are relative to the value: the score depends on logarithms of the channels.
        size = 1 + (rng.exponential(reach, n) * old).astype(np.int64)
        deep = row >= self.depth.start
        size = np.where(deep, np.minimum(size, 2), size)
        new = np.clip(old + np.where(rng.random(n) < 0.5, size, -size), self.low[row], self.high[row])
        at = row - self.kernel.start
        spatial = (at >= 0) & (at < self.blocks)
        block = np.where(spatial, at, 0)
        drawn = self.kernels[block, (rng.random(n) * self.kernel_counts[block]).astype(np.int64)]
        genes[row, columns] = np.where(spatial, drawn, new)

    def repair(self, genes: Genes) -> None:
        """Move every gene to the nearest value that the genes before it allow, in place."""
        space = self.space
        before = genes[0]
        for block in range(self.blocks):
            out = genes[self.out][block]
            if space.monotone:
                np.maximum(out, before, out=out)
            if space.growth is not None:
                np.minimum(out, space.growth * before, out=out)
            before = out
            if self.full:
                narrow = genes[self.narrow][block]
                np.maximum(narrow, self.floor[out], out=narrow)
                np.minimum(narrow, out, out=narrow)
        np.clip(genes[self.depth], 1, self.high[self.depth][:, None], out=genes[self.depth])

    def neighbours(self, gene: Genes) -> list[tuple[int, int]]:
        """Single changes (row, new value) of one column [rows], for the exhaustive search."""
        found: list[tuple[int, int]] = []
        for row in range(self.rows):
            value = int(gene[row])
            at = row - self.kernel.start
            if 0 <= at < self.blocks:
                found += [(row, kernel) for kernel in self.choices[at] if kernel != value]
                continue
            steps = (-2, -1, 1, 2) if row >= self.depth.start else (-3, -2, -1, 1, 2, 3)
            found += [(row, value + one) for one in steps if self.low[row] <= value + one <= self.high[row]]
        return found

    def allowed(self, genes: Genes) -> NDArray[np.bool_]:
        """Which columns lie in the space without repair."""
        repaired = genes.copy()
        self.repair(repaired)
        allowed: NDArray[np.bool_] = (repaired == genes).all(0)
        return allowed


def polish(search: Search, population: Population, together: int = 3) -> None:
    """Exhaustive moves of one to ``together`` genes from the best, until none improves it."""
    moves = Moves(population)
    while search.best is not None and not search.over:
        gene = population.encode([search.best])[:, 0]
        single = moves.neighbours(gene)
        improved = False
        for size in range(1, together + 1):
            picks = np.array(list(combinations(range(len(single)), size)), np.int32)
            rows = np.array([row for row, _ in single], np.int32)[picks]
            distinct = np.ones(len(picks), bool)
            for one in range(1, size):
                distinct &= rows[:, one] != rows[:, one - 1]  # combinations of a list sorted by row
            picks, rows = picks[distinct], rows[distinct]
            values = np.array([value for _, value in single], np.int32)[picks]
            improved = _try(search, population, moves, gene, rows, values)
            if improved:
                break
        if not improved:
            return


def _try(
    search: Search, population: Population, moves: Moves, gene: Genes, rows: Genes, values: Genes, batch: int = 65536
) -> bool:
    best, column = search.score, None
    for at in range(0, len(rows), batch):
        part = rows[at : at + batch]
        genes = np.repeat(gene[:, None], len(part), 1)
        for one in range(rows.shape[1]):
            genes[part[:, one], np.arange(len(part))] = values[at : at + batch, one]
        genes = genes[:, moves.allowed(genes)]
        if genes.shape[1] == 0:
            continue
        scores = population.evaluate(genes)
        search.evaluations += genes.shape[1]
        value = np.where(population.excess(scores) <= 0, scores.score, -np.inf)
        top = int(value.argmax())
        if value[top] > best + 1e-9:
            best, column = float(value[top]), genes[:, top : top + 1]
        if search.over:
            break
    return column is not None and search.offer(population.decode(column, 0))


def anneal(search: Search, settings: AnnealSettings, seed: int, start: Genes | None = None) -> None:
    """Anneal and polish; ``search`` keeps the best."""
    problem = search.problem
    population = Population(problem)
    moves = Moves(population)
    rng = np.random.Generator(np.random.PCG64(seed))
    if (state := search.resume()) is not None:
        rng.bit_generator.state = state["rng"]
        genes = np.array(state["genes"], np.int32)
        first, scale = int(state["step"]), float(state["scale"])
    else:
        genes = moves.start(rng, settings.chains) if start is None else start
        first, scale = 0, 0.0
    scores = population.evaluate(genes)
    excess = population.excess(scores)
    value = scores.score
    renew = max(1, settings.steps // max(1, settings.renew))
    search.total = settings.steps * settings.chains
    for step in range(first, settings.steps):
        time = step / settings.steps
        if step % renew == 0:
            scale = max(abs(float(np.median(value))), 1e-9)
        # Geometric cooling; the price rises meanwhile, so that the chains end within the budgets.
        heat = scale * settings.hot * (settings.cold / settings.hot) ** time
        price = scale * settings.price * (1 + 3 * time)
        if step and step % renew == 0:
            _renew(genes, value, excess, price)
        proposed = moves.propose(genes, rng, 0.3 * (1 - time) ** 2 + 0.005)
        scores = population.evaluate(proposed)
        beyond = population.excess(scores)
        gain = (scores.score - price * beyond) - (value - price * excess)
        # Metropolis: accept with probability min(1, exp(gain / heat)), in logarithms against overflow.
        take = np.log(rng.random(settings.chains)) * heat < gain
        genes[:, take] = proposed[:, take]
        value[take], excess[take] = scores.score[take], beyond[take]
        search.evaluations += settings.chains
        solution = np.where(beyond <= 0, scores.score, -np.inf)
        top = int(solution.argmax())
        if solution[top] > search.score + 1e-9:
            search.offer(population.decode(proposed, top))
        if step % 20 == 0 or search.first:
            if search.report(f"step {step:,} of {settings.steps:,}"):
                search.save(_state(rng, genes, step + 1, scale))
            if search.over:
                search.notes.append(f"The time was over after {step:,} of {settings.steps:,} steps of the annealing.")
                break
    search.total = None  # the number of moves of the polish is not known in advance
    polish(search, population)


def _state(rng: np.random.Generator, genes: Genes, step: int, scale: float) -> dict[str, Any]:
    return {"rng": rng.bit_generator.state, "genes": genes.tolist(), "step": step, "scale": scale}


def _renew(genes: Genes, value: NDArray[np.float64], excess: NDArray[np.float64], price: float) -> None:
    order = np.argsort(value - price * excess, kind="stable")
    fifth = len(order) // 5
    if fifth:
        worst, best = order[:fifth], order[-fifth:]
        genes[:, worst], value[worst], excess[worst] = genes[:, best], value[best], excess[best]


def design(problem: Problem, settings: AnnealSettings, seed: int, **search_options: Any) -> Design:
    """Design by annealing; ``search_options`` are those of :class:`Search`."""
    search = Search(problem, "anneal", {"settings": stable_dict(settings), "seed": seed}, **search_options)
    anneal(search, settings, seed)
    return search.finish()
