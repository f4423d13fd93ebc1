"""Which process this is among how many, and on what device it works."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from vitlab.config import Config


def rank() -> int:
    """Number of this process among all (0 when alone)."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def device_of(config: Config) -> torch.device:
    """The device that hardware= means, for work outside a Trainer."""
    wanted = config.trainer.accelerator
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
