"""Tables of choices and of costs for tests."""

from __future__ import annotations

from vitlab.methods.deepmad.edges import Table
from vitlab.methods.deepmad.latency import CostTable
from vitlab.methods.deepmad.problem import Space
from vitlab.methods.deepmad.structure import Structure


def only(structure: Structure, space: Space) -> Table:
    """The table that leaves no choice: of everything, what ``structure`` has."""
    blocks = structure.blocks
    return Table(
        (structure.stem.out,),
        tuple((b.out,) for b in blocks),
        tuple((b.bottleneck,) for b in blocks) if not space.ratios else (space.ratios,) * len(blocks),
        tuple((b.kernel,) for b in blocks),
        tuple((b.depth,) for b in blocks),
    )


def made_up(space: Space, power: float = 1.0) -> CostTable:
    """Times that are a power law of the channels, which the interpolation must reproduce exactly."""
    grid = [8, 64, 2048]
    sides = [16, 8, 4, 1]
    table = CostTable("none", 1, space.kind, grid, scale=1.5)
    for side in sides:
        table.pointwise[str(side)] = [[1e-6 * (i * o) ** power * side**2 for o in grid] for i in grid]
        table.stem[str(side)] = [1e-6 * (27 * o) ** power * side**2 for o in grid]
        for kernel in (1, 3, 5, 7):
            for stride in (1, 2):
                table.spatial[f"{kernel}/{stride}/{side}"] = [1e-6 * (kernel**2 * c) ** power * side**2 for c in grid]
    return table
