"""What a contraction can reach: the networks within some moves, and the smallest of them (before anything is timed)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, TypeVar

from vitlab.methods.tinyvit.families import Args, Family

T = TypeVar("T")


def digest(args: Args) -> str:
    """Eight hex digits that name a network by its arguments."""
    return hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest()[:8]


def budget(start: float, target: float, step: int, steps: int) -> float:
    """Geometric interpolation: ``start`` at step 0, ``target`` at step ``steps``."""
    return start * (target / start) ** (step / steps)


def budgets(start: float, target: float, steps: int, tolerance: float) -> list[float]:
    """The most parameters of each step, 1 to ``steps``: its budget and ``tolerance`` of it, but at the last step the
    target itself."""
    between = [budget(start, target, step, steps) * (1 + tolerance) for step in range(1, steps)]
    return [*between, float(target)]


def reachable(family: Family, args: Args, moves: int) -> dict[str, tuple[str, Args]]:
    """Every network within ``moves`` moves of ``args``: digest to (the moves, its arguments); each once."""
    found: dict[str, tuple[str, Args]] = {digest(args): ("", args)}
    edge = list(found.values())
    for _ in range(moves):
        next_edge = []
        for path, here in edge:
            for move, there in family.smaller(here):
                if (key := digest(there)) not in found:
                    found[key] = "+".join(sorted([*filter(None, path.split("+")), move])), there
                    next_edge.append(found[key])
        edge = next_edge
    found.pop(digest(args))
    return found


def fewest(
    family: Family, args: Args, moves: int, count: Callable[[Args], int], enough: float = float("-inf")
) -> list[int]:
    """The smallest ``count`` found after 0, 1, 2 ... moves, at most ``moves`` of them; it never rises.

    A beam search of the family's ``beam`` networks a move, not a proof. The list is shorter where no move is left, and
    ends at the first value of at most ``enough``.
    """
    found, beam = [count(args)], [args]
    while len(found) <= moves and found[-1] > enough:
        near = {digest(there): there for here in beam for _, there in family.smaller(here)}
        if not near:
            break
        beam = sorted(near.values(), key=count)[: family.beam]
        found.append(min(found[-1], count(beam[0])))
    return found


def keeps_pace(least: Sequence[int], limits: Sequence[float], moves: int) -> bool:
    """Whether the smallest networks, ``least`` as :func:`fewest` gives it, are within each of the next steps'
    ``limits``."""
    return all(least[min(step * moves, len(least) - 1)] <= limit for step, limit in enumerate(limits, 1))


def enlarged(least: Sequence[int], target: float, steps: int, moves: int, tolerance: float) -> tuple[int, int]:
    """The fewest steps (of ``moves`` moves) and the fewest moves (of ``steps`` steps) that reach ``target``.

    ``least`` must reach it.
    """
    needed = next(number for number, count in enumerate(least) if count <= target)
    more_steps, more_moves = ceil(needed / moves), ceil(needed / steps)
    while not keeps_pace(least, budgets(least[0], target, more_steps, tolerance), moves):
        more_steps += 1
    while not keeps_pace(least, budgets(least[0], target, steps, tolerance), more_moves):
        more_moves += 1
    return more_steps, more_moves


def varied(candidates: Sequence[T], kind: Callable[[T], object], *orders: Callable[[T], Any]) -> Iterator[T]:
    """``candidates`` with differently made ones first.

    In turn, each of ``orders`` (sort keys, the least first) gives its first one of those kinds that were given least
    often so far. So no kind comes a second time before each has come once, and no order alone decides.
    """
    given = {kind(one): 0 for one in candidates}
    queues = [sorted(candidates, key=order) for order in orders]
    for number in range(len(candidates)):
        best = min(queues[number % len(queues)], key=lambda one: given[kind(one)])  # the first of several
        given[kind(best)] += 1
        yield best
        for queue in queues:
            queue.remove(best)
