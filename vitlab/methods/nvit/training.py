"""Training with the dense network, and perhaps a CNN, as teachers, which pruning and finetuning share (specification 8
and 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config import ModelConfig, RecipeConfig
from vitlab.data.batch import Batch
from vitlab.data.views import FreshViews
from vitlab.methods.nvit.losses import PruningObjective
from vitlab.methods.nvit.options import NViTOptions
from vitlab.models.artifact import load_model, read_meta
from vitlab.stage import Context
from vitlab.training.distributed import device_of
from vitlab.training.learner import Learner
from vitlab.training.train import Training, prepare


def model_of(artifact: Path) -> ModelConfig:
    """The network of an artifact, for a training that starts from it."""
    meta = read_meta(artifact)
    args = {key: value for key, value in meta.args.items() if key != "img_size"}  # dataset.size gives it
    return ModelConfig(name=meta.name, args=args, mean=list(meta.mean), std=list(meta.std))


def head_logits(network: nn.Module, image: Tensor) -> Tensor:
    """Logits of every head [heads, B, C]: one, or the two of a distilled network."""
    net: Any = network
    if not hasattr(net, "head_dist"):
        return torch.as_tensor(net(image))[None]
    tokens = net.forward_features(image)
    return torch.stack([net.head(tokens[:, 0]), net.head_dist(tokens[:, 1])])


class DenseTeacher:
    """The frozen dense network: its heads' logits [heads, B, C] for the student's own view, without gradient.

    Held outside the module tree, as every teacher; the views are normalised as it was trained.
    """

    def __init__(self, artifact: Path, device: torch.device) -> None:
        self.model = load_model(artifact).eval().requires_grad_(False).to(device)

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return head_logits(self.model, batch.image)


def prepare_pruned(
    context: Context,
    recipe: RecipeConfig,
    start: Path,
    teacher: Path | None,
    options: NViTOptions,
    *,
    dense: Path | None = None,
    kl_from: int = 0,
    kl_tau: float | None = None,
    kl_pairs: str = "mean",
) -> Training:
    """Prepare a training from ``start`` with the losses of the options.

    Args:
        start: artifact to start from.
        teacher: artifact of the CNN; None: labels alone beside the divergence.
        dense: artifact of the dense network; None: ``start``.
        kl_from, kl_tau, kl_pairs: see :class:`~vitlab.methods.nvit.losses.PruningObjective`.
    """
    training = prepare(
        *(context, model_of(start), recipe, FreshViews(repeats=options.repeats)), teacher=teacher, start=start
    )
    learner, loss = training.learner, options.loss
    if loss.kl_weight:
        learner.teachers["dense"] = DenseTeacher(dense or start, device_of(context.config))
    set_objective(
        learner,
        options,
        kl_weight=loss.kl_weight,
        kl_tau=loss.kl_tau if kl_tau is None else kl_tau,
        kl_pairs=kl_pairs,
        kl_from=kl_from,
    )
    return training


def set_objective(learner: Learner, options: NViTOptions, **divergence: Any) -> None:
    """Give ``learner`` the losses of the options over the task's own, and the logits of both heads of a distilled
    student.

    Args:
        divergence: further fields of :class:`~vitlab.methods.nvit.losses.PruningObjective`.
    """
    loss = options.loss
    learner.objective = PruningObjective(
        labels=learner.objective,  # type: ignore[arg-type]  # with the recipe's class balance
        ce_weight=loss.ce_weight,
        cnn=loss.cnn.type,
        alpha=loss.cnn.alpha,
        cnn_tau=loss.cnn.tau,
        **divergence,
    )
    student: Any = learner.student
    if hasattr(student, "set_distilled_training"):
        student.set_distilled_training(True)
