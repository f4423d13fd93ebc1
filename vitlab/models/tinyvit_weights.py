"""TinyViT's official checkpoints: conversion to timm's names and back, and bias tables resized to another window.

timm's network computes the same function as the official one; only names differ. (timm's own filter does not convert
them.)
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

RESIZES = ("official", "timm")
"""How a bias table is resized: bicubic as in the official code, or antialiased bicubic as in timm."""

_TO_TIMM = (
    (re.compile(r"^patch_embed\.seq\.0\."), "patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), "patch_embed.conv2."),
    (re.compile(r"^layers\.(\d+)\.downsample\."), lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (re.compile(r"^layers\.(\d+)\.blocks\."), r"stages.\1.blocks."),
    (re.compile(r"\.c\."), ".conv."),
    (re.compile(r"^norm_head\."), "head.norm."),
    (re.compile(r"^head\.(weight|bias)$"), r"head.fc.\1"),
)
_TO_OFFICIAL = (
    (re.compile(r"^patch_embed\.conv1\."), "patch_embed.seq.0."),
    (re.compile(r"^patch_embed\.conv2\."), "patch_embed.seq.2."),
    (re.compile(r"^stages\.(\d+)\.downsample\."), lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (re.compile(r"^stages\.(\d+)\.blocks\."), r"layers.\1.blocks."),
    (re.compile(r"\.conv\."), ".c."),
    (re.compile(r"^head\.norm\."), "norm_head."),
    (re.compile(r"^head\.fc\.(weight|bias)$"), r"head.\1"),
)


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of the official code."""
    return "patch_embed.seq.0.c.weight" in state and any(name.startswith("layers.") for name in state)


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under timm's names; the look-up tables ``attention_bias_idxs`` are left out."""
    return {_rename(name, _TO_TIMM): value for name, value in state.items() if not name.endswith("attention_bias_idxs")}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_timm`: what the official code's ``load_state_dict`` takes (put it under ``model``)."""
    return {_rename(name, _TO_OFFICIAL): value for name, value in state.items()}


def _rename(name: str, rules: tuple) -> str:  # type: ignore[type-arg]  # (pattern, text or function)
    for pattern, new in rules:
        name = pattern.sub(new, name)
    return name


def resize_table(table: Tensor, side: int, resize: str = "official") -> Tensor:
    """An attention-bias table [heads, S²] for windows of ``side``, [heads, side²].

    ``official``: bicubic, align_corners false, no antialias. ``timm``: with antialias, which has another cubic kernel
    and changes values by up to 0.2 standard deviations.

    Raises:
        ValueError: if the table is not square, or ``resize`` is unknown.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize is one of {', '.join(RESIZES)}, not {resize!r}")
    heads, length = table.shape
    old = round(length**0.5)
    if old * old != length:
        raise ValueError(f"a table of {length} offsets is not square")
    if old == side:
        return table
    image = table.float().view(1, heads, old, old)
    image = F.interpolate(image, (side, side), mode="bicubic", align_corners=False, antialias=resize == "timm")
    return image.view(heads, side * side).to(table.dtype)


def adapt_state_dict(model: nn.Module, state: dict[str, Tensor], resize: str = "official") -> dict[str, Tensor]:
    """``state`` for a TinyViT ``model``: under timm's names, with bias tables resized to the model's windows."""
    if is_official(state):
        state = to_timm(state)
    own = dict(model.named_parameters())

    def fitting(name: str, value: Tensor) -> Tensor:
        if not name.endswith("attention_biases") or name not in own or own[name].shape[0] != value.shape[0]:
            return value
        return resize_table(value, round(own[name].shape[1] ** 0.5), resize)

    return {name: fitting(name, value) for name, value in state.items()}
