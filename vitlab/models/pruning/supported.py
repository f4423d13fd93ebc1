"""Which networks the map of prunable units covers: everything else is refused by name, before anything is trained."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention, LayerNorm, LayerNormFp32, LayerScale, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from vitlab.errors import UserError
from vitlab.models.pruned_vit import (
    PrunedAttention,
    PrunedBlock,
    PrunedVisionTransformer,
    PrunedVisionTransformerDistilled,
)
from vitlab.models.pruning.norms import WidthLayerNorm

# By exact type: a subclass may compute something else from the same parameters.
NETWORKS: tuple[type[nn.Module], ...] = (
    VisionTransformer,
    VisionTransformerDistilled,
    PrunedVisionTransformer,
    PrunedVisionTransformerDistilled,
)
BLOCKS: tuple[type[nn.Module], ...] = (Block, PrunedBlock)
ATTENTION: tuple[type[nn.Module], ...] = (Attention, PrunedAttention)
NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, LayerNorm, LayerNormFp32, WidthLayerNorm)


def check_supported(model: nn.Module) -> None:
    """Raise unless ``model`` is a ViT whose every part is one that the map of units describes.

    These are timm's ``VisionTransformer`` and ``VisionTransformerDistilled`` with pre-norm blocks of plain attention
    and a two-layer MLP; with or without class token, registers, position embedding, LayerScale, biases, norm of queries
    and keys, norm before the blocks; with any pooling but that by attention.

    Raises:
        UserError: another network, or one with a part of another kind; the part is named.
    """
    if type(model) not in NETWORKS:
        raise _refused(model, f"{type(model).__name__} is not one of {', '.join(one.__name__ for one in NETWORKS)}")
    network: Any = model
    if network.attn_pool is not None:
        raise _refused(model, f"attn_pool is a {type(network.attn_pool).__name__}: pooling by attention")
    if not isinstance(network.head, nn.Linear):
        raise _refused(model, f"head is a {type(network.head).__name__}: without a classifier, its output is pruned")
    _check(model, "patch_embed", network.patch_embed, (PatchEmbed,))
    _check(model, "patch_embed.proj", network.patch_embed.proj, (nn.Conv2d,))
    for name in ("norm_pre", "norm", "fc_norm"):
        _check(model, name, getattr(network, name), (*NORMS, nn.Identity))
    _check(model, "patch_embed.norm", network.patch_embed.norm, (*NORMS, nn.Identity))
    for number, block in enumerate(network.blocks):
        at = f"blocks.{number}"
        _check(model, at, block, BLOCKS)
        _check(model, f"{at}.attn", block.attn, ATTENTION)
        _check(model, f"{at}.mlp", block.mlp, (Mlp,))
        for name in ("norm1", "norm2"):
            _check(model, f"{at}.{name}", getattr(block, name), NORMS)
        for name in ("ls1", "ls2"):
            _check(model, f"{at}.{name}", getattr(block, name), (LayerScale, nn.Identity))
        for name in ("q_norm", "k_norm"):
            _check(model, f"{at}.attn.{name}", getattr(block.attn, name), (*NORMS, nn.Identity))
        _check(model, f"{at}.attn.norm", getattr(block.attn, "norm", nn.Identity()), (nn.Identity,))
        _check(model, f"{at}.mlp.norm", block.mlp.norm, (nn.Identity,))
        _check(model, f"{at}.mlp.fc1", block.mlp.fc1, (nn.Linear,))
        if getattr(block.attn, "gate", None) is not None:
            raise _refused(model, f"{at}.attn has a gate on its output")


def _check(model: nn.Module, name: str, part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    if type(part) not in kinds:
        known = " or ".join(dict.fromkeys(one.__name__ for one in kinds))
        raise _refused(model, f"{name} is a {type(part).__name__}, not {known}")
    if isinstance(part, nn.LayerNorm) and (part.weight is None or part.bias is None):
        raise _refused(model, f"{name} has no weight and bias, so that pruned channels would not be zero after it")


def _refused(model: nn.Module, why: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot be pruned: {why}.",
        "Use a ViT or DeiT of timm with plain blocks, e.g. model=vit_small or model=deit_base.",
    )
