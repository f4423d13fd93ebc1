"""Attention rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020).

The attention of every layer, averaged over its heads and mixed with the residual connection, ``(A + I) / 2``, is
multiplied through the network. The product is needed for one row only (the token that is classified, or the mean of
all), so a row vector is carried from the last layer back to the patches: each step is one product with the attention
of one layer, also where attention stays inside windows (Swin, TinyViT) and no matrix over all tokens exists.

The attention weights are recorded as the network computes them, from ``softmax`` or from inside
``scaled_dot_product_attention``, so that no module of the network is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitlab.errors import UserError
from vitlab.measure.explain import token_grid
from vitlab.models.eval_mode import eval_mode

WINDOWED = (SwinTransformerBlock, SwinTransformerV2Block, TinyVitBlock)
"""Blocks that attend inside windows of their grid [B, h, w, C]."""

_SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)


@dataclass
class Attention:
    """The attention of one layer."""

    weight: Tensor  # [B, N, N] mean over heads, rows sum to 1; with windows [B * windows, N, N]
    grid: tuple[int, int] | None = None  # (h, w) of the layer's tokens; None: attention over all tokens
    window: tuple[int, int] = (0, 0)
    shift: tuple[int, int] = (0, 0)


def attention_rollout(model: nn.Module, image: Tensor) -> Tensor:
    """Share of each patch in the token that is classified, by attention alone: [B, h, w], each summing to 1.

    A class token is read where there is one (with the distillation token, since their logits are averaged), else the
    mean of the patches. Mixing by convolutions (hybrids' stems, TinyViT) is not taken into account.

    Args:
        model: a ViT, DeiT, BEiT, EVA or hybrid of equal blocks, a Swin, or a TinyViT; its mode is restored.
        image: [B, 3, H, W], normalised, on the model's device.

    Raises:
        UserError: a network whose attention is not of this form, or that has none.
    """
    layers = catch_attention(model, image)
    if not layers:
        raise UserError(f"Rollout: {type(model).__name__} has no attention.", _CURE)
    if any(layer.grid is None and len(layer.weight) != len(image) for layer in layers):
        raise UserError(f"Rollout: {type(model).__name__} attends inside windows of another kind.", _CURE)
    if all(layer.grid is None for layer in layers):
        return _roll_tokens(model, [layer.weight for layer in layers])
    if any(layer.grid is None for layer in layers):
        raise UserError(f"Rollout: {type(model).__name__} mixes attention in windows and over all tokens.", _CURE)
    return _roll_windows(layers, len(image))


_CURE = "Grad-CAM can: explain.methods=[gradcam]."


def catch_attention(model: nn.Module, image: Tensor) -> list[Attention]:
    """The attention of every layer for ``image``, in order, as the network computes it.

    Raises:
        UserError: attention that is not between the tokens of one sequence.
    """
    catcher = _Catcher(type(model).__name__)
    handles = [
        module.register_forward_pre_hook(catcher.enter) for module in model.modules() if isinstance(module, WINDOWED)
    ]
    handles += [
        module.register_forward_hook(catcher.leave) for module in model.modules() if isinstance(module, WINDOWED)
    ]
    try:
        with eval_mode(model), catcher:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return catcher.layers


class _Catcher(TorchFunctionMode):
    """Intercepts the torch functions that the network calls, and records attention weights [B, heads, N, N]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name  # of the network, for messages
        self.layers: list[Attention] = []
        self.block: tuple[nn.Module, tuple[int, int]] | None = None

    def enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.block = block, (inputs[0].shape[1], inputs[0].shape[2])

    def leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.block = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _SOFTMAX and isinstance(output, Tensor) and output.ndim == 4 and _dim(args, kwargs) in (-1, 3):
            self._keep(output)
        return output

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``softmax(Q K^T scale + mask) V``, keeping the softmax; in eval mode there is no dropout."""
        if is_causal or enable_gqa:
            raise UserError("Rollout: causal or grouped attention is not followed.", _CURE)
        score = query @ key.transpose(-2, -1) * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
        if attn_mask is not None:
            score = score.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else score + attn_mask
        weight = score.softmax(-1)
        self._keep(weight)
        return weight @ value

    def _keep(self, weight: Tensor) -> None:
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            raise UserError(
                f"Rollout: an attention of {self.name} is not between the tokens of one image (its weights are "
                f"{' × '.join(map(str, weight.shape))}).",
                _CURE,
            )
        mean = weight.detach().float().mean(1)
        if self.block is None:
            self.layers.append(Attention(mean))
            return
        block, grid = self.block
        window, shift = getattr(block, "window_size", 0), getattr(block, "shift_size", 0)
        self.layers.append(Attention(mean, grid, _pair(window), _pair(shift)))


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("dim", args[1] if len(args) > 1 else None)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return int(first), int(second)


def _roll_tokens(model: nn.Module, weights: list[Tensor]) -> Tensor:
    """Attention over all tokens: [B, h, w] from the layers' [B, N, N]."""
    batch, tokens = weights[-1].shape[:2]
    if any(weight.shape != weights[-1].shape for weight in weights):
        raise UserError(f"Rollout: the layers of {type(model).__name__} have different tokens.", _CURE)
    prefix, height, width = token_grid(model, tokens)
    row = weights[-1].new_zeros(batch, tokens)
    if prefix and getattr(model, "global_pool", "token") in ("token", ""):
        read = 2 if getattr(model, "dist_token", None) is not None else 1
        row[:, :read] = 1 / read
    else:
        row[:, prefix:] = 1 / (tokens - prefix)
    for weight in reversed(weights):
        # row (A + I) / 2: the residual connection passes half of the share on unchanged.
        row = 0.5 * row + 0.5 * (row[:, None] @ weight)[:, 0]
    patches = row[:, prefix:].unflatten(1, (height, width))
    return patches / patches.sum(dim=(1, 2), keepdim=True)


def _roll_windows(layers: list[Attention], batch: int) -> Tensor:
    """Attention in windows, on grids that are halved from stage to stage: [B, h, w] on the grid of the first layer.

    Between two stages the share of a token is divided equally among the four that it was merged from.
    """
    grid = layers[-1].grid
    assert grid is not None
    row = layers[-1].weight.new_full((batch, *grid), 1 / (grid[0] * grid[1]))
    for layer in reversed(layers):
        assert layer.grid is not None
        while row.shape[1] < layer.grid[0] or row.shape[2] < layer.grid[1]:
            row = row.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
            row = row[:, : layer.grid[0], : layer.grid[1]]
        if row.shape[1:] != layer.grid:
            raise UserError(f"Rollout: a grid of {tuple(row.shape[1:])} does not come from one of {layer.grid}.", _CURE)
        row = 0.5 * row + 0.5 * _through_windows(row, layer)
    return row / row.sum(dim=(1, 2), keepdim=True)


def _through_windows(row: Tensor, layer: Attention) -> Tensor:
    """``row`` [B, h, w] times the attention of one layer, window by window, in the block's own order of steps."""
    batch, height, width = row.shape
    (rows, columns), (down, right) = layer.window, layer.shift
    rolled = torch.roll(row, (-down, -right), (1, 2))
    padded = functional.pad(rolled, (0, -width % columns, 0, -height % rows))
    tall, wide = padded.shape[1] // rows, padded.shape[2] // columns
    windows = padded.reshape(batch, tall, rows, wide, columns).transpose(2, 3).reshape(-1, 1, rows * columns)
    moved = (windows @ layer.weight).reshape(batch, tall, wide, rows, columns).transpose(2, 3)
    merged = moved.reshape(batch, tall * rows, wide * columns)[:, :height, :width]
    return torch.roll(merged, (down, right), (1, 2))
