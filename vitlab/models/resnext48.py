"""ResNeXt-101 32x48d, pretrained on hashtags and finetuned on ImageNet-1k: the largest of four, removed from timm.

Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining (ECCV 2018); fourth member of the teacher of
Dataset Reinforcement (arXiv 2303.08983). timm's old name for it, ``ig_resnext101_32x48d``, is now an alias of the
smallest.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

__all__ = ["resnext101_32x48d"]

default_cfgs = generate_default_cfgs(
    {
        "resnext101_32x48d.fb_wsl_ig1b_ft_in1k": {
            "url": "https://download.pytorch.org/models/ig_resnext101_32x48-3e41cc8a.pth",
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 1000,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "cc-by-nc-4.0",
            "origin_url": "https://github.com/facebookresearch/WSL-Images",
        }
    }
)


@register_model
def resnext101_32x48d(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNeXt-101 32x48d: 828.4M parameters, 153.3G multiply-adds at 224."""
    args: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 48}
    model: ResNet = build_model_with_cfg(ResNet, "resnext101_32x48d", pretrained, **(args | kwargs))
    return model
