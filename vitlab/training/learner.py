"""The one LightningModule: a student, an objective, an optimiser, named losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from vitlab.data.batch import Batch
from vitlab.distill.sparse import SparseTarget
from vitlab.tasks.base import Task, find_task
from vitlab.training.objectives import Objective
from vitlab.training.profile import timed
from vitlab.training.schedule import Schedule
from vitlab.training.sharding import full_tensor, is_sharded, shard

TeacherFn = Callable[[Batch], "SparseTarget | Tensor"]


class Learner(L.LightningModule):
    """Train ``student`` to minimise ``objective``.

    Everything that happens in a step is a function of (seed, step): the learning rate, and the random numbers of
    dropout and drop path, since the generator is seeded anew before every batch. Together with the sampler's
    position that is why a continued training equals an uninterrupted one.
    The numbers differ from process to process, so with dropout or drop path two processes learn as well as one, but not
    the same.

    Args:
        student: [B, 3, H, W] -> logits [B, C].
        objective: logits, label, teacher's target -> named losses; ``loss`` is minimised.
        schedule: learning rate of each optimiser step.
        make_optimizer: builds the optimiser; a group's ``lr_scale`` multiplies its learning rate.
        teacher: asked for a target for every batch; None: no teacher. Held outside the module tree, so it is neither
            in checkpoints nor in the weight average, nor moved or wrapped with the student.
        clip: largest global gradient norm; None: off.
        ema: decay of the weight average, which is then what is validated and kept; None: off.
        seed: of the random numbers inside the network.
        freeze_batchnorm: running statistics of the student's BatchNorm layers stay as they are in training.
        compile: run the student through ``torch.compile``.
        task: what the student predicts; None: classification.
        classes: of the data; only metrics of several labels an image must know them.
    """

    teacher: TeacherFn | None
    forward_student: Callable[[Tensor], Tensor]

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        schedule: Schedule,
        make_optimizer: Callable[[nn.Module], Optimizer],
        *,
        teacher: TeacherFn | None = None,
        freeze_batchnorm: bool = False,
        clip: float | None = None,
        ema: float | None = None,
        seed: int = 0,
        compile: bool = False,
        task: Task | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.task, self.classes = task or find_task("classification"), classes
        self.student = student
        self.average = ModelEmaV3(student, decay=ema) if ema is not None else None
        self.objective = objective
        self.schedule = schedule
        self.make_optimizer = make_optimizer
        self.teacher = teacher
        self.frozen = [m for m in student.modules() if freeze_batchnorm and isinstance(m, _BatchNorm)]
        self.clip = clip
        self.seed = seed
        self.step = 0  # optimiser steps done, over all sessions of this training
        self.batches = 0  # batches seen, likewise
        self.accumulate = 1  # batches of one optimiser step
        self.gradient_norm: Tensor | None = None
        # A compiled module is a second nn.Module around the same weights: kept out of the module tree.
        object.__setattr__(self, "forward_student", torch.compile(student) if compile else student)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning writes the running hook's name here some forty times a step, and a module looks for parameters in
        # whatever is written to it: 0.2 ms of a step.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def result(self) -> nn.Module:
        """The network to validate and to keep: the weight average where there is one."""
        return self.average.module if self.average is not None else self.student

    def configure_model(self) -> None:
        """Where the strategy brought a mesh of processes, share the student and its average among them."""
        if self._device_mesh is None or is_sharded(self.student):
            return
        mesh = self._device_mesh["data_parallel"]
        shard(self.student, mesh)
        if self.average is not None:
            shard(self.average.module, mesh)
            self.average.foreach = False  # shared weights and whole buffers cannot be updated in one call

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.student)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for module in self.frozen:
            module.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._freeze()  # whoever validated put the whole student back into training mode
        seed_device(step_seed(self.seed, self.batches, self.global_rank), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One batch -> named losses; gradients flow from ``loss``."""
        target = None
        if self.teacher is not None:
            with timed(self.trainer, "teacher"):
                target = self.teacher(batch)
        logits = self.forward_student(batch.image)
        losses = self.objective(logits, batch.label, target)
        with torch.no_grad():
            return losses | self.task.step_metrics(logits, batch)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        rate = self.schedule(self.step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        limit = self.clip if self.clip is not None else float("inf")
        self.gradient_norm = full_tensor(nn.utils.clip_grad_norm_(self.student.parameters(), limit))

    def after_step(self) -> None:
        """Count the optimiser step just taken and let the weight average follow."""
        self.step += 1
        if self.average is not None:
            self.average.update(self.student, step=self.step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = {"step": self.step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["learner"]["step"]
        self.batches = self.step * self.accumulate  # checkpoints are of whole steps, perhaps of other micro-batches
        # Each session is one pass of Lightning's loop over the batches that remain; its own counters start afresh.
        checkpoint.pop("loops", None)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on ``device`` draws from.

    ``torch.manual_seed`` seeds every kind of accelerator, and keeps a stack trace of each call for one that is not
    in use: a millisecond and some memory a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def step_seed(seed: int, batch: int, rank: int) -> int:
    """63 bits that differ for every (seed, batch, rank): splitmix64's finaliser over a packed counter."""
    x = (seed * 0x9E3779B97F4A7C15 + batch * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1
