"""Official checkpoints of NViT (NVlabs/NViT), read as a ``pruned_vit``.

The structures of NViT-B, -H, -S and -T are published only inside their checkpoints: the entry ``dim`` holds EMB and,
for each block, ``head``, ``QK``, ``V`` and ``MLP``; the entry ``model`` the weights (nvit.md, section 11). Beside
timm's names of a distilled DeiT, a block has

- ``attn.qkv.{Q,K,V}``: linear layers with rows ordered by (head, channel), as ours;
- ``attn.qkv.token_mask`` [198, 1]: a factor of Q, K and V of each token, the outcome of a token pruning that the paper
  does not use. Equal factors are folded into Q, K and V; others tie the network to 198 tokens, and are refused;
- ``attn.proj.proj``;

and ``patch_embed.proj`` is a 1x1 convolution of patches flattened in the order (row, column, channel).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.checkpoints import read_content
from vitlab.models.vit_structure import VitStructure

WIDTHS = {"head": "heads", "QK": "qk", "V": "v", "MLP": "mlp"}
"""Official name of a width, and ours."""

LICENCE = "cc-by-nc-sa-4.0"
"""Of the official weights, by the README of NVlabs/NViT."""

MASK_TOLERANCE = 1e-6
"""Largest relative difference between the token factors of a block that counts as equal."""


@dataclass(frozen=True)
class OfficialModel:
    """An official checkpoint, converted.

    Attributes:
        structure: of the network.
        args: of ``timm.create_model("pruned_vit", ...)``, with ``num_classes``.
        state: weights under the names of that network.
        folded: blocks with a token factor other than 1, which is folded into Q, K and V.
    """

    structure: VitStructure
    args: dict[str, Any]
    state: dict[str, Tensor]
    folded: dict[int, float]

    def build(self) -> nn.Module:
        """The network with its weights, in eval mode."""
        model = timm.create_model("pruned_vit", **self.args)
        model.load_state_dict(self.state)
        model.eval()
        return model

    def save(self, folder: Path, origin: str = "") -> None:
        """Write a vitlab model folder, with the classes, view and normalisation of the official evaluation.

        Args:
            origin: of the weights, for ``model.json``.
        """
        args = dict(self.args)
        classes = int(args.pop("num_classes"))
        subset = infer_imagenet_subset({"num_classes": classes})
        names = list(ImageNetInfo(subset).label_names()) if subset else [f"class {one}" for one in range(classes)]
        meta = ModelMeta(
            name="pruned_vit",
            args=args,
            classes=names,
            size=args["img_size"],
            mean=list(IMAGENET_DEFAULT_MEAN),
            std=list(IMAGENET_DEFAULT_STD),
            crop_pct=224 / 256,
            crop="center",
            origin=origin,
            licence=LICENCE,
        )
        save_model(folder, self.build(), meta)


def read_official(path: Path) -> OfficialModel:
    """Read an official checkpoint without unpickling code.

    Raises:
        UserError: no such file, no checkpoint of NViT, or one with token factors that are not equal.
    """
    content = read_content(path)
    dims = content.get("dim") if isinstance(content, Mapping) else None
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(dims, Mapping) or not isinstance(state, Mapping) or not {"EMB", *WIDTHS} <= set(dims):
        raise UserError(
            f"'{path}' is not a checkpoint of NViT: it needs the entries model, and dim with EMB, {', '.join(WIDTHS)}.",
            "Give a file that NVlabs/NViT has published, or that its code wrote.",
        )
    lists = {ours: tuple(int(value) for value in dims[name]) for name, ours in WIDTHS.items()}
    structure = VitStructure(embed=int(dims["EMB"]), head_dim=64, **lists)
    converted, folded = convert_names({str(name).removeprefix("module."): value for name, value in state.items()})
    patch = converted["patch_embed.proj.weight"].shape[-1]
    side = round((converted["pos_embed"].shape[1] - 2) ** 0.5) * patch
    args = {
        "structure": structure.as_json(),
        "distilled": True,
        "img_size": side,
        "patch_size": patch,
        "num_classes": converted["head.bias"].shape[0],
    }
    return OfficialModel(structure, args, converted, folded)


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has the names of an official, exported NViT."""
    return "blocks.0.attn.qkv.Q.weight" in state and "blocks.0.attn.proj.proj.weight" in state


def convert_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, float]]:
    """Official weights under the names of ``pruned_vit``, and the factors that were folded, by block.

    Raises:
        UserError: the factors of a block's tokens are not equal.
    """
    result: dict[str, Tensor] = {}
    factors: dict[int, float] = {}
    for name, value in state.items():
        if found := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.token_mask", name):
            if (factor := _factor(value, int(found[1]))) != 1:
                factors[int(found[1])] = factor
        elif name == "patch_embed.proj.weight" and value.shape[-1] == 1:
            side = round((value.shape[1] // 3) ** 0.5)  # of a patch of 3 channels
            result[name] = value.reshape(len(value), side, side, 3).permute(0, 3, 1, 2).contiguous()
        else:
            ours = re.sub(r"attn\.qkv\.([QKV])\.", lambda match: f"attn.{match[1].lower()}.", name)
            result[ours.replace("attn.proj.proj.", "attn.proj.")] = value
    for block, factor in factors.items():
        for name in [f"blocks.{block}.attn.{letter}.{item}" for letter in "qkv" for item in ("weight", "bias")]:
            result[name] = result[name] * factor
    return result, factors


def _factor(mask: Tensor, block: int) -> float:
    """The one factor of all tokens."""
    mean = float(mask.double().mean())
    spread = float((mask.double() - mean).abs().max())
    if spread > MASK_TOLERANCE * abs(mean):
        raise UserError(
            f"Block {block} of the checkpoint multiplies its {mask.numel()} tokens by factors from "
            f"{float(mask.min()):.6g} to {float(mask.max()):.6g} (token_mask); no plain ViT can do that.",
            "Only checkpoints whose factors are equal within a block can be converted.",
        )
    return mean if abs(mean - 1) > MASK_TOLERANCE else 1.0
