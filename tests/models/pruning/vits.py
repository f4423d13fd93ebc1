"""Small ViTs of every kind that can be pruned, with random weights and random gates."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitlab.models.pruning.units import Axis

SHAPE: dict[str, Any] = {
    **{"img_size": 16, "patch_size": 8, "num_classes": 5},
    **{"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5},
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "layer scale": ("deit3_small_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
    "average": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "qk norm": ("vit_tiny_patch16_224", {"qk_norm": True, "qkv_bias": False, "init_values": 0.1}),
    "pre norm": ("vit_base_patch16_clip_quickgelu_224", {}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none", "proj_bias": False, "fc_norm": True}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "act_layer": "gelu_tanh", "in_chans": 1}),
}
ISSUE = ("plain", "distilled", "layer scale")
"""The three of acceptance check A6."""


def network(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A network in eval mode whose parameters, biases and norms too, are random."""
    name, args = NETWORKS[kind]
    model: nn.Module = timm.create_model(name, **SHAPE | args)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            scale = value[0].numel() ** -0.5 if value.ndim > 1 and "token" not in key and "pos" not in key else 0.5
            value.copy_(noise * scale + (1 if "norm" in key and key.endswith("weight") else 0))
    return model.to(dtype).eval()


def images(model: nn.Module, count: int = 3) -> Tensor:
    first: Any = model
    shape = (count, first.patch_embed.proj.in_channels, 16, 16)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return noise.to(next(model.parameters()).dtype)


def random_gates(axes: tuple[Axis, ...] | list[Axis], seed: int, live: float = 0.6) -> list[Tensor]:
    """Gates of which about the share ``live`` is true, at least one on each axis."""
    generator = torch.Generator().manual_seed(seed)
    gates = []
    for axis in axes:
        gate = torch.rand(axis.units, generator=generator) < live
        gate[torch.randint(axis.units, (1,), generator=generator)] = True
        gates.append(gate)
    return gates
