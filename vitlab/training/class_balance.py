"""Unequal classes: what ``recipe.balance`` makes of an objective on labels."""

from __future__ import annotations

from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlab.data.sources import Source, labels_of
from vitlab.errors import UserError
from vitlab.training.objectives import Objective, StepObjective, label_cross_entropy

AnyObjective = TypeVar("AnyObjective", bound=Objective | StepObjective)


def balanced(objective: AnyObjective, balance: str, source: Source) -> AnyObjective:
    """``objective`` with the class weights or the logit adjustment of ``recipe.balance``.

    Args:
        balance: ``none`` and ``sampler`` leave the objective as it is; ``weight`` and ``logit_adjust`` give
            :func:`~vitlab.training.objectives.label_cross_entropy` its weights or its log prior.
        source: training images; their labels are counted.

    Raises:
        UserError: the objective is no cross-entropy with the labels, or a class has no training image.
    """
    if balance in ("none", "sampler"):
        return objective
    if getattr(objective, "func", objective) is not label_cross_entropy:
        name = getattr(objective, "func", objective)
        raise UserError(
            f"recipe.balance={balance} is for training on labels, one an image; the objective "
            f"{getattr(name, '__name__', type(name).__name__)} takes no class frequencies.",
            "Choose recipe.balance=none.",
        )
    counts = np.bincount(labels_of(source), minlength=len(source.classes))
    if not counts.all():
        raise UserError(
            f"recipe.balance={balance}: class '{source.classes[int(counts.argmin())]}' has no training image.",
            "Choose recipe.balance=none, or data in which every class has some.",
        )
    more = {"class_weight": class_weights(counts)} if balance == "weight" else {"log_prior": log_priors(counts)}
    return cast(AnyObjective, partial(objective, **more))  # type: ignore[misc]


def class_weights(counts: NDArray[np.int64]) -> Tensor:
    """Inverse class frequencies ``w_c = N / (K n_c)``, [K] float32.

    Their mean over the N training images is 1, so that the loss keeps its scale.
    """
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).to(torch.float32)


def log_priors(counts: NDArray[np.int64]) -> Tensor:
    """``log(n_c / N)``, [K] float32, for logit-adjusted training (Menon et al., ICLR 2021, Eq. 10)."""
    return torch.from_numpy(np.log(counts / counts.sum())).to(torch.float32)
