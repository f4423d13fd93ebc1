"""Tables of choices for tests."""

from __future__ import annotations

from vitlab.methods.deepmad.edges import Table
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
