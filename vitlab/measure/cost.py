"""Cost of a network: parameters, multiply-adds, latency, and bytes on disk.

One MAC is one multiplication with its addition. Counted are convolutions, linear layers and the two products of
attention, however they are written; normalisation, activations, additions and look-ups are not. This is the
convention of the papers: DeiT-S 4.6 G, Swin-T 4.5 G, TinyViT-5M 1.255 G at 224 px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab.config.size import Size, hw, plain_size
from vitlab.measure.cost_record import Cost, Latency, Memory
from vitlab.measure.memory import peak_memory
from vitlab.measure.timing import WARMUP, device_name, synchronize, time_calls
from vitlab.models.eval_mode import eval_mode

CHANNELS = 3


@runtime_checkable
class CountsMacs(Protocol):
    """A network with further counts of multiply-adds than that of the operations which its forward pass executes."""

    def extra_macs(self, size: Size) -> Mapping[str, int]:
        """Multiply-adds of one image [1, 3, H, W] by name, e.g. ``{"reference": ...}``, a paper's own count."""


def measure_cost(
    model: nn.Module,
    size: Size,
    batches: Sequence[int] = (),
    repeats: int = 30,
    file: Path | None = None,
    memory: Sequence[int] = (),
) -> Cost:
    """Count and time ``model`` [B, 3, H, W] on the device and in the precision that its parameters have.

    Args:
        model: its mode is restored afterwards.
        size: side of the input in pixels, or (height, width).
        batches: batch sizes to time; none: counts only.
        repeats: timed passes of each batch size.
        file: weights file whose size is stated.
        memory: batch sizes whose peak memory is stated.
    """
    device = next(model.parameters()).device
    return Cost(
        params=count_params(model),
        macs=count_macs(model, size),
        size=plain_size(size),
        bytes=file.stat().st_size if file is not None else None,
        latency=[measure_latency(model, size, batch, repeats) for batch in batches],
        memory=[Memory(batch, peak_memory(model, size, batch)) for batch in memory],
        device=device_name(device),
        threads=torch.get_num_threads(),
        extra_macs=dict(model.extra_macs(size)) if isinstance(model, CountsMacs) else {},
    )


def count_params(model: nn.Module) -> int:
    """Number of parameters, shared ones once; buffers (running statistics) are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: Size) -> int:
    """Multiply-adds of one image [1, 3, H, W]; counted from the operations that a forward pass executes.

    A network on the meta device is counted without computing anything.
    """
    # The math kernel computes attention as two matrix products, so that the count is the same on every device and torch
    # version.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(_images(model, 1, size))
    return int(counter.get_total_flops()) // 2  # torch counts the multiplication and the addition


def measure_latency(model: nn.Module, size: Size, batch: int, repeats: int, warmup: int = WARMUP) -> Latency:
    """Time forward passes of random images [batch, 3, H, W], in eval mode.

    Raises:
        ValueError: no repeats.
    """
    images = _images(model, batch, size).normal_()

    def run() -> None:
        model(images)
        synchronize(images.device)

    synchronize(images.device)
    with eval_mode(model):
        elapsed = time_calls(run, repeats, warmup)
    p10, median, p90 = (1000 * np.quantile(elapsed, [0.1, 0.5, 0.9])).tolist()
    return Latency(batch, median, p10, p90, repeats)


def _images(model: nn.Module, batch: int, size: Size) -> torch.Tensor:
    like = next(model.parameters())
    return torch.zeros(batch, CHANNELS, *hw(size), dtype=like.dtype, device=like.device)
