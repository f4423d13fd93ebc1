"""Which process this is among how many, on what device it works, and what all of them agree on."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed as dist
from torch import Tensor

from vitlab.config import Config


def rank() -> int:
    """Number of this process among all (0 when alone)."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together now."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """The sum of ``values`` over all processes, in their own precision; every process calls this.

    Args:
        device: where the processes can talk about them: that of the training.
    """
    if not dist.is_initialized():
        return values
    shared = values.detach().clone().to(device)
    dist.all_reduce(shared)
    return shared.to(values.device)


def all_reduce_max(value: int, device: torch.device) -> int:
    """The largest ``value`` of all processes; every process calls this."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def device_of(config: Config) -> torch.device:
    """The device that hardware= means, for work outside a Trainer."""
    wanted, devices = config.trainer.accelerator, config.trainer.devices
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", devices[local] if isinstance(devices, list) else local)
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def configure_torch(config: Config) -> None:
    """Process-wide switches that hardware= decides; warnings of ours reach the prompt."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    elif world_size() > 1 and device_of(config).type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    torch.set_float32_matmul_precision("high")
