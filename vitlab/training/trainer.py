"""Lightning's Trainer as vitlab uses it."""

from __future__ import annotations

import io
import logging
import time
import warnings
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler

from vitlab.config import Config
from vitlab.training.sharding import Sharded, uses_sharding


def make_trainer(
    config: Config, accumulate: int = 1, callbacks: list[Callback] | None = None, profiler: Profiler | None = None
) -> L.Trainer:
    """A Trainer for ``hardware=`` that writes no logs and checkpoints of its own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning 2.6 under torch 2.15
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # averages, student_eval
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # of depthwise convolutions
    hardware = config.trainer
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=Sharded() if uses_sharding(config) else "auto" if hardware.strategy == "fsdp" else hardware.strategy,
        precision=hardware.precision,  # type: ignore[arg-type]  # free text in the configuration, checked by Lightning
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks or [],
        profiler=profiler,
        plugins=[InPlace()],
    )


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint to its path and nowhere else.

    Lightning's own writes it into the system's temporary folder and moves it: a kill leaves it there for ever, and a
    small /tmp fills up although the disk of the run has room. Atomic is what calls this (record_and_checkpoint).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """``torch.save`` to ``path``, by way of memory: a failed write is an OSError then, with its number."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with open(path, "wb") as file:
            file.write(content.getbuffer())


class Stopwatch(Callback):
    """Times batches, to estimate a training from a few."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.stamps.append(time.monotonic())

    def estimate(self, batches: int) -> float:
        """Seconds for ``batches``; the first batch, which pays for warming up, is not counted."""
        gaps = [b - a for a, b in zip(self.stamps, self.stamps[1:], strict=False)]
        return batches * (min(gaps) if gaps else 0.0)
