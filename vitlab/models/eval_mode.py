"""Eval mode as a context that restores the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode and without gradients; afterwards every module's own mode is as it was.

    ``train`` is called on leaving even where the mode does not change: some timm networks (TinyViT, LeViT) cache tables
    gathered from their parameters while in eval mode, and drop them only in ``train``.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode
