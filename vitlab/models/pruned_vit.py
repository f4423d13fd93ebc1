"""Vision transformers whose blocks differ in width, registered with timm: pruned ones, and ReViT.

``pruned_vit`` builds any structure (:class:`vitlab.models.vit_structure.VitStructure`); ``nvit_ref_{base,half,small,
tiny}`` are our stand-ins for the published NViT networks; ``revit`` applies ReViT's rule to any ``embed_dim``, and
``revit_{tiny,small}`` are the published two (NViT, CVPR 2023, arXiv 2110.04869; nvit.md, sections 2, 9 and 10).

The networks are timm's ``VisionTransformer`` and ``VisionTransformerDistilled`` with other blocks, so that image sizes,
class and register tokens, pooling, feature extraction, parameter groups and position embeddings are timm's own. The
parameters keep timm's names, but for queries, keys and values, which have a linear layer each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from timm.layers import Attention, DropPath, LayerNorm, LayerScale, Mlp, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vitlab.errors import UserError
from vitlab.models.nvit_weights import convert_names, is_official
from vitlab.models.pruning.norms import WidthLayerNorm
from vitlab.models.vit_structure import REFERENCE, VitStructure, read_structure
from vitlab.models.vit_structure import revit as revit_structure

__all__ = ["PrunedAttention", "PrunedBlock", "PrunedVisionTransformer", "PrunedVisionTransformerDistilled"]

FORMS = ("compact", "timm")
"""Attention of its own, without waste; or timm's, padded with zeros to one head size."""


class PrunedAttention(nn.Module):
    """Self-attention whose queries and keys have another size than its values.

    Args:
        dim: channels of the input and output.
        num_heads: H.
        qk_dim: channels of a query and a key, of one head.
        v_dim: channels of a value, of one head.
        scale: of the logits, before the softmax.
        norm_layer: of queries and keys; None: none.

    Rows of q, k, v and columns of proj are ordered by (head, channel).
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[[int], nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.num_heads, self.qk_dim, self.v_dim, self.scale = num_heads, qk_dim, v_dim, scale
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, num_heads * qk_dim, bias=qkv_bias, **where)
        self.k = nn.Linear(dim, num_heads * qk_dim, bias=qkv_bias, **where)
        self.v = nn.Linear(dim, num_heads * v_dim, bias=qkv_bias, **where)
        self.q_norm = nn.Identity() if norm_layer is None else norm_layer(qk_dim)
        self.k_norm = nn.Identity() if norm_layer is None else norm_layer(qk_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * v_dim, dim, bias=proj_bias, **where)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, dim] to [B, N, dim]; ``attn_mask`` and ``is_causal`` as in scaled_dot_product_attention."""
        q, k = self.query_key(x)
        v = self.v(x).unflatten(-1, (self.num_heads, self.v_dim)).transpose(1, 2)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            # torch's fast kernels need one size for all three; zeros change nothing, and without them 8 heads of 40 and
            # 64 channels over 198 tokens take twice as long on a CPU.
            size = max(self.qk_dim, self.v_dim)
            q, k, v = (functional.pad(one, (0, size - one.shape[-1])) for one in (q, k, v))
            x = functional.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal, scale=self.scale)
            x = x[..., : self.v_dim]
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            if is_causal:
                logits = logits + torch.full_like(logits[0, 0], -math.inf).triu(1)
            elif attn_mask is not None and attn_mask.dtype == torch.bool:
                logits = logits.masked_fill(~attn_mask, -math.inf)
            elif attn_mask is not None:
                logits = logits + attn_mask
            x = self.attn_drop(logits.softmax(-1)) @ v
        result: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return result

    def query_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, N, qk_dim] of the input [B, N, dim]."""
        q, k = (part(x).unflatten(-1, (self.num_heads, self.qk_dim)).transpose(1, 2) for part in (self.q, self.k))
        return self.q_norm(q), self.k_norm(k)


class PrunedBlock(Block):
    """timm's pre-norm block with the widths that ``structure`` has for block ``depth``.

    Args:
        structure: of the network.
        form: ``compact`` or ``timm`` (:data:`FORMS`).
        norm_width: channels that the statistics of the norms cover, where not those that the network has.
        depth: index of the block.
        others: as timm's ``Block``; head counts and ratios in them have no effect.
    """

    def __init__(
        self,
        dim: int,
        structure: VitStructure,
        form: str = "compact",
        norm_width: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        depth: int = 0,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        nn.Module.__init__(self)  # timm's would build parts of equal widths first
        heads, qk, v, mlp = structure.blocks[depth]
        where = {"device": device, "dtype": dtype}
        common: dict[str, Any] = {"attn_drop": attn_drop, "proj_drop": proj_drop, "proj_bias": proj_bias, **where}
        # The norm of queries and keys counts the channels of the head that it was pruned from, or those that are left.
        head_norm = partial(norm_layer, width=structure.head_dim if norm_width else qk)
        self.norm1 = norm_layer(dim, width=norm_width, **where)
        self.attn: nn.Module
        if form == "compact":
            self.attn = PrunedAttention(
                *(dim, heads, qk, v, structure.head_dim**-0.5),
                qkv_bias=qkv_bias,
                norm_layer=partial(head_norm, **where) if qk_norm else None,
                **common,
            )
        else:
            common |= {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "norm_layer": head_norm if qk_norm else None}
            self.attn = Attention(dim, num_heads=heads, attn_head_dim=max(qk, v), **common)
        self.ls1 = LayerScale(dim, init_values=init_values, **where) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, width=norm_width, **where)
        self.mlp = Mlp(dim, mlp, act_layer=act_layer, bias=proj_bias, drop=proj_drop, **where)
        self.ls2 = LayerScale(dim, init_values=init_values, **where) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()


def _norm(channels: int, width: int | None = None, eps: float = 1e-6, device: Any = None, dtype: Any = None) -> Any:
    """timm's LayerNorm, or one with statistics of another width."""
    if width is None or width == channels:
        return LayerNorm(channels, eps=eps, device=device, dtype=dtype)
    return WidthLayerNorm(channels, width, eps).to(device=device, dtype=dtype)


_GIVEN = ("embed_dim", "depth", "num_heads", "mlp_ratio", "block_fn", "norm_layer", "attn_layer", "mlp_layer")


def _timm_args(
    structure: VitStructure | Mapping[str, Any] | str,
    attention: str,
    norm_eps: float,
    norm_width: int | None,
    embed_norm: bool,
    args: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of timm's class for ``structure``."""
    if given := [name for name in _GIVEN if args.get(name) is not None]:
        raise UserError(f"A pruned ViT takes no argument '{given[0]}': its structure has the widths.")
    if attention not in FORMS:
        raise UserError(f"attention={attention} of a pruned ViT is not one of {', '.join(FORMS)}.")
    if args.get("global_pool") in ("map", "prr"):
        raise UserError(f"A pruned ViT has no pooling by attention (global_pool={args['global_pool']}).")
    found = read_structure(structure)
    norm = partial(_norm, width=norm_width, eps=norm_eps)
    block = partial(PrunedBlock, structure=found, form=attention, norm_width=norm_width)
    return {
        **args,
        "embed_dim": found.embed,
        "depth": found.depth,
        "num_heads": 1,  # read by timm's own blocks only
        "block_fn": block,
        "norm_layer": norm,
        "embed_norm_layer": norm if embed_norm else None,
    }


class PrunedVisionTransformer(VisionTransformer):
    """A ViT of any structure.

    Args:
        structure: :class:`VitStructure`, its JSON, or the path of a JSON file.
        attention: ``compact``, or ``timm`` for timm's own attention, padded (:data:`FORMS`).
        norm_eps: of every norm.
        norm_width: channels that the statistics of the norms cover, if not E: those of the network that it was pruned
            from, where pruning kept its statistics. Norms of queries and keys then cover ``structure.head_dim``.
        embed_norm: a norm after the patch embedding.
        args: of timm's ``VisionTransformer``, without widths.

    Raises:
        UserError: a malformed structure, or arguments that it decides.
    """

    def __init__(
        self,
        structure: VitStructure | Mapping[str, Any] | str,
        attention: str = "compact",
        norm_eps: float = 1e-6,
        norm_width: int | None = None,
        embed_norm: bool = False,
        **args: Any,
    ) -> None:
        super().__init__(**_timm_args(structure, attention, norm_eps, norm_width, embed_norm, args))
        self.structure, self.norm_width = read_structure(structure), norm_width

    def attention_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Attention of the last block's heads from the class token (or from the mean) to the patches."""
        return _attention_maps(self, image)


class PrunedVisionTransformerDistilled(VisionTransformerDistilled):
    """A DeiT with distillation token of any structure; arguments as :class:`PrunedVisionTransformer`."""

    def __init__(
        self,
        structure: VitStructure | Mapping[str, Any] | str,
        attention: str = "compact",
        norm_eps: float = 1e-6,
        norm_width: int | None = None,
        embed_norm: bool = False,
        **args: Any,
    ) -> None:
        super().__init__(**_timm_args(structure, attention, norm_eps, norm_width, embed_norm, args))
        self.structure, self.norm_width = read_structure(structure), norm_width

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of an official NViT checkpoint under this network's names; others as they are."""
        return convert_names(state)[0] if is_official(state) else state

    def attention_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Attention of the last block's heads from the class and distillation tokens to the patches."""
        return _attention_maps(self, image)


def _attention_maps(model: Any, image: Tensor) -> dict[str, Tensor]:
    """{"attention": [B, H, h, w]}, the row of the tokens that are classified in the attention of the last block."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
    for block in model.blocks[:-1]:
        x = block(x)
    block = model.blocks[-1]
    x, attn = block.norm1(x), block.attn
    if isinstance(attn, PrunedAttention):
        q, k = attn.query_key(x)
    else:
        q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
    weight = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)
    read = (2 if hasattr(model, "dist_token") else 1) if model.has_class_token and model.global_pool == "token" else 0
    prefix = model.num_prefix_tokens
    rows = weight[:, :, :read] if read else weight[:, :, prefix:]
    grid = model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    return {"attention": rows.mean(2)[..., prefix:].unflatten(-1, tuple(grid))}


# --------------------------------------------------------------------------------------------------- timm entry points


def _cfg(distilled: bool) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 1000,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist") if distilled else "head",
        "license": "apache-2.0",
    }


_DEIT = ("revit", "revit_tiny", "revit_small", *(f"nvit_ref_{name}" for name in REFERENCE))

default_cfgs = generate_default_cfgs({"pruned_vit": _cfg(False), **{name: _cfg(True) for name in _DEIT}})


def _create(
    variant: str, pretrained: bool, structure: VitStructure | Mapping[str, Any] | str, distilled: bool, **kwargs: Any
) -> nn.Module:
    found = read_structure(structure).as_json()  # plain: timm records the arguments
    overlay = {"classifier": ("head", "head_dist") if distilled else "head"}
    kwargs["pretrained_cfg_overlay"] = overlay | (kwargs.get("pretrained_cfg_overlay") or {})
    out_indices = kwargs.pop("out_indices", 3)
    model: nn.Module = build_model_with_cfg(
        *(PrunedVisionTransformerDistilled if distilled else PrunedVisionTransformer, variant, pretrained),
        structure=found,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register_model
def pruned_vit(
    structure: VitStructure | Mapping[str, Any] | str,
    pretrained: bool = False,
    distilled: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A ViT, or with ``distilled`` a DeiT, of any structure."""
    return _create("pruned_vit", pretrained, structure, distilled, **kwargs)


@register_model
def nvit_ref_base(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """Our stand-in for NViT-B: 33.8M parameters, 6.9G multiply-adds at 224; not the published structure."""
    return _create("nvit_ref_base", pretrained, REFERENCE["base"], distilled, **kwargs)


@register_model
def nvit_ref_half(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """Our stand-in for NViT-H: 29.9M parameters, 6.1G multiply-adds at 224; not the published structure."""
    return _create("nvit_ref_half", pretrained, REFERENCE["half"], distilled, **kwargs)


@register_model
def nvit_ref_small(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """Our stand-in for NViT-S: 21.1M parameters, 4.3G multiply-adds at 224; not the published structure."""
    return _create("nvit_ref_small", pretrained, REFERENCE["small"], distilled, **kwargs)


@register_model
def nvit_ref_tiny(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """Our stand-in for NViT-T: 6.9M parameters, 1.3G multiply-adds at 224; not the published structure."""
    return _create("nvit_ref_tiny", pretrained, REFERENCE["tiny"], distilled, **kwargs)


@register_model
def revit(embed_dim: int, pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """ReViT's rule for ``embed_dim`` channels, 101 or more."""
    return _create("revit", pretrained, revit_structure(embed_dim), distilled, **kwargs)


@register_model
def revit_tiny(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """ReViT-T: 5.3M parameters, 1.1G multiply-adds at 224."""
    return _create("revit_tiny", pretrained, revit_structure(176), distilled, **kwargs)


@register_model
def revit_small(pretrained: bool = False, distilled: bool = True, **kwargs: Any) -> nn.Module:
    """ReViT-S: 23.1M parameters, 4.7G multiply-adds at 224."""
    return _create("revit_small", pretrained, revit_structure(384), distilled, **kwargs)
