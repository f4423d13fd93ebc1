"""debug=overfit: whether a training can learn a few batches by heart, which every sound one can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vitlab.data.batch import Batch
from vitlab.distill.sparse import SparseTarget, densify
from vitlab.files import write_json
from vitlab.tasks.base import Task
from vitlab.training.learner import Learner
from vitlab.training.objectives import StepObjective
from vitlab.training.progress import print_line


class Overfit(Callback):
    """Follows how far the loss is above the smallest possible one, and gives a verdict at the end.

    The smallest possible loss is that of a network whose output is its target: 0 with hard labels, the entropy of the
    teacher's output where a soft cross-entropy is minimised.

    Args:
        stage: as the verdict calls it.
        folder: of the stage, for ``overfit.json``.
        near: how close counts as learnt by heart, in the unit of the loss.
        classes: of the data.
        task: whose labels are learnt.
    """

    def __init__(self, stage: str, folder: Path, near: float, classes: int, task: Task) -> None:
        self.stage, self.folder, self.near, self.classes, self.task = stage, folder, near, classes, task
        self.first: float | None = None
        self.last = 0.0
        self.reached: int | None = None  # step after which it stayed near

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.last, self.reached = (state_dict[name] for name in ("first", "last", "reached"))

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(learner, Learner)
        least = 0.0  # of a StepObjective, whose best output is not known
        if not isinstance(learner.objective, StepObjective):
            target = learner.targets(batch).get("teacher")
            with torch.no_grad():
                of_label = self.task.perfect
                logits = perfect(target) if target is not None else of_label(batch.label, self.classes)
                least = float(learner.objective(logits, batch.label, target)["loss"])
        self.last = float(outputs["loss"]) - least
        if self.first is None:
            self.first = self.last
        if self.last > self.near:
            self.reached = None
        elif self.reached is None:
            self.reached = learner.step + 1

    def on_train_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        verdict = self.verdict()
        first = None if self.first is None else round(self.first, 5)
        write_json(
            self.folder / "overfit.json",
            {
                "verdict": verdict,
                "first": first,
                "last": round(self.last, 5),
                "near": self.near,
                "reached": self.reached,
            },
        )
        print_line(f"{self.stage}: {verdict}")

    def verdict(self) -> str:
        """One sentence: whether the training fitted its few images, and else where to look."""
        way = f"{self.first or 0:.3f} → {self.last:.4f} above the smallest possible loss"
        if self.reached is not None:
            return f"OVERFITS, as it should: {way}, within {self.near:g} from step {self.reached} on."
        return (
            f"DOES NOT OVERFIT: {way}, not within {self.near:g}. Look at recipe.lr (try ten times more and less), at "
            "frozen or unused parts of the network, at its normalisation, and whether labels belong to their images; "
            "or it needs more than debug.max_steps."
        )


def perfect(target: SparseTarget | Tensor) -> Tensor:
    """Logits [B, C] whose softmax is a teacher's target."""
    dense = densify(target) if isinstance(target, SparseTarget) else target
    return dense.float().clamp_min(1e-12).log()
