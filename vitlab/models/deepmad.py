"""DeepMAD networks (Shen et al., CVPR 2023, arXiv 2303.02165), registered with timm.

``timm.create_model("deepmad_r18")`` and its six sisters are the published structures; ``"deepmad"`` builds any other
from ``structure``, a list of plain dicts, one for each unit::

    [{"block": "conv", "out": 32, "kernel": 3, "stride": 2},
     {"block": "K1KXK1", "out": 96, "bottleneck": 40, "kernel": 5, "stride": 2, "depth": 1}, ...]

No weights are published; parameters are named as in the official code, so that its checkpoints can be loaded.
A superblock is of one kind: ``K1KXK1`` ResNet bottleneck units; ``K1DWK1`` and ``K1DWSEK1`` depthwise units, the latter
with squeeze-and-excitation. Their activation follows the addition, unlike in MobileNet-V2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath, SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ["PUBLISHED", "DeepMAD", "published_structure"]

Units = Sequence[Mapping[str, Any]]

_KINDS = ("K1KXK1", "K1DWK1", "K1DWSEK1")
_CONV_KEYS = frozenset({"block", "out", "kernel", "stride"})
_SUPER_KEYS = _CONV_KEYS | {"bottleneck", "depth"}

PUBLISHED: dict[str, tuple[str, int, tuple[tuple[int, int, int, int, int], ...], int | None]] = {
    "r18": (
        *("K1KXK1", 32),
        ((5, 96, 40, 2, 1), (5, 384, 40, 2, 6), (5, 384, 64, 2, 9), (3, 1024, 104, 1, 10), (5, 672, 104, 2, 12)),
        None,
    ),
    "r34": (
        *("K1KXK1", 24),
        ((5, 128, 24, 2, 1), (5, 512, 48, 2, 10), (5, 896, 88, 2, 13), (5, 1024, 104, 1, 11), (5, 616, 128, 2, 14)),
        None,
    ),
    "r50": (
        *("K1KXK1", 32),
        ((5, 128, 40, 2, 1), (5, 512, 48, 2, 11), (5, 872, 88, 2, 12), (5, 1024, 104, 1, 13), (5, 1232, 120, 2, 15)),
        None,
    ),
    "29m_224": (
        *("K1DWSEK1", 40),
        ((5, 40, 240, 1, 2), (5, 85, 512, 2, 4), (5, 134, 800, 2, 6), (5, 201, 1208, 2, 6), (5, 312, 1872, 2, 5)),
        1792,
    ),
    "29m_288": (
        *("K1DWSEK1", 40),
        ((5, 61, 368, 2, 4), (5, 96, 576, 2, 4), (5, 145, 872, 2, 5), (5, 217, 1304, 1, 6), (5, 328, 1968, 2, 4)),
        1792,
    ),
    "50m": (
        *("K1DWSEK1", 48),
        ((5, 112, 672, 2, 7), (5, 168, 1008, 2, 9), (5, 252, 1512, 2, 7), (5, 378, 2272, 2, 3), (3, 576, 3456, 1, 1)),
        2048,
    ),
    "89m": (
        *("K1DWSEK1", 56),
        ((5, 136, 816, 2, 10), (5, 204, 1224, 2, 9), (5, 326, 1952, 2, 7), (5, 490, 2944, 2, 4), (3, 744, 4464, 1, 1)),
        2560,
    ),
}
"""Kind, stem, (kernel, out, bottleneck, stride, depth) of each superblock, last 1x1 convolution."""


def published_structure(name: str) -> list[dict[str, Any]]:
    """The units of a published network: ``r18``, ``r34``, ``r50``, ``29m_224``, ``29m_288``, ``50m`` or ``89m``."""
    kind, stem, blocks, tail = PUBLISHED[name]
    units: list[dict[str, Any]] = [{"block": "conv", "out": stem, "kernel": 3, "stride": 2}]
    for kernel, out, bottleneck, stride, depth in blocks:
        units.append(
            {"block": kind, "out": out, "bottleneck": bottleneck, "kernel": kernel, "stride": stride, "depth": depth}
        )
    if tail is not None:
        units.append({"block": "conv", "out": tail, "kernel": 1, "stride": 1})
    return units


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation (None: none)."""

    def __init__(
        self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.act = act(inplace=True) if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.bn1(self.conv1(x)))
        return result


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over space. Its batch norm needs more than one image in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 8 * max(1, round(channels / 4) // 8)
        self.conv1 = ConvNorm(channels, inner, 1, act=nn.SiLU)
        self.conv2 = ConvNorm(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv2(self.conv1(x.mean((2, 3), keepdim=True))))


class Residual(nn.Module):
    """One unit: 1x1, kxk (dense or depthwise), 1x1, each with batch norm; shortcut; activation.

    The shortcut is pooled 2x2 where the stride is 2. K1KXK1 projects it in the first unit of a superblock and wherever
    the channels change; the depthwise kinds have one only where the channels do not change.
    """

    def __init__(
        self, kind: str, into: int, out: int, bottleneck: int, kernel: int, stride: int, first: bool, drop_path: float
    ) -> None:
        super().__init__()
        dense = kind == "K1KXK1"
        act: type[nn.Module] = nn.SiLU if kind == "K1DWSEK1" else nn.ReLU
        self.conv1 = ConvNorm(into, bottleneck, 1, act=act)
        self.conv2 = ConvNorm(bottleneck, bottleneck, kernel, stride, 1 if dense else bottleneck, act)
        self.se2 = SqueezeExcite(bottleneck) if kind == "K1DWSEK1" else nn.Identity()
        self.conv3 = ConvNorm(bottleneck, out, 1)
        self.shortcut = dense or into == out
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 and self.shortcut else nn.Identity()
        projects = dense and (first or into != out)
        self.residual_proj = ConvNorm(into, out, 1) if projects else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 and self.shortcut else nn.Identity()
        self.act = act(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.se2(self.conv2(self.conv1(x))))
        if self.shortcut:
            y = self.drop_path(y) + self.residual_proj(self.pool(x))
        result: Tensor = self.act(y)
        return result


class Superblock(nn.Module):
    """Units of one kind in a row; the first has the stride."""

    def __init__(self, unit: Mapping[str, Any], into: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        out, stride = unit["out"], unit["stride"]
        self.block_list = nn.Sequential(
            *(
                Residual(
                    unit["block"],
                    out if number else into,
                    out,
                    unit["bottleneck"],
                    unit["kernel"],
                    1 if number else stride,
                    first=number == 0,
                    drop_path=rate,
                )
                for number, rate in enumerate(drop_paths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block_list(x)
        return result


class DeepMAD(nn.Module):
    """A network from its structure.

    Args:
        structure: units as plain dicts, the stem first.
        num_classes: length of the logits; 0: the pooled features are returned.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, per image, growing linearly to this in the last unit; only in units with a
            shortcut.

    Raises:
        ValueError: the structure is malformed.
    """

    def __init__(
        self,
        structure: Units,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check(structure)
        self.num_classes, self.drop_rate = num_classes, drop_rate
        depth = sum(unit.get("depth", 0) for unit in structure)
        rates = [drop_path_rate * number / max(1, depth - 1) for number in range(depth)]
        self.block_list = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        channels, reduction = in_chans, 1
        for number, unit in enumerate(structure):
            if unit["stride"] == 2 and number:  # a unit that halves the grid starts a stage
                self._end_stage(number - 1, channels, reduction)
            if unit["block"] == "conv":
                self.block_list.append(ConvNorm(channels, unit["out"], unit["kernel"], unit["stride"], act=nn.ReLU))
            else:
                mine, rates = rates[: unit["depth"]], rates[unit["depth"] :]
                self.block_list.append(Superblock(unit, channels, mine))
            channels, reduction = unit["out"], reduction * unit["stride"]
        self._end_stage(len(structure) - 1, channels, reduction)
        self.num_features = self.head_hidden_size = channels
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.fc_linear = self._classifier(num_classes)

    def _end_stage(self, number: int, channels: int, reduction: int) -> None:
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"block_list.{number}"})

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        linear = nn.Linear(self.num_features, num_classes)
        # As in the official code, whose standard deviation depends on the number of outputs, not of inputs.
        nn.init.normal_(linear.weight, std=num_classes**-0.5)
        nn.init.zeros_(linear.bias)
        return linear

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity without classes."""
        return self.fc_linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head for ``num_classes`` classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.fc_linear = self._classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: a group a unit, or a superblock."""
        blocks = r"^block_list\.(\d+)" if coarse else [(r"^block_list\.(\d+)\.block_list\.(\d+)", None)]
        return {"stem": r"^block_list\.0\.(?:conv1|bn1)", "blocks": blocks}

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H / stride, W / stride]."""
        for block in self.block_list:
            x = block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, self.drop_rate, self.training)
        result: Tensor = x if pre_logits else self.fc_linear(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs at the ends of the stages ``indices``, the interface of timm's feature extractors."""
        if output_fmt != "NCHW":
            raise ValueError(f"features are NCHW, not {output_fmt}")
        ends = [int(info["module"].rpartition(".")[2]) for info in self.feature_info]
        wanted, last = feature_take_indices(len(ends), indices)
        found: list[Tensor] = []
        for number, block in enumerate(self.block_list):
            if stop_early and number > ends[last]:
                break
            x = block(x)
            if number in ends and ends.index(number) in wanted:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages ``indices`` do not need."""
        ends = [int(info["module"].rpartition(".")[2]) for info in self.feature_info]
        wanted, last = feature_take_indices(len(ends), indices)
        self.block_list = self.block_list[: ends[last] + 1]
        if prune_head:
            self.reset_classifier(0)
        return list(wanted)


def _check(structure: Units) -> None:
    if not structure or structure[0].get("block") != "conv":
        raise ValueError("a DeepMAD structure is a list of units that starts with the stem, block: conv")
    for number, unit in enumerate(structure):
        kind = unit.get("block")
        keys = _CONV_KEYS if kind == "conv" else _SUPER_KEYS
        if kind != "conv" and kind not in _KINDS:
            raise ValueError(f"unit {number} of the structure has block {kind!r}; there are conv, {', '.join(_KINDS)}")
        if set(unit) != keys:
            raise ValueError(f"unit {number} of the structure has the keys {sorted(unit)}, not {sorted(keys)}")
        numbers = {key: value for key, value in unit.items() if key != "block"}
        if any(not isinstance(value, int) or value < 1 for value in numbers.values()):
            raise ValueError(f"unit {number} of the structure has values other than positive integers: {numbers}")
        if unit["stride"] > 2 or unit["kernel"] % 2 == 0:
            raise ValueError(f"unit {number} of the structure needs stride 1 or 2 and an odd kernel: {numbers}")


# --------------------------------------------------------------------------------------------------- timm entry points


def _cfg(side: int = 224) -> dict[str, Any]:
    return {
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 1000,
        "first_conv": "block_list.0.conv1",
        "classifier": "fc_linear",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {"deepmad": _cfg(), **{f"deepmad_{name}": _cfg(288 if name == "29m_288" else 224) for name in PUBLISHED}}
)


def _create(variant: str, pretrained: bool, structure: Units, **kwargs: Any) -> DeepMAD:
    units = [dict(unit) for unit in structure]
    model: DeepMAD = build_model_with_cfg(
        DeepMAD, variant, pretrained, structure=units, feature_cfg={"feature_cls": "getter"}, **kwargs
    )
    return model


@register_model
def deepmad(structure: Units, pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """Any DeepMAD network: ``structure`` is a list of plain dicts."""
    return _create("deepmad", pretrained, structure, **kwargs)


@register_model
def deepmad_r18(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-R18: 11.8M parameters, 1.8G multiply-adds at 224."""
    return _create("deepmad_r18", pretrained, published_structure("r18"), **kwargs)


@register_model
def deepmad_r34(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-R34: 21.7M parameters, 3.6G multiply-adds at 224."""
    return _create("deepmad_r34", pretrained, published_structure("r34"), **kwargs)


@register_model
def deepmad_r50(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-R50: 25.4M parameters, 4.0G multiply-adds at 224."""
    return _create("deepmad_r50", pretrained, published_structure("r50"), **kwargs)


@register_model
def deepmad_29m_224(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-29M for 224 px: 28.7M parameters, 4.3G multiply-adds."""
    return _create("deepmad_29m_224", pretrained, published_structure("29m_224"), **kwargs)


@register_model
def deepmad_29m_288(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-29M for 288 px: 28.7M parameters, 4.3G multiply-adds."""
    return _create("deepmad_29m_288", pretrained, published_structure("29m_288"), **kwargs)


@register_model
def deepmad_50m(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-50M: 49.4M parameters, 8.4G multiply-adds at 224."""
    return _create("deepmad_50m", pretrained, published_structure("50m"), **kwargs)


@register_model
def deepmad_89m(pretrained: bool = False, **kwargs: Any) -> DeepMAD:
    """DeepMAD-89M: 88.3M parameters, 15.0G multiply-adds at 224."""
    return _create("deepmad_89m", pretrained, published_structure("89m"), **kwargs)
