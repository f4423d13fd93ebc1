"""Weights that are finite: checked where they enter (files, artifacts) and leave (checkpoints, artifacts)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

STATISTICS = ("running_mean", "running_var")
"""Last names of the buffers that a training changes; others, masks for instance, may hold infinities on purpose."""


def non_finite(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> list[str]:
    """Names of the parameters and running statistics of ``model`` that hold NaN or an infinity: one pass over the
    weights (this process's share of them where they are sharded) and one synchronisation with the device.

    Args:
        state: where their values are read; None: in ``model`` itself. Names it lacks are skipped.
    """
    learnt = [name for name, _ in model.named_parameters()]
    learnt += [name for name, _ in model.named_buffers() if name.rpartition(".")[2] in STATISTICS]
    values = dict(model.state_dict()) if state is None else state
    checked = {name: values[name].detach() for name in learnt if name in values and values[name].is_floating_point()}
    if not checked:
        return []
    local = (value.to_local() if isinstance(value, DTensor) else value for value in checked.values())
    finite = torch.stack([torch.isfinite(value).all() for value in local]).tolist()
    return [name for name, good in zip(checked, finite, strict=True) if not good]


def list_first(names: list[str]) -> str:
    """The first of ``names`` and the number of the others."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
