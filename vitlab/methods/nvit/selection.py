"""Which groups of units an event prunes: one threshold over all axes (paper section 3.3; specification 7).

On each axis the units are sorted by score and cut into groups; all groups of all axes are ranked together. Groups are
formed anew at every event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_UNITS = 39_000
"""The official schedule ends after so many units, counted in those of its divisor."""


@dataclass(frozen=True)
class Selection:
    """The outcome of an event.

    Attributes:
        gates: of each axis [units], False where a unit is pruned, at this event or before.
        pruned: units that this event pruned, of each axis.
        threshold: the largest score of a group that was, or could have been, pruned.
    """

    gates: list[Tensor]
    pruned: list[Tensor]
    threshold: float


def groups_of(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive groups of ``size`` units of an order; the last may be smaller."""
    return list(order.split(size))


def official_count(event: int, units: int, divisor: int, total: int) -> int:
    """Rank n, from 0, of the group whose score is the threshold of an event (specification 7, step 4).

    n = max(0, min(total - 1, floor(k p / G) - 1, floor(39000 / G) - 1)), with k events before this one. With p = 32
    and G = 16 the events prune 1, 2, 4, 6, 8, ... groups, counted from the first event on.
    """
    return max(0, min(total - 1, event * units // divisor - 1, MOST_UNITS // divisor - 1))


def select_official(
    scores: Sequence[Tensor],
    gates: Sequence[Tensor],
    sizes: Sequence[int],
    *,
    event: int,
    units: int = 32,
    divisor: int = 16,
) -> Selection:
    """The rule of the official code.

    Every group whose score does not exceed the threshold is pruned, but never the last of an axis. Groups that are
    pruned already take part in the ranking, so that the number of those pruned newly is only roughly the same each
    time; a group that is kept as the last of its axis takes a place too.

    Args:
        scores: of each axis [units] float64, those of pruned units included.
        gates: of each axis, before.
        sizes: of a group, by axis.
        event: number of events before this one.
        units, divisor: p and G; p / G groups are added to the ranking by each event.
    """
    orders = [torch.sort(one, stable=True).indices for one in scores]
    groups = [groups_of(order, size) for order, size in zip(orders, sizes, strict=True)]
    sums = [torch.stack([one[group].sum() for group in found]) for one, found in zip(scores, groups, strict=True)]
    ranked = torch.cat(sums).sort().values
    threshold = ranked[official_count(event, units, divisor, len(ranked))]
    chosen = []
    for found, values in zip(groups, sums, strict=True):
        below = [group for group, value in zip(found[:-1], values[:-1], strict=True) if value <= threshold]
        chosen.append(torch.cat(below) if below else torch.zeros(0, dtype=torch.int64))
    return _prune(gates, chosen, float(threshold))


def select_exact(
    scores: Sequence[Tensor],
    gates: Sequence[Tensor],
    sizes: Sequence[int],
    *,
    count: int,
    least: Sequence[int],
) -> Selection:
    """Prune exactly ``count`` groups of units that are still live, those with the smallest scores.

    Args:
        scores, gates, sizes: as for :func:`select_official`.
        count: groups to prune; fewer only where fewer may be pruned.
        least: live units that an axis keeps.

    Ties are broken by axis, then by unit.
    """
    candidates: list[tuple[float, int, int, Tensor]] = []
    for axis, (one, gate, size) in enumerate(zip(scores, gates, sizes, strict=True)):
        live = gate.nonzero().squeeze(1)
        order = live[torch.sort(one[live], stable=True).indices]
        spare = len(live) - least[axis]
        for place, group in enumerate(groups_of(order, size)):
            if size * place + len(group) > spare:
                break
            candidates.append((float(one[group].sum()), axis, place, group))
    candidates.sort(key=lambda one: one[:3])
    best = candidates[:count]
    chosen = [torch.cat([one[3] for one in best if one[1] == axis] or [torch.zeros(0, dtype=torch.int64)])
              for axis in range(len(scores))]  # fmt: skip
    return _prune(gates, chosen, best[-1][0] if best else float("nan"))


def _prune(gates: Sequence[Tensor], chosen: Sequence[Tensor], threshold: float) -> Selection:
    after, pruned = [], []
    for gate, units in zip(gates, chosen, strict=True):
        new = units[gate[units]].sort().values
        kept = gate.clone()
        kept[new] = False
        after.append(kept)
        pruned.append(new)
    return Selection(after, pruned, threshold)
