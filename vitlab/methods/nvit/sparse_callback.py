"""2:4 sparsity while the exported network is finetuned: the masks of its start are kept (specification 9)."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vitlab.models.pruning.sparsity import Sparsity
from vitlab.training.learner import Learner


class KeepSparse(Callback):
    """Sets the weights outside the masks to zero after every optimiser step; the masks are in the checkpoints."""

    def __init__(self, sparsity: Sparsity) -> None:
        self.sparsity = sparsity

    @property
    def state_key(self) -> str:
        return "sparsity"

    def state_dict(self) -> dict[str, Any]:
        return self.sparsity.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sparsity.load_state_dict(state_dict)

    def on_train_batch_end(self, trainer: L.Trainer, learner: L.LightningModule, *_: object) -> None:
        assert isinstance(learner, Learner)
        if learner.completes_step:
            self.sparsity.apply_to(learner.student)
