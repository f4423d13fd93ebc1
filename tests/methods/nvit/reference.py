"""Networks, images and costs of the official traces (specification 13, fixture rule F)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn import functional as F


def fixture(amp: float, a: float, b: float, size: int, **args: Any) -> VisionTransformerDistilled:
    """The distilled ViT of F(amp, a, b), in double precision and eval mode."""
    model = VisionTransformerDistilled(img_size=size, **args).double().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            place = torch.arange(parameter.numel(), dtype=torch.float64)
            values = amp * torch.sin(a * place + b * number)
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_((values + shift).reshape(parameter.shape))
    return model


def image(t: int, size: int) -> Tensor:
    """Input t: [2, 3, S, S]."""
    place = torch.arange(2 * 3 * size * size, dtype=torch.float64)
    return torch.sin(0.05 * place * (t + 1) + 0.5 * t).reshape(2, 3, size, size)


def backward(model: nn.Module, t: int, size: int, labels: tuple[int, int]) -> float:
    """Gradients of the cross-entropy of the mean of both heads; the loss."""
    model.zero_grad()
    loss = F.cross_entropy(model(image(t, size)), torch.tensor(labels))
    loss.backward()
    return loss.item()


def analytic_cost(dims: Mapping[str, Any]) -> Any:
    """LAT of A5: 1e-3 (e / 768) (1 + 0.5 (h / 12) ((q + v) / 128) + 2 m / 3072)."""
    e, h, q, v, m = (np.asarray(dims[name], float) for name in ("embed", "heads", "qk", "v", "mlp"))
    return 1e-3 * (e / 768) * (1 + 0.5 * (h / 12) * ((q + v) / 128) + 2 * m / 3072)
