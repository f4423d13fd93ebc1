"""Throughput (images per second) of a traced network by the protocol of TinyViT's authors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from vitlab.config.size import Size, hw
from vitlab.measure.timing import device_name, synchronize, time_for
from vitlab.models.eval_mode import eval_mode

AUTOCAST = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Lightning's names of mixed precisions and ours; any other precision is full."""


@dataclass(frozen=True)
class Throughput:
    """``images_per_second`` = batch / mean time of a batch."""

    images_per_second: float
    batch: int
    batches: int  # that were timed
    device: str
    precision: str


def measure_throughput(
    model: nn.Module, size: Size, batch: int = 64, warmup: float = 10.0, seconds: float = 60.0, precision: str = "32"
) -> Throughput:
    """Time ``model`` on random images [batch, 3, H, W] on the device of its parameters (official protocol: 10 s
    of warm-up, then 60 s, each batch timed by itself; traced; under autocast).

    Args:
        warmup, seconds: at least three batches and one are run.
        precision: "bf16" or "fp16" for autocast, "32" for none.

    Raises:
        ValueError: for another precision or an empty batch.
    """
    kinds = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in kinds or batch < 1:
        raise ValueError(f"precision {precision!r} of {', '.join(kinds)}, batch {batch}")
    device = next(model.parameters()).device
    images = torch.randn(batch, 3, *hw(size), device=device)
    kind = kinds[precision]
    with eval_mode(model), torch.autocast(device.type, kind, enabled=kind is not None, cache_enabled=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of fixed shapes, which are intended here
            traced = torch.jit.trace(model, images, check_trace=False)

        def run() -> None:
            traced(images)
            synchronize(device)

        time_for(run, warmup, least=3)  # a traced network is optimised in its first passes
        times = time_for(run, seconds, least=1)
    return Throughput(batch * len(times) / sum(times), batch, len(times), device_name(device), precision)
