"""The keys under ``method.`` and the problem that they define. No torch, no numpy: the command line reads this."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from vitlab.config import ModelConfig
from vitlab.config.ranges import choice, integer, number, positive, share
from vitlab.config.size import Size, hw, size_text
from vitlab.errors import UserError
from vitlab.methods.deepmad.evaluate import MODES, PENALTIES, SPREADS, Scoring
from vitlab.methods.deepmad.problem import Budget, Problem, Space, count, depthwise_space, milliseconds, resnet_space
from vitlab.methods.deepmad.structure import Structure

if TYPE_CHECKING:
    from vitlab.methods.deepmad.latency import CostTable

STRIDES = {4: (2, 2, 2, 1, 2), 3: (1, 2, 2, 1, 2), 2: (1, 2, 1, 1, 2), 1: (1, 1, 1, 1, 2), 0: (1, 1, 1, 1, 1)}
"""Strides of five superblocks by how often they halve the side; at 224 px those of DeepMAD-R18."""


@dataclass
class BudgetOptions:
    """What the network may cost; null: no limit."""

    params: str | None = None  # e.g. 11.69M
    flops: str | None = None  # multiply-adds and a little more (specification), e.g. 1.82G
    rho: float | None = positive(None)  # effectiveness, depth over average width: resnet 0.3, se 0.5
    latency: str | None = None  # of a batch, by the cost table, e.g. 5ms; needs method.costs


def no_model() -> ModelConfig:
    """The default of ``method.other``: no network."""
    return ModelConfig(name="")


@dataclass
class DeepMADOptions:
    """Keys under ``method.``"""

    name: str = "deepmad"
    solver: str = choice("anneal", "milp", "evolution")  # anneal | milp | evolution
    space: str = choice("resnet", "depthwise", "se")  # resnet (K1KXK1 units) | depthwise (K1DWK1) | se (K1DWSEK1)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    scoring: str = choice(*MODES)  # arithmetic: official | corrected (of the released code) | paper
    alphas: list[float] | None = number(None, 0, 1e6)  # weights of the stages' entropies; null: 1, last alpha_last
    alpha_last: float = number(low=0, high=1e6)  # weight of the last stage's entropy where alphas is null (paper: 8)
    beta: float = number(low=0, high=1e6)  # weight of the depth penalty
    penalty: str | None = choice(*PENALTIES, default=None)  # even depths: last3 | drop_first | all; null: resnet last3
    spread: str | None = choice(*SPREADS, default=None)  # of depths: std | variance; null: std, variance if paper
    resolution: int | None = number(None, 1, 2**15)  # px the network is designed for; null: dataset.size
    strides: list[int] | None = None  # of the superblocks; null: as many halvings as leave a side of 4 or more
    stem_max: int = integer()  # most channels of the stem
    tail: int | None = integer(None)  # channels of a last 1x1 convolution (depthwise and se)
    expansion: float | None = positive(None)  # depthwise and se: bottleneck over output, e.g. 6; null: 1.5 to 6
    monotone: bool = True  # channels never decrease along the depth
    count_head: bool = False  # count the classifier into params and flops
    classes: int | None = integer(None)  # of that classifier; null: the data set's
    structure: str | None = None  # a structure file (.json, .yaml, official .txt): no design, only build and train
    start: list[list[int]] | None = None  # evolution: [[stem], [out, bottleneck], ...], all 3x3, one unit each
    time_limit: str = MISSING  # of the design, e.g. 5min
    seed: int | None = number(None, 0, 2**31 - 1)  # of the design; null: the run's
    chains: int = integer()  # anneal: chains moved at once
    steps: int = integer()  # anneal: of each chain
    evaluations: int = integer()  # evolution: children in all
    frozen_last: bool = False  # evolution: the released code's defect, the last unit never mutates
    certify: str = "0s"  # time for proving an upper bound of the score, e.g. 2min
    costs: str | None = None  # latency: measure, or a cost table (costs.json)
    cost_batch: int = integer(1)  # latency: images at a time
    sweep: list[float] = positive([])  # also design for the budgets times these: the Pareto front
    beside: dict[str, Any] = field(default_factory=dict)  # with sweep: other networks to show, LABEL: {name, args}
    train: bool = True  # train the network; false: design and count only, no data
    drop_path: float = share(0.0, open_high=True)  # stochastic depth of the last unit
    baseline: bool = False  # train the network of model= with the same recipe, for comparison
    other: ModelConfig = field(default_factory=no_model)  # train this one as well: its name, and args if need be


def stages_of(strides: tuple[int, ...]) -> int:
    """Stages that superblocks of these strides make."""
    return 1 + sum(stride == 2 for stride in strides)


def strides_for(resolution: int) -> tuple[int, ...]:
    """As many halvings after the stem as leave a last side of at least 4, at most 4."""
    return STRIDES[max(0, min(4, int(math.log2(resolution / 8))))]


def space_of(options: DeepMADOptions, resolution: int) -> Space:
    """The structures that ``options`` allow."""
    strides = tuple(options.strides) if options.strides else strides_for(resolution)
    if options.space == "resnet":
        return resnet_space(strides, monotone=options.monotone, stem_max=options.stem_max)
    return depthwise_space(
        strides,
        squeeze=options.space == "se",
        tail=options.tail,
        expansion=options.expansion,
        monotone=options.monotone,
        stem_max=options.stem_max,
    )


def scoring_of(options: DeepMADOptions, strides: tuple[int, ...]) -> Scoring:
    """What ``options`` maximise."""
    alphas = tuple(options.alphas or [*[1.0] * (stages_of(strides) - 1), options.alpha_last])
    penalty = options.penalty or ("last3" if options.space == "resnet" else "all")
    return Scoring(alphas, options.beta, options.scoring, penalty, spread=options.spread)


def budget_of(options: DeepMADOptions, times: float = 1.0) -> Budget:
    """The budgets in plain numbers; ``times`` scales all but rho."""
    limits = options.budget
    params = None if limits.params is None else round(count(limits.params, "method.budget.params") * times)
    flops = None if limits.flops is None else round(count(limits.flops, "method.budget.flops") * times)
    latency = None if limits.latency is None else milliseconds(limits.latency, "method.budget.latency") * times
    return Budget(params, flops, limits.rho, latency)


def problem_of(
    options: DeepMADOptions,
    size: Size,
    *,
    classes: int | None = None,
    costs: CostTable | None = None,
    times: float = 1.0,
    latency: bool = True,
) -> Problem:
    """The programme that ``options`` define for images of ``size`` pixels, square without ``options.resolution``.

    Args:
        classes: of the data set, used where the head is counted and ``options.classes`` is None.
        times: all budgets but rho are multiplied by this.
        latency: False leaves the latency budget out (before a cost table is measured).
    """
    resolution = options.resolution or _side(size)
    space = space_of(options, resolution)
    budget = budget_of(options, times)
    if not latency:
        budget = Budget(budget.params, budget.flops, budget.rho)
    counted = (options.classes or classes) if options.count_head else None
    return Problem(space, scoring_of(options, space.strides), budget, resolution, counted, costs)


def _side(size: Size) -> int:
    height, width = hw(size)
    if height != width:
        raise UserError(
            f"method=deepmad designs for square images, and dataset.size is {size_text(size)} px.",
            "Give the side to design for: method.resolution=SIDE; the network is then trained at dataset.size.",
        )
    return height


def check(options: DeepMADOptions, size: Size) -> None:
    """Refuse invalid options before anything runs.

    Raises:
        UserError: naming the key.
    """
    if options.strides is not None and (len(options.strides) < 2 or set(options.strides) - {1, 2}):
        raise UserError(f"method.strides={options.strides}.", "Give at least two superblocks, each of stride 1 or 2.")
    if options.space == "resnet" and (options.tail is not None or options.expansion is not None):
        raise UserError("method.tail and method.expansion belong to the depthwise spaces.", "Choose method.space=se.")
    for key in ("time_limit", "certify"):
        text = getattr(options, key)
        if text not in ("0", "0s"):
            milliseconds(text, f"method.{key}")
    beside_of(options)
    if options.budget.latency is not None and options.costs is None:
        raise UserError("method.budget.latency needs measured costs.", "Add method.costs=measure, or a costs.json.")
    if options.count_head and options.classes is None and not options.train:
        raise UserError("The number of classes of the head is unknown without data.", "Give method.classes.")
    problem = problem_of(options, size, latency=False, classes=options.classes)
    problem.check()
    if options.structure is not None:
        Structure.load(Path(options.structure).expanduser())
    elif not (options.budget.params or options.budget.flops or options.budget.latency):
        raise UserError("A design needs a budget.", "Give method.budget.params=0.3M or method.budget.flops=20M.")
    if options.start is not None:
        start_of(options, problem)


def beside_of(options: DeepMADOptions) -> dict[str, ModelConfig]:
    """The networks of ``method.beside`` by their labels."""
    found = {}
    for label, one in options.beside.items():
        if not isinstance(one, dict) or "name" not in one or set(one) - {"name", "args"}:
            raise UserError(
                f"method.beside.{label} is {one}.", "Give timm's name, and arguments if need be: {name: resnet10t}."
            )
        found[label] = ModelConfig(name=str(one["name"]), args=dict(one.get("args") or {}))
    return found


def start_of(options: DeepMADOptions, problem: Problem) -> Structure | None:
    """The structure that the evolution starts from, if the options give one."""
    if options.start is None:
        return None
    first, *rest = options.start
    if len(first) != 1 or len(rest) != len(problem.space.strides) or any(len(row) != 2 for row in rest):
        raise UserError(
            f"method.start={options.start}.",
            f"Give [[stem], [out, bottleneck], ...] with {len(problem.space.strides)} superblocks.",
        )
    return problem.space.build(first[0], [(out, narrow, 3, 1) for out, narrow in rest])


def seconds(text: str) -> float:
    """``"5min"`` in seconds; ``"0s"`` is 0."""
    return 0.0 if text in ("0", "0s") else milliseconds(text, "time") / 1e3
