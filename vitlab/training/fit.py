"""The one place that calls ``Trainer.fit``."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler

from vitlab.config import Config, RecipeConfig
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import Loader
from vitlab.run.recorder import Recorder
from vitlab.training.callbacks.record_and_checkpoint import RecordAndCheckpoint
from vitlab.training.distributed import device_of
from vitlab.training.learner import Learner
from vitlab.training.out_of_memory import free_traceback, largest_that_fits, out_of_memory, too_large
from vitlab.training.overfit import Overfit
from vitlab.training.profile import StepProfiler
from vitlab.training.progress import Progress
from vitlab.training.schedule import duration_steps
from vitlab.training.sharding import Sharded, uses_sharding

CHECKPOINT = "checkpoint.ckpt"


def make_trainer(
    config: Config, accumulate: int = 1, callbacks: list[Callback] | None = None, profiler: Profiler | None = None
) -> L.Trainer:
    """A Trainer that does what ``hardware=`` says and keeps no books of its own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning 2.6 under torch 2.15
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
    )


def steps_done(checkpoint: Path) -> int:
    """Optimiser steps that a checkpoint has behind it; 0 without one."""
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")["learner"]["step"])


def fit(
    config: Config,
    recipe: RecipeConfig,
    learner: Learner,
    data: VisionData,
    *,
    stage: str,
    folder: Path,
    recorder: Recorder | None,
    validation: Loader | None,
    rehearse: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train ``learner`` to the end of its schedule, from the checkpoint in ``folder`` if there is one.

    Lightning sees each session as one epoch of the batches that remain. The order of the samples, the learning rate
    and the random numbers follow from the learner's own counters, so nothing of Lightning's loops is restored, and
    the loader's workers and their prefetching live across the epochs of the data.

    Args:
        rehearse: take three steps, validate on nothing, and return an estimate for so many steps.
        callbacks: look on beside the books.

    Returns:
        Seconds of training, earlier sessions included.

    Raises:
        Interrupted: somebody asked to stop; the checkpoint is written.
        UserError: a loss is not finite.
    """
    checkpoint = folder / CHECKPOINT
    step = steps_done(checkpoint)
    if recorder is not None:
        recorder.rewind(stage, step if checkpoint.exists() else -1)
    trial, per_epoch = rehearse is not None, data.steps_per_epoch
    total = min(learner.schedule.total, 3) if trial else learner.schedule.total
    with Progress(stage, total, done=step, quiet=trial or recorder is None) as progress:
        keeper = RecordAndCheckpoint(
            stage=stage,
            folder=folder,
            recorder=recorder,
            validation=None if trial else validation,
            total=total,
            record_every=config.logger.every,
            validate_every=duration_steps("recipe.validate_every", recipe.validate_every, per_epoch, total),
            checkpoint_every=duration_steps("recipe.checkpoint_every", recipe.checkpoint_every, per_epoch, total),
            accumulate=recipe.accumulate,
            progress=progress,
        )
        if step >= total:  # stopped between the last step and the artifact: only the weights are wanted
            state = torch.load(checkpoint, weights_only=True, map_location="cpu")
            learner.load_state_dict(state["state_dict"])
            return float(state["callbacks"][keeper.state_key]["seconds"])
        loader = data.train_loader(start=step * recipe.accumulate, stop=total * recipe.accumulate)
        watch = Stopwatch()
        callbacks, profiler = list(callbacks), None
        if config.debug.overfit is not None:
            callbacks.append(Overfit(stage, folder, config.debug.overfit, data.num_classes, learner.task))
        if config.debug.profile is not None and recorder is not None and not trial:
            left = (total - step) * recipe.accumulate
            profiler = StepProfiler(stage, folder / "profile", left, config.debug.profile, device_of(config))
        trainer = make_trainer(config, recipe.accumulate, [watch, keeper] if trial else [*callbacks, keeper], profiler)
        resume = str(checkpoint) if checkpoint.exists() else None
        learner.accumulate = recipe.accumulate
        try:
            trainer.fit(learner, loader, ckpt_path=resume, weights_only=True)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            free_traceback(error)
            fits = None if uses_sharding(config) else largest_that_fits(trainer, learner, data)
            raise too_large(config, recipe, stage, fits) from error
        return watch.estimate(rehearse * recipe.accumulate) if rehearse is not None else keeper.elapsed()


class Stopwatch(Callback):
    """Times batches, to estimate a whole training from a few."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.stamps.append(time.monotonic())

    def estimate(self, batches: int) -> float:
        """Seconds for ``batches``; the first batch, which pays for warming up, is not counted."""
        gaps = [b - a for a, b in zip(self.stamps, self.stamps[1:], strict=False)]
        return batches * (min(gaps) if gaps else 0.0)
