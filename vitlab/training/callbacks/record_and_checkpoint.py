"""What happens after every optimiser step, in this order: count, record, validate, checkpoint, stop on a signal."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vitlab.data.batch import Batch
from vitlab.data.loader import Loader
from vitlab.errors import UserError, written_to
from vitlab.files import fsync_dir, write_json
from vitlab.models.finite import list_first, non_finite
from vitlab.run.recorder import Recorder
from vitlab.training.checkpoint import CHECKPOINT, read_done
from vitlab.training.distributed import all_reduce_max, all_reduce_sum, world_size
from vitlab.training.interrupt import reinstall_signal_handlers, stop, stop_requested, stop_requested_on_any_rank
from vitlab.training.learner import Learner
from vitlab.training.profile import timed
from vitlab.training.progress import Progress
from vitlab.training.sharding import is_sharded, share_buffers

DIVERGED = (
    "Lower recipe.lr, lengthen recipe.warmup, set recipe.clip=1.0, or use trainer.precision=32-true. A run with "
    "changed numbers is a new run."
)


class RecordAndCheckpoint(Callback):
    """Keeps the record, validates, writes checkpoints and stops the training where it may be continued.

    The order is what makes a continued training equal an uninterrupted one: a checkpoint of step s is written after
    the rows of step s are in the record, and a session that continues from it drops the rows of later steps.

    Args:
        stage: name in the record.
        folder: of the stage; the checkpoint lives here.
        recorder: of the run; None on ranks other than 0.
        validation: batches to validate on, or None.
        total: optimiser steps in all.
        record_every, validate_every, checkpoint_every: optimiser steps between two; a training shorter than two records
            is recorded ten times.
        accumulate: batches of one optimiser step.
    """

    def __init__(
        self,
        *,
        stage: str,
        folder: Path,
        recorder: Recorder | None,
        validation: Loader | None,
        total: int,
        record_every: int,
        validate_every: int,
        checkpoint_every: int,
        accumulate: int,
        progress: Progress,
    ) -> None:
        self.stage, self.folder, self.recorder, self.validation = stage, folder, recorder, validation
        self.total, self.accumulate, self.progress = total, accumulate, progress
        # Of a training with fewer than two records, some ten: a curve needs them.
        self.record_every = max(1, record_every if total >= 2 * record_every else min(record_every, total // 10))
        self.validate_every = max(1, validate_every)
        self.checkpoint_every = max(1, checkpoint_every)
        self.names: list[str] = []
        self.window: list[Tensor] = []  # named losses of the batches since the last record, [names] each
        self.seen: list[dict[str, Any]] = []  # which samples those batches held
        self.seconds = 0.0  # training time of earlier sessions
        self.begun = time.monotonic()
        self.marked = self.begun
        self.images = 0
        self.waited = 0.0  # seconds since the last record in which there was no batch to train on
        self.left = self.begun  # when the last batch was done with
        self.example: Tensor | None = None  # one image of the last batch [1, C, H, W]

    def elapsed(self) -> float:
        """Seconds spent on this training, over all sessions up to the last checkpoint."""
        return self.seconds + time.monotonic() - self.begun

    # -- Lightning's hooks -------------------------------------------------------------------------------------------

    KEY: ClassVar = "Bookkeeper"
    """Of this callback's state in a checkpoint: the first name of the class, so that old ones are read."""

    @property
    def state_key(self) -> str:
        return self.KEY

    def state_dict(self) -> dict[str, Any]:
        window = torch.stack(self.window).cpu() if self.window else torch.zeros(0, len(self.names))
        return {"names": self.names, "window": window, "seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.names = list(state_dict["names"])
        self.window = list(state_dict["window"])
        self.seen = [{} for _ in self.window]  # those batches were finite, or there would be no checkpoint
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        reinstall_signal_handlers()
        self.left = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, learner: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.waited += time.monotonic() - self.left

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(learner, Learner)
        self._collect(outputs, batch, learner)
        learner.batches += 1
        if learner.batches % self.accumulate == 0:
            self._after_step(trainer, learner)
        self.left = time.monotonic()

    def _after_step(self, trainer: L.Trainer, learner: Learner) -> None:
        with timed(trainer, "weight average"):
            learner.after_step()
        step = learner.step
        finished = self._finished(trainer, learner)
        last = step >= self.total or finished
        if step % self.record_every == 0 or last:
            self._record(trainer, learner)
        validating = step % self.validate_every == 0 or last
        if validating:
            self._refuse_non_finite_weights(learner)
            with timed(trainer, "validation"):
                self._validate(trainer, learner)
        stopping = not last and self._stop_requested(trainer, step)
        if step % self.checkpoint_every == 0 or last or stopping:
            if not validating:
                self._refuse_non_finite_weights(learner)
            with timed(trainer, "checkpoint"):
                self._checkpoint(trainer, learner)
        if stopping:
            stop()
        if finished and step < self.total:
            self.progress.note(f"{self.stage}: ends after step {step} of {self.total}")
            trainer.should_stop = True

    def _finished(self, trainer: L.Trainer, learner: Learner) -> bool:
        """Whether the training ends after this step; the same answer on every rank."""
        if not learner.can_finish:
            if learner.finished:
                raise RuntimeError("learner.finished is set, and learner.can_finish was not before the training")
            return False
        learner.finished = bool(all_reduce_max(int(learner.finished), trainer.strategy.root_device))
        return learner.finished

    def _stop_requested(self, trainer: L.Trainer, step: int) -> bool:
        """Whether to stop after this step; several ranks agree only at steps where they communicate anyway."""
        if world_size() == 1:
            return stop_requested()
        return step % self.record_every == 0 and stop_requested_on_any_rank(trainer.strategy.root_device)

    # -- one method for each thing that happens ----------------------------------------------------------------------

    def _collect(self, outputs: dict[str, Tensor], batch: Batch, learner: Learner) -> None:
        self.names = list(outputs)
        self.window.append(torch.stack([value.detach().float() for value in outputs.values()]))
        self.seen.append({"batch": learner.batches, "step": learner.step, "index": batch.index, "slot": batch.slot})
        self.images += len(batch)
        self.example = batch.image[:1]

    def _refuse_non_finite(self) -> Tensor:
        """The window as [batches, names] on the CPU; raises where a loss is not finite."""
        window = torch.stack([row.cpu() for row in self.window])
        finite = torch.isfinite(window).all(1)
        if bool(finite.all()):
            return window
        first = int((~finite).nonzero()[0])
        seen, path = self.seen[first], self.folder / "not_finite.json"
        values = {name: repr(float(value)) for name, value in zip(self.names, window[first], strict=True)}
        index, slot = seen["index"].tolist(), seen["slot"].tolist()
        what = {"stage": self.stage, "step": seen["step"], "batch": seen["batch"], "index": index, "slot": slot}
        write_json(path, what | {"losses": values})
        losses = ", ".join(f"{name} {value}" for name, value in values.items())
        raise UserError(
            f"Stage {self.stage}: the loss is not finite at step {seen['step']} ({losses}). The samples of that batch "
            f"and their slots are in {path}. {self._last_checkpoint()}",
            DIVERGED,
        )

    def _refuse_non_finite_weights(self, learner: Learner) -> None:
        """Raise where a weight of the student or of its average is not finite: a loss sees it one step later, or
        never."""
        networks = {"weights": learner.student}
        if learner.average is not None:
            networks["averaged weights"] = learner.average.module
        for kind, network in networks.items():
            if names := non_finite(network):
                raise UserError(
                    f"Stage {self.stage}: {kind} that are not finite after step {learner.step} ({list_first(names)}). "
                    f"{self._last_checkpoint()}",
                    DIVERGED,
                )

    def _last_checkpoint(self) -> str:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return "No checkpoint was written before."
        return f"The checkpoint is of step {read_done(path).step}, with finite weights."

    def _share(self, trainer: L.Trainer) -> Tensor:
        """The window as means over all processes, [batches, names]; refuses losses that are not finite."""
        return all_reduce_sum(self._refuse_non_finite(), trainer.strategy.root_device) / world_size()

    def _record(self, trainer: L.Trainer, learner: Learner) -> None:
        window = self._share(trainer)
        means = dict(zip(self.names, window.mean(0).tolist(), strict=True))
        self.window, self.seen = [], []
        now = time.monotonic()
        rate = self.images * trainer.world_size / max(now - self.marked, 1e-9)
        waited = self.waited / max(len(window), 1)
        self.marked, self.images, self.waited = now, 0, 0.0
        norm = float(learner.gradient_norm) if learner.gradient_norm is not None else math.nan
        if self.recorder is not None:
            lr = learner.schedule(learner.step - 1)
            groups = trainer.optimizers[0].param_groups
            layered = any(group.get("lr_scale", 1.0) < 1 for group in groups)
            ends = {"lr_lowest": min(group["lr"] for group in groups)} if layered else {}
            self.recorder.write(
                stage=self.stage,
                step=learner.step,
                **{f"train_{name}" if name == "accuracy" else name: value for name, value in means.items()},
                lr=lr,
                **ends,
                gradient_norm=norm,
                images_per_second=round(rate, 1),
                data_ms=round(1e3 * waited, 3),
            )
        self.progress.update(learner.step, means)

    def _validate(self, trainer: L.Trainer, learner: Learner) -> None:
        if self.validation is None:
            return
        values, overflowed = validate(trainer, learner, self.validation, self.example)
        if overflowed and learner.step >= self.total:
            raise UserError(
                f"Stage {self.stage}: after step {learner.step} the network's outputs for {overflowed} validation "
                f"images are not finite. {self._last_checkpoint()}",
                DIVERGED,
            )
        if self.recorder is not None:
            self.recorder.write(stage=self.stage, step=learner.step, **values)
        described = learner.task.describe_validation(values)
        self.progress.note(f"{self.stage}: step {learner.step}/{self.total}  {described}")
        self.marked = time.monotonic()

    def _checkpoint(self, trainer: L.Trainer, learner: Learner) -> None:
        if self.window:  # every process will continue from rank 0's checkpoint
            self.window = list(self._share(trainer))
        if self.recorder is not None:
            self.recorder.sync()
        save_checkpoint(trainer, self.folder / CHECKPOINT)


def save_checkpoint(trainer: L.Trainer, path: Path) -> None:
    """Lightning's checkpoint, written atomically. Every rank calls this; rank 0 writes."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with written_to(path, _bytes_of(trainer)):
            trainer.save_checkpoint(temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if trainer.is_global_zero:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    trainer.strategy.barrier()


def _bytes_of(trainer: L.Trainer) -> int:
    """What this process has to save of weights and optimiser states."""
    tensors = [*trainer.lightning_module.state_dict().values()]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, Tensor))


@torch.no_grad()
def validate(
    trainer: L.Trainer, learner: Learner, batches: Loader, example: Tensor | None = None
) -> tuple[dict[str, float], int]:
    """The task's validation metrics (``val_<key>``) of ``learner.result`` over exactly the images of ``batches``, and
    the number of images with an output that is not finite (on several ranks: the largest of theirs).

    Args:
        example: an image [1, C, H, W] as the network wants it; a network that is shared among processes computes in all
            of them at once, so a rank with fewer batches computes this one and drops the result.
    """
    network, device = learner.result, trainer.strategy.root_device
    share_buffers(network)
    training = network.training
    # By way of train(): TinyViT keeps tables that it computed in eval mode, which a weight average never leaves.
    network.train().eval()
    metrics = learner.task.validation_metrics(learner.classes)
    overflowed = torch.zeros((), dtype=torch.int64, device=device)
    idle = all_reduce_max(len(batches), device) - len(batches) if is_sharded(network) else 0
    try:
        for batch in batches:
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.val_step_context():
                logits = learner.logits(network(batch.image))
            overflowed += (~torch.isfinite(logits).all(1)).sum()
            metrics.update(logits.float(), batch.label)
        for _ in range(idle if example is not None else 0):
            with trainer.precision_plugin.val_step_context():
                network(example)
    finally:
        network.train(training)
    if world_size() > 1:  # torchmetrics sums over ranks where the states are, which their backend must reach
        metrics.to(device)
    found = metrics.compute()
    values = {f"val_{name}": float(found[name]) for name in learner.task.validated}
    return values, all_reduce_max(int(overflowed), device)
