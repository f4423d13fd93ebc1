"""The one LightningModule: a student, an objective, an optimiser, named losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from vitlab.training.objectives import Objective, StepObjective, student_logits
from vitlab.training.profile import timed
from vitlab.training.schedule import Schedule
from vitlab.training.sharding import full_tensor, is_sharded, shard

Target = SparseTarget | Tensor
TeacherFn = Callable[[Batch], Target]


class UncheckedHookName(L.LightningModule):
    """A LightningModule to which Lightning's name of the running hook is a plain attribute.

    Lightning writes it some forty times a step, and ``nn.Module.__setattr__`` looks for parameters, buffers and modules
    in whatever is written: 0.2 ms of a step.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Learner(UncheckedHookName):
    """Train ``student`` to minimise ``objective``.

    Everything that happens in a step is a function of (seed, step): the learning rate, and the random numbers of
    dropout and drop path, since the generator is seeded anew before every batch. Together with the sampler's
    position that is why a continued training equals an uninterrupted one.
    The numbers differ from process to process, so with dropout or drop path two processes learn as well as one, but not
    the same.

    Args:
        student: [B, 3, H, W] -> logits [B, C], or several of them (:func:`~.objectives.student_logits`).
        objective: logits, label, teacher's target -> named losses, or a :class:`~.objectives.StepObjective`; ``loss``
            is minimised.
        schedule: learning rate of each optimiser step.
        make_optimizer: builds the optimiser; a group's ``lr_scale`` multiplies its learning rate.
        teacher: gives the target of each batch; None: no teacher. Held outside the module tree, so it is neither in
            checkpoints nor in the weight average, nor moved or wrapped with the student.
        teachers: further ones by name, which a ``StepObjective`` reads.
        clip: largest global gradient norm; None: off.
        ema: decay of the weight average, which is then what is validated and kept; None: off.
        ema_warmup: the decay of step t is at most 1 - (1 + t)^(-2/3), timm's warm-up; a function of the step alone.
        seed: of the random numbers inside the network.
        freeze_batchnorm: running statistics of the student's BatchNorm layers stay as they are in training.
        compile: run the student through ``torch.compile``.
        task: what the student predicts; None: classification.
        classes: of the data; only metrics of several labels an image must know them.

    Attributes:
        student_eval: the student computes as in evaluation while it learns: drop path and dropout are off, BatchNorm
            uses its running statistics. A stage sets it before training, a callback in mid-training; checkpoints
            keep it.
        can_finish: a callback may end the training early. Set before training, on every rank alike: the ranks
            then agree after each step, which costs a reduction.
        finished: set by a callback, on one rank or all: the training ends after this step, with a record, a
            validation and a checkpoint that records it.
    """

    teacher: TeacherFn | None
    forward_student: Callable[[Tensor], Tensor]

    def __init__(
        self,
        student: nn.Module,
        objective: Objective | StepObjective,
        schedule: Schedule,
        make_optimizer: Callable[[nn.Module], Optimizer],
        *,
        teacher: TeacherFn | None = None,
        teachers: Mapping[str, TeacherFn] | None = None,
        freeze_batchnorm: bool = False,
        clip: float | None = None,
        ema: float | None = None,
        ema_warmup: bool = False,
        seed: int = 0,
        compile: bool = False,
        task: Task | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.task, self.classes = task or find_task("classification"), classes
        self.student = student
        self.average = ModelEmaV3(student, decay=ema, use_warmup=ema_warmup) if ema is not None else None
        self.objective = objective
        self.schedule = schedule
        self.make_optimizer = make_optimizer
        self.teacher = teacher
        self.teachers = dict(teachers or {})
        if "teacher" in self.teachers or isinstance(teacher, nn.Module):
            raise ValueError("the teacher is a callable outside the module tree; the others have other names")
        self.frozen = [m for m in student.modules() if freeze_batchnorm and isinstance(m, _BatchNorm)]
        # timm's TinyViT, LeViT and EfficientFormer keep a table gathered from a weight while they are in eval mode.
        self.keeps_tables = [m for m in student.modules() if hasattr(m, "attention_bias_cache")]
        self.student_eval = False
        self.can_finish = False
        self.finished = False
        self.clip = clip
        self.seed = seed
        self.step = 0  # optimiser steps done, over all sessions of this training
        self.batches = 0  # batches seen, likewise
        self.accumulate = 1  # batches of one optimiser step
        self.gradient_norm: Tensor | None = None
        # A compiled module is a second nn.Module around the same weights: kept out of the module tree.
        object.__setattr__(self, "forward_student", torch.compile(student) if compile else student)

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
            self.average.foreach = False  # shared weights and full buffers cannot be updated in one call

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.student)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.student_eval and self.student.training:
            self.student.eval()
        if self.student_eval:
            for module in self.keeps_tables:  # a table would outlive the weight that it was gathered from
                module.training = True
            if getattr(self.student, "distilled_training", False):
                self.student.training = True  # timm then returns both heads' logits; the parts are in eval mode
        for module in self.frozen:
            module.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._freeze()  # validation puts every module of the student back into training mode
        seed_device(step_seed(self.seed, self.batches, self.global_rank), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One batch -> named losses; gradients flow from ``loss``."""
        targets: dict[str, Target] = {}
        if self.teacher is not None or self.teachers:
            with timed(self.trainer, "teacher"):
                targets = self.targets(batch)
        output = self.forward_student(batch.image)
        losses = self.losses(output, batch, targets)
        with torch.no_grad():
            return losses | self.task.step_metrics(self.logits(output), batch)

    def targets(self, batch: Batch) -> dict[str, Target]:
        """What each teacher gives for ``batch``, without gradient."""
        teachers = self.teachers if self.teacher is None else {"teacher": self.teacher} | self.teachers
        with torch.no_grad():
            return {name: teacher(batch) for name, teacher in teachers.items()}

    def losses(self, output: Any, batch: Batch, targets: Mapping[str, Target]) -> dict[str, Tensor]:
        """Named losses of the student's ``output`` for ``batch``."""
        if isinstance(self.objective, StepObjective):
            return self.objective(output, batch, targets, self.step)
        return self.objective(student_logits(output), batch.label, targets.get("teacher"))

    def logits(self, output: Any) -> Tensor:
        """The logits [B, C] in the student's ``output``, for metrics."""
        return self.objective.logits(output) if isinstance(self.objective, StepObjective) else student_logits(output)

    @property
    def completes_step(self) -> bool:
        """Whether the batch at hand is the last of its optimiser step: in a callback's ``on_train_batch_end`` the
        weights have then just changed, and :attr:`step` is still the index of the step that did it."""
        return (self.batches + 1) % self.accumulate == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rate, then clip.

        Lightning calls the callbacks' hook of this name before this one, and both after the last micro-batch's
        reduction over the ranks and after unscaling (16-mixed): a callback sees the fp32 gradient of the mean loss over
        the global batch, not clipped. With fp16 an overflow is still in it; the scaler then skips the step.
        """
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
        names = ("step", "student_eval", "finished")
        checkpoint["learner"] = {name: getattr(self, name) for name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["learner"]
        self.step = state["step"]
        self.student_eval = state.get("student_eval", self.student_eval)  # older checkpoints have the step alone
        self.finished = state.get("finished", False)
        self.batches = self.step * self.accumulate  # a checkpoint is of a complete step, perhaps of other micro-batches
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
