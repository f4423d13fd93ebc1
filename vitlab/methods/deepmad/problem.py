"""The programme that the solvers solve: search space, budgets and objective."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vitlab.errors import UserError
from vitlab.files import stable_dict
from vitlab.methods.deepmad.evaluate import Evaluation, Scoring, evaluate
from vitlab.methods.deepmad.structure import Conv, Structure, Superblock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.signedinteger[Any]]
    Floats = NDArray[np.float64]

GRID = 8
"""Channels and bottlenecks are multiples of this."""


def to_grid(value: float) -> int:
    """The nearest multiple of 8, half to even, at least 8."""
    return max(GRID, GRID * round(value / GRID))


@dataclass(frozen=True)
class Space:
    """The structures that may be designed: a stem, superblocks of one kind, and for some a last 1x1 convolution.

    The defaults of :func:`resnet_space` and :func:`depthwise_space` are the limits of the released search spaces
    (specification of the code, section 3.6).

    Attributes:
        kind: of the superblocks.
        strides: of the superblocks; the stem has stride 2.
        stem: least and most channels of the stem.
        kernels: of the superblocks, ascending; shrunk by 2 while 1.5 times the kernel exceeds the input side.
        out_max: most output channels of a superblock.
        growth: a superblock has at most this many times its input channels; None: no limit.
        bottleneck_share: K1KXK1: the bottleneck is at least this share of the output channels, rounded to the grid.
        ratios: depthwise kinds: bottleneck over output channels, in tenths; () for K1KXK1.
        first_depth: most units of the first superblock.
        depth_max: most units of any other.
        tail: channels of the last 1x1 convolution; None: there is none.
        monotone: channels never decrease along the depth (guideline 3).
    """

    kind: str
    strides: tuple[int, ...]
    stem: tuple[int, int]
    kernels: tuple[int, ...]
    out_max: int
    growth: int | None
    bottleneck_share: float
    ratios: tuple[int, ...]
    first_depth: int = 3
    depth_max: int = 40
    tail: int | None = None
    monotone: bool = True

    FIRST: ClassVar[tuple[str, ...]] = (
        *("kind", "strides", "stem", "kernels", "out_max", "growth"),
        *("bottleneck_share", "ratios", "first_depth", "depth_max", "tail", "monotone"),
    )
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def kernel_at(self, kernel: int, side: int) -> int:
        """``kernel`` shrunk until it fits an input of ``side`` pixels."""
        while 1.5 * kernel > side and kernel > 1:
            kernel -= 2
        return kernel

    def kernels_at(self, side: int) -> tuple[int, ...]:
        """The kernels that are left at an input of ``side`` pixels, ascending."""
        return tuple(sorted({self.kernel_at(kernel, side) for kernel in self.kernels}))

    def depth_at(self, block: int) -> int:
        """Most units of superblock ``block``, counted from 0."""
        return self.first_depth if block == 0 else self.depth_max

    def bottlenecks(self, out: int) -> list[int]:
        """The bottlenecks allowed for ``out`` channels, ascending."""
        if self.ratios:
            return sorted({bottleneck_of(ratio, out) for ratio in self.ratios})
        return list(range(min(to_grid(out * self.bottleneck_share), out), out + 1, GRID))

    def sides(self, resolution: int) -> tuple[int, ...]:
        """Side of the input of each superblock."""
        found, side = [], resolution // 2
        for stride in self.strides:
            found.append(side)
            side //= stride
        return tuple(found)

    def build(
        self, stem: int, blocks: list[tuple[int, int, int, int]] | tuple[tuple[int, int, int, int], ...]
    ) -> Structure:
        """A structure from (out, bottleneck, kernel, depth) of each superblock."""
        units: list[Conv | Superblock] = [Conv(stem, 3, 2)]
        for (out, bottleneck, kernel, depth), stride in zip(blocks, self.strides, strict=True):
            units.append(Superblock(self.kind, out, bottleneck, kernel, stride, depth))
        if self.tail is not None:
            units.append(Conv(self.tail, 1, 1))
        return Structure(tuple(units))

    def violations(self, structure: Structure, resolution: int) -> list[str]:
        """The constraints of this space that ``structure`` violates, a sentence each; [] for a member."""
        wrong: list[str] = []
        blocks = structure.blocks
        shape = tuple(unit.stride for unit in blocks), {unit.kind for unit in blocks}
        tail = structure.tail.out if structure.tail else None
        if shape != (self.strides, {self.kind}) or structure.stem[1:] != (3, 2) or tail != self.tail:
            return [f"not a 3x3 stem of stride 2, {self.kind} superblocks of strides {self.strides}, tail {self.tail}"]
        if not self.stem[0] <= structure.stem.out <= self.stem[1] or structure.stem.out % GRID:
            wrong.append(f"the stem has {structure.stem.out} channels, not a multiple of {GRID} within {self.stem}")
        channels = structure.stem.out
        for number, (unit, side) in enumerate(zip(blocks, self.sides(resolution), strict=True), 1):
            name = f"superblock {number}"
            if unit.out % GRID or unit.bottleneck % GRID:
                wrong.append(f"{name} has {unit.out} and {unit.bottleneck} channels, not multiples of {GRID}")
            if unit.out > self.out_max:
                wrong.append(f"{name} has {unit.out} > {self.out_max} channels")
            if self.monotone and unit.out < channels:
                wrong.append(f"{name} has fewer channels ({unit.out}) than its input ({channels})")
            if self.growth is not None and unit.out > self.growth * channels:
                wrong.append(f"{name} has {unit.out} > {self.growth} times {channels} channels")
            if unit.bottleneck not in self.bottlenecks(unit.out):
                wrong.append(f"{name} has a bottleneck of {unit.bottleneck} for {unit.out} channels")
            if unit.kernel not in self.kernels_at(side):
                wrong.append(f"{name} has kernel {unit.kernel} at side {side}, not one of {self.kernels_at(side)}")
            if unit.depth > self.depth_at(number - 1):
                wrong.append(f"{name} has {unit.depth} > {self.depth_at(number - 1)} units")
            channels = unit.out
        return wrong


def bottleneck_of(ratio: int, out: int) -> int:
    """``ratio`` tenths of ``out`` on the grid of 8, half to even."""
    return to_grid(ratio * out / 10)


def resnet_space(strides: tuple[int, ...], *, monotone: bool = True, stem_max: int = 32) -> Space:
    """K1KXK1 superblocks, as the released space of ResNet-like networks."""
    return Space("K1KXK1", strides, (8, stem_max), (3, 5), 2048, 4, 0.1, (), monotone=monotone)


def depthwise_space(
    strides: tuple[int, ...],
    *,
    squeeze: bool,
    tail: int | None,
    expansion: float | None = None,
    monotone: bool = True,
    stem_max: int = 32,
) -> Space:
    """Depthwise superblocks, with squeeze-and-excitation or without; ``expansion`` fixes bottleneck over output."""
    ratios = tuple(range(15, 61)) if expansion is None else (round(expansion * 10),)
    kind = "K1DWSEK1" if squeeze else "K1DWK1"
    return Space(kind, strides, (16, stem_max), (3, 5, 7), 1280, None, 0.0, ratios, tail=tail, monotone=monotone)


@dataclass(frozen=True)
class Budget:
    """Upper limits of the costs of a network; None: no limit."""

    params: int | None = None
    flops: int | None = None
    rho: float | None = None
    latency: float | None = None  # milliseconds, by the problem's cost table

    FIRST: ClassVar[tuple[str, ...]] = ("params", "flops", "rho", "latency")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""


class LatencyModel(Protocol):
    """Predicted latencies: :class:`vitlab.methods.deepmad.latency.CostTable`, measured on a device."""

    device: str
    batch: int
    scale: float  # that the times of single layers are multiplied by

    @property
    def fingerprint(self) -> str:
        """Of everything that the predictions depend on."""

    def predict(self, structure: Structure, resolution: int) -> float:
        """Milliseconds of one batch through ``structure``."""

    def predict_many(
        self, problem: Problem, stem: Numbers, outs: Numbers, narrow: Numbers, kernels: Numbers, depths: Numbers
    ) -> Floats:
        """Milliseconds [n] of a population."""

    def predict_edges(self, problem: Problem, block: int, edges: Numbers) -> Floats:
        """Milliseconds [n] of the choices of one superblock."""

    def pointwise_ms(self, into: Numbers, out: Numbers, side: int) -> Floats:
        """Of 1x1 convolutions [n], before scaling."""

    def stem_ms(self, out: Numbers, side: int) -> Floats:
        """Of stems [n], before scaling."""

    def spatial_ms(self, channels: Numbers, kernels: Numbers, stride: int, side: int) -> Floats:
        """Of kxk convolutions [n], before scaling."""


@dataclass(frozen=True)
class Problem:
    """Maximise ``scoring`` over ``space`` within ``budget``.

    Attributes:
        resolution: side of the images in pixels, a multiple of 32.
        classes: of a classifier counted into params and flops; None: no classifier.
        costs: cost table for the latency budget.
    """

    space: Space
    scoring: Scoring
    budget: Budget
    resolution: int
    classes: int | None = None
    costs: LatencyModel | None = None

    FIRST: ClassVar[tuple[str, ...]] = ("space", "scoring", "budget", "resolution", "classes", "costs")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        stride = 2 * math.prod(self.space.strides)
        if self.resolution % 32 or self.resolution % stride:
            raise UserError(
                f"Networks are designed for images whose side is a multiple of 32 and of their stride {stride}, not "
                f"{self.resolution} px.",
                "Set dataset.size or method.resolution accordingly.",
            )
        stages = 1 + sum(stride == 2 for stride in self.space.strides)
        if len(self.scoring.alphas) != stages:
            raise UserError(
                f"method.alphas has {len(self.scoring.alphas)} weights; strides {list(self.space.strides)} make "
                f"{stages} stages.",
                "Give one weight for each stage, or null.",
            )
        if self.budget.latency is not None and self.costs is None:
            raise UserError("A budget of latency needs measured costs.", "Give method.costs.")

    def evaluate(self, structure: Structure) -> Evaluation:
        """Score and cost of ``structure``."""
        return evaluate(structure, self.resolution, self.scoring, self.classes)

    def excess(self, structure: Structure) -> list[str]:
        """Which budgets ``structure`` exceeds, a sentence each; [] if none."""
        found, spent, budget = [], self.evaluate(structure), self.budget
        if budget.params is not None and spent.params > budget.params:
            found.append(f"{spent.params:,} parameters of {budget.params:,}")
        if budget.flops is not None and spent.flops > budget.flops:
            found.append(f"{spent.flops:,} FLOPs of {budget.flops:,}")
        if budget.rho is not None and spent.rho > budget.rho * (1 + 1e-12):
            found.append(f"effectiveness {spent.rho:.6f} of {budget.rho}")
        if budget.latency is not None and (took := self.latency(structure)) > budget.latency * (1 + 1e-12):
            found.append(f"{took:.4g} ms of {budget.latency:.4g} ms")
        return found

    def latency(self, structure: Structure) -> float:
        """Milliseconds by the cost table."""
        assert self.costs is not None
        return self.costs.predict(structure, self.resolution)

    def violations(self, structure: Structure) -> list[str]:
        """All constraints that ``structure`` violates; [] for a solution."""
        return self.space.violations(structure, self.resolution) + self.excess(structure)

    def smallest(self) -> Structure:
        """The structure with the fewest parameters and FLOPs."""
        space = self.space
        out = space.stem[0]
        blocks = [
            (out, space.bottlenecks(out)[0], space.kernels_at(side)[0], 1) for side in space.sides(self.resolution)
        ]
        return space.build(out, blocks)

    def check(self) -> None:
        """Refuse budgets below the smallest structure of the space.

        Raises:
            UserError: with the cost of the smallest structure.
        """
        spent = self.evaluate(self.smallest())
        for name, limit, least in (
            ("params", self.budget.params, spent.params),
            ("flops", self.budget.flops, spent.flops),
        ):
            if limit is not None and limit < least:
                raise UserError(
                    f"method.budget.{name} is {limit:,}, and the smallest network of this space needs {least:,}.",
                    "Give more, or another method.space, method.strides or method.tail.",
                )

    def describe(self) -> dict[str, object]:
        """Plain values that say which problem this is; a journal of another one is not continued."""
        return {
            **stable_dict(self),
            "costs": None if self.costs is None else self.costs.fingerprint,
        }


_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([a-zA-Zµ]*)\s*")
_COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_TIMES = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}


def count(text: str, key: str) -> int:
    """``"0.3M"``, ``"1.82G"``, ``"1.82e9"`` or ``"11690000"`` as an integer.

    Raises:
        UserError: naming ``key``.
    """
    amount = _amount(text, key, _COUNTS, "a number with k, M or G, such as 0.3M or 1.82G")
    if amount < 1:
        raise UserError(f"{key}={text} is less than one.", f"Perhaps {text}M or {text}G is meant.")
    return round(amount)


def milliseconds(text: str, key: str) -> float:
    """``"2.5ms"``, ``"0.5s"``, ``"5min"`` in milliseconds.

    Raises:
        UserError: naming ``key``.
    """
    return _amount(text, key, _TIMES, "a time with us, ms, s, min or h, such as 2.5ms or 5min")


def _amount(text: str, key: str, units: Mapping[str, float], expected: str) -> float:
    match = _AMOUNT.fullmatch(str(text))
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise UserError(f"{key}={text} is not an amount.", f"Give {expected}.")
    return float(match[1]) * units[match[2]]
