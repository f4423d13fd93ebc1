"""The *build* stage: make the network and count it by running it, to check what the design computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlab.config.size import Size
from vitlab.files import write_json
from vitlab.methods.deepmad.evaluate import conv_macs, head_params, squeezed
from vitlab.methods.deepmad.latency import CostTable
from vitlab.methods.deepmad.options import DeepMADOptions, problem_of
from vitlab.methods.deepmad.structure import Structure, Superblock
from vitlab.models.deepmad import DeepMAD

RECORD = "network.json"
CLASSES = 1000  # where the data set does not give the number: ImageNet's, as the paper counts


def count_network(network: nn.Module, resolution: int) -> dict[str, int]:
    """Parameters, and multiply-adds of every convolution and linear layer for one image, counted by running it."""
    macs = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        macs += output[0].numel() * module.weight[0].numel()

    handles = [
        module.register_forward_hook(add) for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, resolution, resolution, device=next(network.parameters()).device))
    for handle in handles:
        handle.remove()
    return {"params": sum(parameter.numel() for parameter in network.parameters()), "macs": macs}


def squeeze_macs(structure: Structure) -> int:
    """Multiply-adds of squeeze-and-excitation, which the paper's FLOPs leave out."""
    return sum(
        2 * unit.bottleneck * squeezed(unit.bottleneck) * unit.depth
        for unit in structure.units
        if isinstance(unit, Superblock) and unit.kind == "K1DWSEK1"
    )


def verify(structure: Structure, resolution: int, params: int, classes: int = CLASSES) -> dict[str, int]:
    """Build ``structure`` and compare its counts with those of the formulas.

    Args:
        params: of the design, without classifier.

    Raises:
        RuntimeError: the counts differ.
    """
    with torch.device("meta"):
        network = DeepMAD(structure.to_list(), num_classes=classes)
    counted = count_network(network, resolution)
    channels = structure.units[-1].out
    designed = {
        "params": params + head_params(channels, classes),
        "macs": conv_macs(structure, resolution) + squeeze_macs(structure) + channels * classes,
    }
    if counted != designed:
        raise RuntimeError(f"the network has {counted}, and {designed} were designed")
    return counted


def build(solved: Path, folder: Path, options: DeepMADOptions, size: Size) -> dict[str, object]:
    """Check the solved structure against the network and the budgets; write ``network.json``."""
    structure = Structure.load(solved / "structure.json")
    costs = CostTable.load(solved / "costs.json") if (solved / "costs.json").exists() else None
    problem = problem_of(options, size, latency=costs is not None, costs=costs, classes=options.classes)
    spent = replace(problem, classes=None).evaluate(structure)
    counted = verify(structure, problem.resolution, spent.params, options.classes or CLASSES)
    record: dict[str, Any] = {
        "params": counted["params"],
        "macs": counted["macs"],
        "designed_params": spent.params,
        "designed_flops": spent.flops,
        "rho": spent.rho,
        "rho_by_stage": [stage.rho for stage in spent.stages],
        "entropy_by_stage": list(spent.terms),
        "score": spent.score,
        "layers": spent.stages[-1].depth,
    }
    if costs is not None:
        record["latency_ms"] = problem.latency(structure)
        record["latency_error"] = costs.error
    write_json(folder / RECORD, record)
    return record
