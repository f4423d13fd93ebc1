"""DeepMAD's mathematics (paper section 3) for one structure: entropy, effectiveness, depth penalty, size.

Plain Python, no arrays and no network; :mod:`vitlab.methods.deepmad.population` computes the same for many at once.
All logarithms are natural. A layer is a convolution of the main path: the stem, three for each residual unit, the
last 1x1 convolution. Shortcut projections, squeeze-and-excitation, batch norm and the classifier are not layers.

``mode`` selects the arithmetic:

* ``official``: the released code, which takes the output side of networks with squeeze-and-excitation as 1, and half
  the entropy of the paper;
* ``corrected``: the same with the true side;
* ``paper``: the paper's formulas, without the half and with the variance of the depths.

The variance can be had in every mode (:attr:`Scoring.spread`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vitlab.methods.deepmad.structure import Conv, Structure, Superblock

MODES = ("official", "corrected", "paper")
PENALTIES = ("last3", "drop_first", "all")
SPREADS = ("std", "variance")


@dataclass(frozen=True)
class Scoring:
    """The objective.

    Attributes:
        alphas: weight of each stage's entropy; 0 leaves a stage out.
        beta: weight of the depth penalty; 0: none.
        mode: ``official``, ``corrected`` or ``paper``.
        penalty: superblocks whose depths should be even: ``last3``, ``drop_first`` or ``all``.
        spread: of the depths, in the exponent of the penalty: ``std`` (the code) or ``variance`` (the paper); None:
            that of the mode. With ``variance`` and the mode ``corrected``, the paper's penalty stands beside the code's
            half entropy.
        channel_exponent, kernel_exponent: a width counts as c^channel_exponent * k^(2 kernel_exponent) in the entropy
            (not in the effectiveness); 1 in every published configuration.
    """

    alphas: tuple[float, ...]
    beta: float
    mode: str = "corrected"
    penalty: str = "last3"
    channel_exponent: float = 1.0
    kernel_exponent: float = 1.0
    spread: str | None = None

    FIRST: ClassVar[tuple[str, ...]] = ("alphas", "beta", "mode", "penalty", "channel_exponent", "kernel_exponent")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.penalty not in PENALTIES:
            raise ValueError(f"mode {self.mode!r} not in {MODES}, or penalty {self.penalty!r} not in {PENALTIES}")
        if self.spread not in (None, *SPREADS):
            raise ValueError(f"spread {self.spread!r} not in {SPREADS}")

    @property
    def variance(self) -> bool:
        """Whether the depth penalty is beta * exp(Var) instead of beta * exp(std)."""
        return self.mode == "paper" if self.spread is None else self.spread == "variance"

    @property
    def factor(self) -> float:
        """Of every entropy: the code takes ln of a square root where the paper takes ln."""
        return 1.0 if self.mode == "paper" else 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """The end of a stage; depth and log-width are prefix sums from the image."""

    channels: int
    side: int  # of the output, as the mode counts it
    depth: int  # layers so far
    log_width: float  # sum of ln(width) so far
    weighted_log_width: float  # the same with the exponents of the scoring

    @property
    def rho(self) -> float:
        """Effectiveness, depth over average width (geometric mean)."""
        return effectiveness(self.depth, self.log_width)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Score and costs of a structure at one resolution."""

    stages: tuple[Stage, ...]
    terms: tuple[float, ...]  # alpha_s H_s
    penalty: float
    params: int
    flops: int  # multiply-adds of convolutions, plus 2 a normalised, 1 an activated, 1 a pooled value

    @property
    def entropy(self) -> float:
        """Weighted sum of the stages' entropies."""
        return sum(self.terms)

    @property
    def score(self) -> float:
        """Entropy minus penalty: the objective of the solvers. It is not an accuracy."""
        return self.entropy - self.penalty

    @property
    def rho(self) -> float:
        """The largest effectiveness over the ends of all stages: the constrained quantity."""
        return max(stage.rho for stage in self.stages)


# ------------------------------------------------------------------------------------------------------- the formulas


def mlp_entropy(widths: Sequence[float], out: float) -> float:
    """Upper bound of the entropy of a multilayer perceptron: w_(L+1) * sum_i ln w_i (paper, section 3.1)."""
    return out * sum(math.log(width) for width in widths)


def stage_entropy(channels: int, side: int, log_width: float, factor: float = 1.0) -> float:
    """H_s = factor * ln(C_s R_s^2) * S_s (paper, section 3.2; the code has factor 1/2).

    Args:
        channels: C_s, output channels of the stage.
        side: R_s, side of its output in pixels.
        log_width: S_s, sum of ln(width) over all layers from the image.
    """
    return factor * math.log(channels * side * side) * log_width


def effectiveness(depth: int, log_width: float) -> float:
    """rho = L / wbar with wbar the geometric mean of the widths: L * exp(-sum ln w / L) (paper, section 3.2)."""
    return depth * math.exp(-log_width / depth)


def least_log_width(depth: int, rho: float) -> float:
    """The smallest sum of ln(width) at which ``depth`` layers have an effectiveness of at most ``rho``.

    rho_s <= rho is exactly S_s >= D_s ln(D_s / rho), convex in the depth.
    """
    return depth * math.log(depth / rho)


def depth_penalty(depths: Sequence[float], beta: float, variance: bool = False) -> float:
    """beta * exp(std(depths)), population std; with ``variance`` the paper's beta * exp(Var(depths)). 0 for none."""
    if not depths or beta == 0:
        return 0.0
    mean = sum(depths) / len(depths)
    var = sum((depth - mean) ** 2 for depth in depths) / len(depths)
    return beta * math.exp(min(var if variance else math.sqrt(var), 700.0))


def penalised(depths: Sequence[int], penalty: str) -> Sequence[int]:
    """The depths that enter the penalty."""
    return depths[-3:] if penalty == "last3" else depths[1:] if penalty == "drop_first" else depths


def squeezed(bottleneck: int) -> int:
    """Channels inside squeeze-and-excitation: 8 * max(1, floor(round(b / 4) / 8)), half to even."""
    return 8 * max(1, round(bottleneck / 4) // 8)


def conv_params(i: int, o: int, k: int) -> int:
    """Parameters of a convolution without bias and its batch norm."""
    return i * o * k * k + 2 * o


def conv_flops(i: int, o: int, k: int, side: int) -> int:
    """Of convolution, batch norm and activation; ``side`` is that of the output."""
    return (i * o * k * k + 3 * o) * side * side


def unit_params(kind: str, i: int, o: int, b: int, k: int, first: bool) -> int:
    """Parameters of one residual unit; ``first`` of its superblock."""
    if kind == "K1KXK1":
        count = i * b + k * k * b * b + b * o + 4 * b + 2 * o
        return count + (i * o + 2 * o if first or i != o else 0)
    count = i * b + k * k * b + b * o + 4 * b + 2 * o
    if kind == "K1DWSEK1":
        q = squeezed(b)
        count += 2 * b * q + 2 * q + 2 * b
    return count


def unit_flops(kind: str, i: int, o: int, b: int, k: int, stride: int, side: int, first: bool) -> int:
    """FLOPs of one residual unit; ``side`` is that of its input, even where the stride is 2.

    Those of squeeze-and-excitation are left out, as the released code leaves them out.
    """
    before, after = side * side, (side // stride) ** 2
    if kind == "K1KXK1":
        count = before * (i * b + 3 * b) + after * (k * k * b * b + 3 * b + b * o + 3 * o)
        if first or i != o:
            count += after * (i * o + 3 * o)
        return count + (before * i if stride == 2 else 0)
    count = before * (i * b + 3 * b) + after * (k * k * b + 3 * b + b * o + 3 * o)
    return count + (before * i if stride == 2 and i == o else 0)


def head_params(channels: int, classes: int) -> int:
    """Of the classifier, a linear layer with bias."""
    return channels * classes + classes


# -------------------------------------------------------------------------------------------------------- a structure


def check_resolution(structure: Structure, resolution: int) -> None:
    """Raise ValueError unless ``resolution`` is a multiple of 32 and of the structure's stride."""
    if resolution % 32 or resolution % structure.stride:
        raise ValueError(
            f"resolution {resolution} is not a multiple of 32 and of the structure's stride {structure.stride}"
        )


def evaluate(structure: Structure, resolution: int, scoring: Scoring, classes: int | None = None) -> Evaluation:
    """Score and cost of ``structure`` on images of ``resolution`` pixels a side.

    Args:
        classes: count a classifier of that many classes into params and flops; None: neither, as the paper does.

    Raises:
        ValueError: the side is not a multiple of 32 and of the stride, or there are not as many alphas as stages.
    """
    check_resolution(structure, resolution)
    log = math.log
    ce, ke = scoring.channel_exponent, scoring.kernel_exponent
    official = scoring.mode == "official"
    stages: list[Stage] = []
    depths: list[int] = []
    channels, side, counted_side, layers, width, weighted = 3, resolution, resolution, 0, 0.0, 0.0
    params = flops = 0
    for number, unit in enumerate(structure.units):
        if unit.stride == 2 and number:
            stages.append(Stage(channels, counted_side, layers, width, weighted))
        if isinstance(unit, Conv):
            o, k = unit.out, unit.kernel
            side //= unit.stride
            counted_side //= unit.stride
            params += (channels * k * k + 2) * o
            flops += (channels * k * k + 3) * o * side * side
            layers += 1
            width += log(channels * k * k)
            weighted += ce * log(channels) + 2 * ke * log(k)
        else:
            kind, o, b, k, stride, depth = unit
            params += unit_params(kind, channels, o, b, k, True)
            flops += unit_flops(kind, channels, o, b, k, stride, side, True)
            side //= stride
            counted_side //= stride
            if depth > 1:
                params += (depth - 1) * unit_params(kind, o, o, b, k, False)
                flops += (depth - 1) * unit_flops(kind, o, o, b, k, 1, side, False)
            layers += 3 * depth
            logs = (2 if kind == "K1KXK1" else 1) * depth * log(b) + log(channels) + (depth - 1) * log(o)
            kernels = 2 * depth * log(k)
            width += logs + kernels
            weighted += ce * logs + ke * kernels
            if official and kind == "K1DWSEK1":
                counted_side = 1
            depths.append(depth)
        channels = o
        counted_side = max(counted_side, 1)
    stages.append(Stage(channels, counted_side, layers, width, weighted))
    if len(stages) != len(scoring.alphas):
        raise ValueError(f"{len(scoring.alphas)} alphas for {len(stages)} stages")
    factor = scoring.factor
    terms = tuple(
        alpha and alpha * stage_entropy(one.channels, one.side, one.weighted_log_width, factor)
        for alpha, one in zip(scoring.alphas, stages, strict=True)
    )
    if classes is not None:
        params += head_params(channels, classes)
        flops += channels * classes
    penalty = depth_penalty(penalised(depths, scoring.penalty), scoring.beta, scoring.variance)
    return Evaluation(tuple(stages), terms, penalty, params, flops)


def conv_macs(structure: Structure, resolution: int) -> int:
    """Multiply-adds of the convolutions alone, without squeeze-and-excitation: commonly called MACs."""
    total, channels, side = 0, 3, resolution
    for unit in structure.units:
        if isinstance(unit, Conv):
            side //= unit.stride
            total += channels * unit.out * unit.kernel**2 * side * side
        else:
            total += _superblock_macs(unit, channels, side)
            side //= unit.stride
        channels = unit.out
    return total


def _superblock_macs(unit: Superblock, i: int, side: int) -> int:
    kind, o, b, k, stride, depth = unit
    before, after = side * side, (side // stride) ** 2
    spatial = k * k * b * (b if kind == "K1KXK1" else 1)
    total = before * i * b + after * (spatial + b * o) + (after * i * o if kind == "K1KXK1" else 0)
    return total + (depth - 1) * after * (2 * o * b + spatial)
