"""Export of a masked network: the pruned units are cut out, and what is left is a smaller dense network.

Two forms (nvit.md, section 9). ``compact`` has an attention of its own with Q and K of H_i QK_i and V of H_i V_i
channels. ``timm`` has timm's stock ``Attention`` with heads of max(QK_i, V_i) channels, padded with zeros, for tools
that know that class; its scale 1/sqrt(head size) differs from the original one, which the rows of Q make up for. Both
are the registered network ``pruned_vit``, whose arguments hold the structure, and need no pruner to be loaded.

Every export is compared with the masked network on random images, and the difference is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from vitlab.errors import UserError
from vitlab.models.eval_mode import eval_mode
from vitlab.models.pruned_vit import FORMS
from vitlab.models.pruning.gates import ATTRIBUTE, Gates, live_structure
from vitlab.models.pruning.norms import WidthLayerNorm
from vitlab.models.pruning.units import Axis
from vitlab.models.vit_structure import VitStructure

NAME = "pruned_vit"
"""timm's name of every exported network."""

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.GELU: "gelu",
    GELU: "gelu",
    GELUTanh: "gelu_tanh",
    QuickGELU: "quick_gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
}
"""timm's names of the activations that an MLP may have."""

TOLERANCE = 1e-4
"""Largest difference between logits of the masked and the exported network, relative to the largest logit (at least 1).
Rounding of float32 stays below 1e-5; leaving the statistics of the norms wrong makes it about 1."""


@dataclass(frozen=True)
class Export:
    """An exported network.

    Attributes:
        model: in eval mode, on the device and in the dtype of the masked one.
        args: of ``timm.create_model("pruned_vit", num_classes=..., **args)``; plain values, for ``model.json``.
        structure: its widths.
        form: ``compact`` or ``timm``.
        difference: largest difference between its logits and those of the masked network.
        logits: the largest of those logits, which the difference is to be compared with.
    """

    model: nn.Module
    args: dict[str, Any]
    structure: VitStructure
    form: str
    difference: float
    logits: float


def export(model: nn.Module, form: str = "compact", images: Tensor | None = None) -> Export:
    """Cut the pruned units out of a network with gates (:func:`~vitlab.models.pruning.gates.attach_gates`).

    The network itself is not changed, but for the weights of pruned units, which are set to zero.

    Args:
        form: ``compact`` or ``timm``.
        images: [B, C, H, W] for the comparison; None: two of random normal values.

    Raises:
        ValueError: no gates, or another form.
        UserError: parts that an exported network cannot have, or a network that does not equal the masked one.
    """
    gates = getattr(model, ATTRIBUTE, None)
    if not isinstance(gates, Gates) or form not in FORMS:
        raise ValueError(f"{type(model).__name__} has no gates, or '{form}' is not one of {', '.join(FORMS)}")
    gates.apply_to(model)
    structure = live_structure(model, gates.axes, gates.gates)
    args = arguments(model, structure, form, gates.norm_stats == "full")
    network: Any = model
    small = timm.create_model(NAME, num_classes=network.num_classes, **args)
    first = next(model.parameters())
    small = small.to(first.device, first.dtype)
    state = cut(model, structure, form, gates.axes, gates.gates)
    try:
        small.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{type(model).__name__} cannot be exported: its blocks are not of one kind ({reason[:300]})."
        ) from error
    difference, logits = compare(model, small.eval(), images)
    if not difference <= TOLERANCE * max(1.0, logits):
        raise UserError(
            f"The exported network is not the masked one: logits differ by {difference:.3g}, the largest being "
            f"{logits:.3g}; nothing was exported.",
            "This is an error of vitlab: please report it with the model's name and arguments.",
        )
    return Export(small, args, structure, form, difference, logits)


def compare(masked: nn.Module, exported: nn.Module, images: Tensor | None = None) -> tuple[float, float]:
    """(largest difference of the logits of two networks, largest logit of the first), in eval mode.

    Args:
        images: [B, C, H, W]; None: two of normal values, the same ones for every call.
    """
    first = next(masked.parameters())
    if images is None:
        network: Any = masked
        embed = network.patch_embed
        shape = (2, embed.proj.in_channels, *embed.img_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = images.to(first.device, first.dtype)
    with eval_mode(masked), eval_mode(exported):
        expected = masked(images)
        return float((exported(images) - expected).abs().max()), float(expected.abs().max())


def arguments(model: nn.Module, structure: VitStructure, form: str = "compact", full: bool = False) -> dict[str, Any]:
    """Arguments that build the exported network, those with timm's defaults left out.

    Args:
        full: the norms have the statistics of the unpruned network.
    """
    network: Any = model
    embed, block = network.patch_embed, network.blocks[0]
    distilled, pool = hasattr(network, "dist_token"), network.global_pool
    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    if len(eps) > 1:
        raise UserError(f"{type(model).__name__} cannot be exported: its norms have different eps ({sorted(eps)}).")
    act = block.mlp.act
    name = _ACTIVATIONS.get(type(act))
    if name is None:
        raise UserError(f"{type(model).__name__} cannot be exported: its activation is {type(act).__name__}.")
    name = "gelu_tanh" if getattr(act, "approximate", "none") == "tanh" else name
    has_norm, has_fc_norm = (not isinstance(one, nn.Identity) for one in (network.norm, network.fc_norm))
    height, width = embed.img_size
    rows, columns = embed.patch_size
    found: dict[str, Any] = {
        "structure": structure.as_json(),
        "img_size": height if height == width else [height, width],
        "patch_size": rows if rows == columns else [rows, columns],
    }
    optional = {
        "attention": (form, "compact"),
        "distilled": (distilled, False),
        "norm_eps": (eps.pop(), 1e-6),
        "norm_width": (_width(network.blocks[0].norm1) if full else None, None),
        "embed_norm": (not isinstance(embed.norm, nn.Identity), False),
        "in_chans": (embed.proj.in_channels, 3),
        "global_pool": (pool, "token"),
        "class_token": (network.has_class_token, True),
        "no_embed_class": (network.no_embed_class, False),
        "pos_embed": ("none" if network.pos_embed is None else "learn", "learn"),
        "reg_tokens": (network.num_reg_tokens, 0),
        "pre_norm": (not isinstance(network.norm_pre, nn.Identity), False),
        "final_norm": (has_norm or has_fc_norm, True),
        "fc_norm": (has_fc_norm, pool in ("avg", "avgmax", "max")),
        "pool_include_prefix": (network.pool_include_prefix, False),
        "dynamic_img_size": (network.dynamic_img_size, False),
        "dynamic_img_pad": (embed.dynamic_img_pad, False),
        "qkv_bias": ((block.attn.qkv if hasattr(block.attn, "qkv") else block.attn.q).bias is not None, True),
        "qk_norm": (not isinstance(block.attn.q_norm, nn.Identity), False),
        "proj_bias": (block.attn.proj.bias is not None, True),
        "init_values": (None if isinstance(block.ls1, nn.Identity) else float(block.ls1.init_values), None),
        "act_layer": (name, "gelu"),
    }
    return found | {key: value for key, (value, default) in optional.items() if value != default}


def _width(norm: nn.LayerNorm) -> int:
    """Channels that the statistics of ``norm`` cover."""
    return norm.width if isinstance(norm, WidthLayerNorm) else int(norm.normalized_shape[0])


def cut(
    model: nn.Module, structure: VitStructure, form: str, axes: Sequence[Axis], gates: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The state of the exported network: live units of every parameter, under its names."""
    live = {axis.name: gate.nonzero()[:, 0] for axis, gate in zip(axes, gates, strict=True)}
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    network: Any = model
    result: dict[str, Tensor] = {}
    for number, block in enumerate(network.blocks):
        at, kept = f"blocks.{number}.attn", [live["embedding"]]
        kept += [live[f"blocks.{number}.{kind}"] for kind in ("head", "qk", "v")]
        parts = {name.removeprefix(f"{at}."): state.pop(name) for name in list(state) if name.startswith(f"{at}.")}
        size = structure.head_dim if form == "compact" else max(structure.qk[number], structure.v[number])
        cut = _attention(block.attn, parts, kept, block.attn.scale * size**0.5, None if form == "compact" else size)
        result |= {f"{at}.{name}": value for name, value in cut.items()}
    # What is left has the units of an axis along one dimension of its own shape.
    for axis in axes:
        for one in axis.slices:
            if one.parameter in state:
                state[one.parameter] = state[one.parameter].index_select(one.dim, live[axis.name])
    return result | state


def _attention(
    attn: Any, parts: Mapping[str, Tensor], kept: Sequence[Tensor], factor: float, pad: int | None
) -> dict[str, Tensor]:
    """Parameters of the exported attention.

    Args:
        parts: those of the masked one, by name in it.
        kept: live embedding channels, heads, QK and V channels.
        factor: of the queries, where the scale of the exported attention is another.
        pad: head size to which Q, K and V are padded, for a fused ``qkv``; None: not padded, in layers of their own.
    """
    embed, heads, qk, v = kept
    result: dict[str, Tensor] = {}
    normed = "q_norm.weight" in parts
    for item in ("weight", "bias"):
        rows: list[Tensor] = []
        for index, (letter, channels) in enumerate((("q", qk), ("k", qk), ("v", v))):
            if f"qkv.{item}" in parts:
                fused = parts[f"qkv.{item}"]
                one = fused.view(3, attn.num_heads, attn.head_dim, *fused.shape[1:])[index]
            elif f"{letter}.{item}" in parts:
                one = parts[f"{letter}.{item}"].unflatten(0, (attn.num_heads, -1))
            else:
                continue
            one = one.index_select(0, heads).index_select(1, channels)
            one = one.index_select(2, embed) if item == "weight" else one
            rows.append(one * factor if letter == "q" and factor != 1 and not normed else one)
        if pad is None:
            result |= {f"{letter}.{item}": one.flatten(0, 1) for letter, one in zip("qkv", rows, strict=False)}
        elif rows:
            result[f"qkv.{item}"] = torch.stack([_pad(one, 1, pad) for one in rows]).flatten(0, 2)
        for name in ("q_norm", "k_norm") if normed else ():
            one = parts[f"{name}.{item}"].index_select(0, qk)
            one = one * factor if name == "q_norm" and factor != 1 else one
            result[f"{name}.{item}"] = one if pad is None else _pad(one, 0, pad)
    projection = parts["proj.weight"].unflatten(1, (attn.num_heads, -1))
    projection = projection.index_select(0, embed).index_select(1, heads).index_select(2, v)
    result["proj.weight"] = (projection if pad is None else _pad(projection, 2, pad)).flatten(1)
    if "proj.bias" in parts:
        result["proj.bias"] = parts["proj.bias"].index_select(0, embed)
    return result


def _pad(values: Tensor, dim: int, size: int) -> Tensor:
    """Zeros after the end of dimension ``dim``, up to ``size``."""
    return functional.pad(values, (0, 0) * (values.ndim - 1 - dim) + (0, size - values.shape[dim]))
