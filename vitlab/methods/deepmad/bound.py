"""Branch and bound over :mod:`vitlab.methods.deepmad.relaxation`: a proven upper bound of a design's score."""

from __future__ import annotations

import heapq
import sys
import time
from dataclasses import replace

import numpy as np
from scipy.optimize import linprog

from vitlab.methods.deepmad.evaluate import least_log_width
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.relaxation import NU, Floats, Node, Relaxation
from vitlab.methods.deepmad.search import Design
from vitlab.training.interrupt import stop_if_requested


def certify(
    problem: Problem,
    design: Design,
    seconds: float,
    quiet: bool = True,
    enough: float = 1e-3,
    parts: int | None = None,
) -> None:
    """Set ``design.bound``, as tight as ``seconds`` allow; stops at a gap of ``enough``.

    ``parts`` limits the number of nodes, independently of the machine's speed.
    """
    start = printed = time.monotonic()
    relaxation = Relaxation(problem, design.score)
    centre = tuple(float(block.depth) for block in design.structure.blocks)
    root = relaxation.root(centre, abs(design.score))
    best, root = tightest(relaxation, root, design.score)
    heap, count, closed = [(-best, 0, relaxation.trim(root) or root)], 1, design.score
    # Best first: the head of the heap is the bound of all open nodes, so it only falls.
    while heap and time.monotonic() - start < seconds and (parts is None or count < parts):
        stop_if_requested()
        value, _, node = heapq.heappop(heap)
        if -value <= design.score * (1 + enough):
            heapq.heappush(heap, (value, 0, node))
            break
        halves = split(relaxation, node)
        if not halves:  # a single point of channels and depths: its bound stays as it is
            closed = max(closed, -value)
            continue
        for half in halves:
            found, half = tightest(relaxation, half, design.score, 12)
            found = min(found, -value)  # a part of the node cannot exceed its bound
            count += 1
            rest = relaxation.trim(half) if found > design.score else None
            if rest is not None:
                heapq.heappush(heap, (-found, count, rest))
        if not quiet and time.monotonic() - printed > 5:
            printed = time.monotonic()
            top = max(closed, -heap[0][0] if heap else closed)
            print(f"bound: {top:,.2f} over {design.score:,.2f}, {len(heap):,} parts open", file=sys.stderr, flush=True)
    design.bound = max(closed, -heap[0][0] if heap else closed)
    design.notes.append(f"The bound was found in {time.monotonic() - start:.0f} s over {count:,} parts of the space.")


def tightest(relaxation: Relaxation, node: Node, target: float, steps: int = 25, passes: int = 2) -> tuple[float, Node]:
    """A bound of the scores in ``node``, and the node with better multipliers; stops early below ``target``.

    Kelley's cutting planes within a trust region. The weights of the planes are a relaxed solution; its depths
    are where the next pass takes the tangent and the supporting plane, and their spread selects the branching variable.
    """
    low, high = (np.array([one[side] for one in node.depths], np.float64) for side in (0, 1))
    prices, centre = np.array(node.prices), np.clip(np.array(node.centre), low, high)
    best, kept = np.inf, node
    for _ in range(passes):
        cuts: list[tuple[float, Floats, Floats, Floats]] = []
        weights = np.ones(1)
        for _ in range(steps):
            value, slope, depths = relaxation.evaluate(node, prices, centre)
            if value == -np.inf:
                return -np.inf, node
            # Every evaluated point is a valid bound and, by its subgradient, a plane below the dual function.
            cuts.append((value, slope, prices, depths))
            if value < best:
                best, kept = value, replace(node, prices=tuple(prices.tolist()), centre=tuple(centre.tolist()))
            if best <= target:
                return best, kept
            prices, floor, weights = _next_prices(cuts, 0.1 * abs(target), relaxation.priced)
            if min(cut[0] for cut in cuts) - floor < 2e-4 * abs(target):
                break
        table = np.array([cut[3] for cut in cuts])[-len(weights) :]
        mean = weights @ table
        kept = replace(kept, spread=tuple(np.sqrt(weights @ (table - mean) ** 2).tolist()))
        centre = np.clip(mean, low, high)
        prices = np.array(kept.prices)
    return best, replace(kept, centre=tuple(centre.tolist()))


def _next_prices(
    cuts: list[tuple[float, Floats, Floats, Floats]], reach: float, priced: int
) -> tuple[Floats, float, Floats]:
    """Minimum of the planes near the best point: its multipliers, its value, and the weights (duals) of the planes.

    The first ``priced`` multipliers are prices, not below 0; the others slopes of the depth penalty.
    """
    slopes = np.array([cut[1] for cut in cuts])
    heights = np.array([float(cut[1] @ cut[2]) - cut[0] for cut in cuts])
    # A box around the best point: the planes are a poor model of the dual function far from where they were taken.
    around = min(cuts, key=lambda cut: cut[0])[2]
    width = np.array([reach if number < priced else 0.02 * reach for number in range(len(around))])
    floor = np.array([0.0 if number < priced else -np.inf for number in range(len(around))])
    bounds = [*zip(np.maximum(around - width, floor), around + width, strict=True), (None, None)]
    found = linprog(
        [*np.zeros(len(around)), 1.0], A_ub=np.column_stack([slopes, -np.ones(len(cuts))]), b_ub=heights, bounds=bounds
    )
    weights = np.maximum(-found.ineqlin.marginals, 0.0)
    return found.x[:-1], float(found.fun), weights / max(float(weights.sum()), 1e-12)


def split(relaxation: Relaxation, node: Node) -> list[Node]:
    """Two halves of ``node``, by the channels or the depth whose interval is estimated to loosen the bound most."""
    _, _, least = relaxation.weights(node)
    rho, beta, factor = relaxation.problem.budget.rho, relaxation.scoring.beta, relaxation.scoring.factor
    depth = 1 + relaxation.extra + 3 * sum(node.centre)
    total = max(1.2 * least, least_log_width(depth, rho) if rho else 0.0)  # type: ignore[arg-type]
    losses = []
    for end, alpha in zip(relaxation.stage_ends, relaxation.alphas, strict=True):
        if relaxation.extra and end == relaxation.blocks - 1:
            losses.append((0.0, end))  # the last convolution has a fixed number of channels
            continue
        low, high = node.outs[end]
        width = total * (1 + 3 * sum(node.centre[: end + 1])) / depth - (least if end == relaxation.blocks - 1 else 0.0)
        losses.append((alpha * factor * float(np.log(high / low)) / 2 * width, end))
    loss, end = max(losses)
    widths = [high - low for low, high in node.depths]
    spread = node.spread or tuple(map(float, widths))
    spans = [one if width else -1.0 for one, width in zip(spread, widths, strict=True)]
    block = int(np.argmax(spans))
    across = max(spans[block], 0.0)
    by_depth = node.prices[2] / NU * 4.5 * across**2 / depth + beta * float(np.expm1(min(across / 2, 5.0)))
    if node.outs[end][0] < node.outs[end][1] and (loss > by_depth or spans[block] < 0):
        low, high = node.outs[end]
        middle = (low + high) // 2
        halves = ((low, middle), (middle + 1, high))
        return [replace(node, outs=_with(node.outs, end, half)) for half in halves]
    if spans[block] < 0:
        return []
    low, high = node.depths[block]
    middle = min(high - 1, max(low, int(node.centre[block])))
    return [replace(node, depths=_with(node.depths, block, half)) for half in ((low, middle), (middle + 1, high))]


def _with(rows: tuple[tuple[int, int], ...], at: int, value: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return (*rows[:at], value, *rows[at + 1 :])
