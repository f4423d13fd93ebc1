"""One network over several processes: each keeps a share of every weight, its gradient and its optimiser state (FSDP2).

A unit of the network is gathered only while it computes. What is written is what one process would have written: the
same checkpoint and model artifact, whatever the number of processes; so a run may go on with other hardware.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vitlab.config import Config
from vitlab.training.distributed import device_of, world_size

SHARE = 100
"""A unit holds at least 1/SHARE of the network's weights; smaller ones belong to the unit around them."""


def uses_sharding(config: Config) -> bool:
    """Whether ``trainer.strategy=fsdp`` has several processes to share among; one alone trains as ever."""
    return config.trainer.strategy == "fsdp" and world_size() > 1


def all_processes(config: Config) -> DeviceMesh:
    """Every process, in one row."""
    return init_device_mesh(device_of(config).type, (world_size(),))


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the weights of ``network`` over ``mesh``, in place; every process has built it with the same weights."""
    for unit in (*units(network), network):
        # Gathered weights are freed after each forward pass, also the root's: validation stops between the two passes.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def units(network: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered one after the other, inner ones first: members of a sequence or list, not layers.

    Transformer blocks, stages, bottlenecks: whatever a network keeps several of in a row.
    """
    smallest = sum(weight.numel() for weight in network.parameters()) / SHARE
    found = []
    for module in reversed(list(network.modules())):
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            continue
        for member in module.children():
            own = sum(weight.numel() for weight in member.parameters())
            if any(True for _ in member.children()) and own >= smallest and not isinstance(member, nn.ModuleList):
                found.append(member)
    return found


def is_sharded(network: nn.Module) -> bool:
    """Whether :func:`shard` was here."""
    return isinstance(network, FSDPModule)


def full_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state of ``network`` as one process has it, on the CPU; every process calls this, the first one gets it."""
    if not is_sharded(network):
        return {name: value.detach().cpu() for name, value in network.state_dict().items()}
    state: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first one (running statistics), as DDP does before every step."""
    if is_sharded(network):
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2, with checkpoints of one file that any hardware can continue from.

    Lightning's own numbers the optimiser's states by the order of the network's weights, one process by that of the
    optimiser's groups; reading one as the other would give weights the wrong history.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=world_size(), tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What one process would save; every process calls this."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        full = {number: {k: _full(v) for k, v in one.items()} for number, one in state["state"].items()}
        return state | {"state": full}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any hardware; each process keeps its share."""
        path = Path(self.broadcast(checkpoint_path))
        found: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        assert self.model is not None
        set_model_state_dict(self.model, found.pop("state_dict"), options=StateDictOptions(full_state_dict=True))
        for optimizer, state in zip(self.optimizers, found.pop("optimizer_states"), strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            mine = {
                number: {k: _share(v, weight) for k, v in state["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in state["state"]
            }
            optimizer.load_state_dict(state | {"state": mine})
        return found


def _full(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _share(value: Any, weight: Tensor) -> Any:
    """This process's part of an optimiser's state of ``weight``; step counts and the like are everybody's."""
    if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
        device = weight.device_mesh.device_type
        return distribute_tensor(value.to(device), weight.device_mesh, weight.placements, src_data_rank=None)
    return value


def full_tensor(value: Tensor) -> Tensor:
    """A number that all processes share, as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value
