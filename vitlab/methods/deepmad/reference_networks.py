"""Hand-made networks scored like designed ones: entropy, effectiveness, parameters and FLOPs of a CNN.

The rules are those of :mod:`vitlab.methods.deepmad.evaluate`, applied to the convolutions of a forward pass
instead of to a structure. For the published networks both give the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from vitlab.config import ModelConfig
from vitlab.methods.deepmad.evaluate import (
    Evaluation,
    Scoring,
    Stage,
    depth_penalty,
    head_params,
    penalised,
    stage_entropy,
)
from vitlab.methods.deepmad.latency import whole_ms
from vitlab.methods.deepmad.problem import LatencyModel
from vitlab.models.build import build_model

BESIDE = {"downsample", "shortcut", "residual_proj"}
"""Modules of these names are projections of shortcuts: no layers of the main path."""

SQUEEZE = {"se", "se2"}
"""Squeeze-and-excitation: neither layers nor, as in the released code, FLOPs."""


@dataclass(frozen=True)
class Layer:
    """A convolution of the main path.

    Attributes:
        unit: path of the residual unit that it belongs to, up to the last number; its own where there is none.
        width: input channels times kernel area over groups.
        out: output channels.
        side: of the output in pixels.
    """

    unit: str
    width: int
    out: int
    side: int


def evaluate_network(network: nn.Module, resolution: int, scoring: Scoring, classes: int | None = None) -> Evaluation:
    """Score and costs of ``network``, a CNN without its classifier.

    A stage ends where the side shrinks. With more or fewer stages than the scoring has weights, all stages but the last
    get the first weight, and the last stage the last. The defect of the ``official`` mode, a side of 1 in networks with
    squeeze-and-excitation, is not reproduced. Depths are the units of each numbered group, such as ``layer1`` or
    ``blocks.0``.

    Args:
        classes: of a classifier to be counted; None: no classifier.

    Raises:
        ValueError: a module with weights is neither convolution nor batch norm, or the weights of the stages are
            ambiguous.
    """
    layers, flops = _trace(network, resolution)
    units = [list(group) for _, group in groupby(layers, key=lambda layer: layer.unit)]
    stages: list[Stage] = []
    depth, log_width = 0, 0.0
    for number, unit in enumerate(units):
        depth += len(unit)
        log_width += sum(math.log(layer.width) for layer in unit)
        if number + 1 == len(units) or units[number + 1][-1].side < unit[-1].side:
            stages.append(Stage(unit[-1].out, unit[-1].side, depth, log_width, log_width))
    alphas = _alphas(scoring.alphas, len(stages))
    terms = [
        alpha * stage_entropy(stage.channels, stage.side, stage.log_width, scoring.factor)
        for alpha, stage in zip(alphas, stages, strict=True)
    ]
    groups = groupby(unit[0].unit.rpartition(".")[0] for unit in units if len(unit) > 1)
    depths = [len(list(group)) for _, group in groups]
    penalty = depth_penalty(penalised(depths, scoring.penalty), scoring.beta, scoring.variance)
    params = sum(parameter.numel() for parameter in network.parameters())
    if classes is not None:
        params += head_params(stages[-1].channels, classes)
        flops += stages[-1].channels * classes
    return Evaluation(tuple(stages), tuple(terms), penalty, params, flops)


def handmade_point(
    name: str,
    model: ModelConfig,
    resolution: int,
    scoring: Scoring,
    classes: int | None = None,
    costs: LatencyModel | None = None,
) -> dict[str, Any]:
    """One row of ``sweep.json``; the score is null where the network has none. With ``costs`` its latency is measured
    on this machine, as those of the table were, and not predicted.
    """
    network = build_model(replace(model, checkpoint=None), 0, resolution, pretrained=False)
    try:
        found = evaluate_network(network, resolution, scoring, classes)
    except ValueError as error:
        values: dict[str, Any] = {"score": None, "flops": None, "rho": None, "why": str(error)}
        values["params"] = sum(parameter.numel() for parameter in network.parameters())
    else:
        values = {"score": found.score, "params": found.params, "flops": found.flops, "rho": found.rho}
    latency = None if costs is None else whole_ms(network, resolution, costs)
    return {"name": name, "designed": False, **values, "latency_ms": latency, "bound": None}


def _alphas(given: tuple[float, ...], stages: int) -> tuple[float, ...]:
    if len(given) == stages:
        return given
    first, *between, last = given
    if any(one != first for one in between):
        raise ValueError(f"it has {stages} stages, and there are {len(given)} different weights")
    return (*[first] * (stages - 1), last)


def _trace(network: nn.Module, resolution: int) -> tuple[list[Layer], int]:
    """The layers in forward order, and the FLOPs of all modules."""
    layers: list[Layer] = []
    flops = 0
    handles = []

    def convolution(name: str, module: nn.Conv2d, output: torch.Tensor) -> int:
        parts = name.split(".")
        macs = output.numel() * module.weight[0].numel()
        if BESIDE.intersection(parts):
            return macs + output.numel()  # the paper's count has an activation there
        last = max((at for at, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
        unit = ".".join(parts[: last + 1])
        layers.append(Layer(unit, module.weight[0].numel(), output.shape[1], output.shape[-1]))
        return macs

    def watch(name: str, module: nn.Module) -> None:
        def count(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            nonlocal flops
            if isinstance(module, nn.Conv2d):
                flops += convolution(name, module, output)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                flops += 2 * output.numel()
            elif isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):
                flops += inputs[0].numel()
            else:
                flops += output.numel()

        handles.append(module.register_forward_hook(count))

    for name, module in network.named_modules():
        if SQUEEZE.intersection(name.split(".")):
            continue
        own = any(True for _ in module.parameters(recurse=False))
        known = isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm))
        if own and not known:
            raise ValueError(f"'{name or type(module).__name__}' is neither convolution nor batch norm")
        pool = isinstance(module, (nn.AvgPool2d, nn.MaxPool2d))
        if known or pool or "activation" in type(module).__module__:
            watch(name, module)
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, resolution, resolution))
    finally:
        for handle in handles:
            handle.remove()
    return layers, flops
