"""Networks that the tests register with timm: a small ViT, and a wrapper around it that adds a parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SHAPE: dict[str, Any] = {"embed_dim": 24, "num_heads": 2, "depth": 3}
MEAN = (0.4, 0.5, 0.6)

default_cfgs = generate_default_cfgs(
    {
        "small_vit.ours": {
            "file": "",  # set by a test
            "num_classes": 7,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "mean": MEAN,
            "std": (0.2, 0.2, 0.2),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "wrapped_vit": {"fixed_input_size": True, "input_size": (3, 32, 32)},
    }
)


@register_model
def small_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    args = {"img_size": 32, "patch_size": 8, **SHAPE} | kwargs
    model: VisionTransformer = build_model_with_cfg(VisionTransformer, "small_vit", pretrained, **args)
    return model


class Gated(nn.Module):
    """A ViT behind a gate over its tokens, which no ViT's weights hold."""

    pretrained_backbone = "small_vit.ours"
    backbone: Any

    def __init__(self, num_classes: int = 7, declared: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = timm.create_model("small_vit", num_classes=num_classes, **kwargs)
        self.gate = nn.Parameter(torch.full((24,), 2.0))
        self.num_classes = num_classes
        self.declared = declared

    def get_classifier(self) -> nn.Module:
        head: nn.Module = self.backbone.get_classifier()
        return head

    def new_parameters(self) -> Iterable[str]:
        return ["gate"] if self.declared else ["backbone.cls_token"]

    def layer_levels(self) -> dict[str, int]:
        return {name: int(name == "gate") for name, _ in self.named_parameters()}

    def extra_macs(self, size: object) -> dict[str, int]:
        return {"reference": 7}

    def attention_maps(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.backbone.forward_features(image)[:, 1:] * self.gate
        grid = self.backbone.patch_embed.grid_size
        return {"gate": tokens[..., :2].abs().transpose(1, 2).unflatten(2, grid)}

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.backbone.forward_head(self.backbone.forward_features(image) * self.gate)
        return result


@register_model
def wrapped_vit(pretrained: bool = False, **kwargs: Any) -> Gated:
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("pretrained_cfg")}
    return Gated(**kwargs)
