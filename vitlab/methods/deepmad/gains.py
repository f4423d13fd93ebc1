"""What a superblock is worth in the relaxed programme: its log-width at some price, less the prices of its costs.

Linear in the depth for fixed channels, bottleneck and kernel, so the best depth of an interval is one of its ends. The
terms that the input enters are the 1x1 convolutions from it (to the bottleneck, and the projection of ResNet units)
and ln of its channels; the rest is a table over kernel, output and bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vitlab.methods.deepmad.evaluate import squeezed
from vitlab.methods.deepmad.problem import GRID, Problem, bottleneck_of, to_grid

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Prices:
    """Of a unit of log-width, a parameter, a FLOP, a millisecond, and of a unit of depth."""

    width: float
    param: float
    flop: float
    ms: float
    unit: float


class Latencies:
    """Milliseconds of the layers of a space by the problem's cost table, for every number of channels on the grid.

    Rows and columns are channels in units of 8, from 0 (which is never looked up).
    """

    def __init__(self, problem: Problem) -> None:
        assert problem.costs is not None
        self._costs, space = problem.costs, problem.space
        self.squeeze = space.kind == "K1DWSEK1"
        self.outs = GRID * np.maximum(np.arange(space.out_max // GRID + 1), 1)
        most = max(space.bottlenecks(space.out_max))
        self.narrow = GRID * np.maximum(np.arange(most // GRID + 1), 1)
        self._tables: dict[tuple[object, ...], Floats] = {}

    def _pairs(self, into: Numbers, out: Numbers, side: int) -> Floats:
        first, second = np.repeat(into, len(out)), np.tile(out, len(into))
        found: Floats = self._costs.pointwise_ms(first, second, side).reshape(len(into), len(out)) * self._costs.scale
        return found

    def enter(self, side: int) -> Floats:
        """Of 1x1 convolutions [outs, narrow] from the channels between superblocks to a bottleneck."""
        key = ("enter", side)
        if key not in self._tables:
            self._tables[key] = self._pairs(self.outs, self.narrow, side)
        return self._tables[key]

    def leave(self, side: int) -> Floats:
        """Of 1x1 convolutions [narrow, outs] from a bottleneck."""
        key = ("leave", side)
        if key not in self._tables:
            self._tables[key] = self._pairs(self.narrow, self.outs, side)
        return self._tables[key]

    def project(self, side: int) -> Floats:
        """Of 1x1 convolutions [outs, outs] of shortcuts."""
        key = ("project", side)
        if key not in self._tables:
            self._tables[key] = self._pairs(self.outs, self.outs, side)
        return self._tables[key]

    def spatial(self, kernel: int, stride: int, side: int) -> Floats:
        """Of kxk convolutions [narrow] with outputs of ``side`` pixels, squeeze-and-excitation included."""
        key = (kernel, stride, side)
        if key not in self._tables:
            kernels = np.full(len(self.narrow), kernel)
            found = self._costs.spatial_ms(self.narrow, kernels, stride, side)
            if self.squeeze:
                inner = np.array([squeezed(int(one)) for one in self.narrow])
                found = found + self._costs.pointwise_ms(self.narrow, inner, 1)
                found = found + self._costs.pointwise_ms(inner, self.narrow, 1)
            self._tables[key] = found * self._costs.scale
        return self._tables[key]

    def stem(self, channels: Numbers, side: int) -> Floats:
        """Of stems [n] with outputs of ``side`` pixels."""
        return self._costs.stem_ms(channels, side) * self._costs.scale

    def tail(self, tail: int, side: int) -> Floats:
        """Of the last 1x1 convolution [outs]."""
        found: Floats = self._pairs(self.outs, np.array([tail]), side)[:, 0]
        return found


class Gains:
    """Values of the superblocks of one problem at given prices."""

    def __init__(self, problem: Problem) -> None:
        space, budget = problem.space, problem.budget
        self.problem, self.space = problem, space
        self.full = space.kind == "K1KXK1"
        self.squeeze = space.kind == "K1DWSEK1"
        self.sides = space.sides(problem.resolution)
        self.limits = (float(budget.params or np.inf), float(budget.flops or np.inf))
        outs = GRID * np.arange(space.out_max // GRID + 1)
        self.least = np.array(
            [min(max(GRID, to_grid(o * space.bottleneck_share)), max(o, GRID)) for o in outs.tolist()]
        )
        # Depthwise: the bottlenecks [outs, ratios] of every output.
        self.listed = np.array([[bottleneck_of(ratio, max(o, GRID)) for ratio in space.ratios] for o in outs.tolist()])

    @cached_property
    def latencies(self) -> Latencies | None:
        """None where there is no budget of latency."""
        return None if self.problem.budget.latency is None else Latencies(self.problem)

    def narrow(self, j: int, out: Floats, depth: int) -> Floats:
        """Bottlenecks of superblock ``j``: [B] that ``depth`` units can have within the budgets at any of the outputs
        ``out`` [O]; in depthwise spaces [O, B], those of each output."""
        if not self.full:
            found: Floats = self.listed[out.astype(np.int64) // GRID].astype(np.float64)
            return found
        side = self.sides[j] // self.space.strides[j]
        dense = depth * min(self.space.kernels_at(self.sides[j])) ** 2
        top = min(float(out.max()), (self.limits[0] / dense) ** 0.5, (self.limits[1] / dense) ** 0.5 / side)
        low = self.least[int(out.min()) // GRID]
        narrow: Floats = GRID * np.arange(low // GRID, max(low, top) // GRID + 1)
        return narrow

    def parts(self, j: int, out: Floats, narrow: Floats, prices: Prices) -> tuple[Numbers, Floats, Floats]:
        """Kernels, value [K, O, B] of the first unit less its input's part, and of each further unit."""
        space, side = self.space, self.sides[j]
        after = (side // space.strides[j]) ** 2
        o = out[:, None]
        b = narrow[None, :] if self.full else narrow
        inner = 8 * np.maximum(1.0, np.floor(np.rint(b / 4) / 8))  # channels inside squeeze-and-excitation
        firsts, mores = [], []
        kernels = space.kernels_at(side)
        for k in kernels:
            if self.full:
                v = 2 * np.log(b) + 2 * np.log(k)
                dense = k * k * b * b
                params = dense + b * o + 4 * b + 4 * o
                flops = side * side * 3 * b + after * (dense + 3 * b + b * o + 6 * o)
                more_params = 2 * b * o + dense + 4 * b + 2 * o
                more_flops = after * (2 * b * o + dense + 6 * b + 3 * o)
            else:
                v = np.log(b) + 2 * np.log(k)
                extra = 2 * b * inner + 2 * inner + 2 * b if self.squeeze else 0.0
                params = k * k * b + b * o + 4 * b + 2 * o + extra
                flops = side * side * 3 * b + after * (k * k * b + 3 * b + b * o + 3 * o)
                more_params = params + b * o
                more_flops = after * (2 * b * o + k * k * b + 6 * b + 3 * o)
            first = prices.width * v - prices.param * params - prices.flop * flops - prices.unit
            more = prices.width * (np.log(o) + v) - prices.param * more_params - prices.flop * more_flops - prices.unit
            if self.latencies is not None and prices.ms:
                ms, more_ms = self._milliseconds(j, out, narrow, k)
                first, more = first - prices.ms * ms, more - prices.ms * more_ms
            firsts.append(first)
            mores.append(more)
        return np.array(kernels), np.array(firsts), np.array(mores)

    def _milliseconds(self, j: int, out: Floats, narrow: Floats, kernel: int) -> tuple[Floats, Floats]:
        """Of the first unit less its input's part, and of each further unit [O, B]."""
        assert self.latencies is not None
        table, stride, after = self.latencies, self.space.strides[j], self.sides[j] // self.space.strides[j]
        o, b = (out.astype(np.int64) // GRID)[:, None], narrow.astype(np.int64) // GRID
        leave = table.leave(after)[b, o]
        first = table.spatial(kernel, stride, after)[b] + leave
        more = table.enter(after)[o, b] + table.spatial(kernel, 1, after)[b] + leave
        return first, more

    def gains(self, j: int, out: Floats, narrow: Floats, prices: Prices, depths: tuple[int, int]) -> Floats:
        """[K, O, B]: value of a superblock without the terms of its input; -inf where the bottleneck is not allowed."""
        _, first, more = self.parts(j, out, narrow, prices)
        # Linear in the depth, so the best depth is an end of the interval.
        gains: Floats = first + np.where(more > 0, (depths[1] - 1) * more, (depths[0] - 1) * more)
        if self.full:
            least = self.least[out.astype(np.int64) // GRID]
            gains[:, (narrow < least[:, None]) | (narrow > out[:, None])] = -np.inf
        return gains

    def entry(self, j: int, channels: int, narrow: Floats, prices: Prices) -> Floats:
        """What the first 1x1 convolution from ``channels`` to each bottleneck [B] costs."""
        price = prices.param + prices.flop * self.sides[j] ** 2
        cost: Floats = price * narrow * channels
        if self.latencies is not None and prices.ms:
            enter = self.latencies.enter(self.sides[j])[channels // GRID]
            cost = cost + prices.ms * enter[narrow.astype(np.int64) // GRID]
        return cost

    def block(self, j: int, nodes: Numbers, outs: Numbers, prices: Prices, depths: tuple[int, int]) -> Floats:
        """[I, O]: the best value of superblock ``j`` between every two channel counts, in units of 8."""
        side, space = self.sides[j], self.space
        i, o = GRID * nodes.astype(np.float64)[:, None], GRID * outs.astype(np.float64)[None, :]
        narrow = self.narrow(j, o[0], depths[0])
        gains = self.gains(j, o[0], narrow, prices, depths).max(0)
        price = prices.param + prices.flop * side * side
        enter = None
        if self.latencies is not None and prices.ms:
            enter = prices.ms * self.latencies.enter(side)[nodes]
        found = np.full((len(nodes), len(outs)), -np.inf)
        one = np.empty_like(found)
        columns = narrow if self.full else narrow.T  # b, or [O] of each ratio
        for column, b in zip(np.ascontiguousarray(gains.T), columns, strict=True):
            np.subtract(column[None, :], price * b * i, out=one)
            if enter is not None:
                at = b.astype(np.int64) // GRID
                one -= enter[:, at][:, None] if self.full else enter[:, at]
            np.maximum(found, one, out=found)
        after = (side // space.strides[j]) ** 2
        project = prices.param + prices.flop * after if self.full else 0.0
        found += prices.width * np.log(i) - project * i * o
        if self.full and self.latencies is not None and prices.ms:
            found -= prices.ms * self.latencies.project(side // space.strides[j])[nodes[:, None], outs[None, :]]
        if space.strides[j] == 2:  # the pooled shortcut, in depthwise spaces only of equal channels
            found -= prices.flop * side * side * i * (1.0 if self.full else i == o)
        wrong = np.zeros(found.shape, bool)
        if space.monotone:
            wrong |= o < i
        if space.growth is not None:
            wrong |= o > space.growth * i
        found[wrong] = -np.inf
        return found
