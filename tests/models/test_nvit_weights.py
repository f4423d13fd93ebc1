"""Official NViT checkpoints, against a forward pass written from the description of their network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

import vitlab
from vitlab.errors import UserError
from vitlab.models.artifact import read_meta
from vitlab.models.checkpoints import load_weights
from vitlab.models.nvit_weights import read_official

DIM: dict[str, Any] = {"EMB": 16, "head": [2, 1], "QK": [4, 8], "V": [8, 4], "MLP": [24, 16]}
TOKENS, CLASSES, PATCH = 2 + 4, 5, 8


def official(factors: tuple[float, float] = (1.0, 1.0)) -> dict[str, Tensor]:
    """Random weights under the official names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    e = 16
    state = {"cls_token": draw(1, 1, e), "dist_token": draw(1, 1, e), "pos_embed": draw(1, TOKENS, e)}
    state |= {"patch_embed.proj.weight": draw(e, 3 * PATCH**2, 1, 1), "patch_embed.proj.bias": draw(e)}
    for i, (h, qk, v, m) in enumerate(zip(DIM["head"], DIM["QK"], DIM["V"], DIM["MLP"], strict=True)):
        at = f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            state |= {f"{at}.{norm}.weight": 1 + draw(e), f"{at}.{norm}.bias": draw(e)}
        for name, rows in (("Q", h * qk), ("K", h * qk), ("V", h * v)):
            state |= {f"{at}.attn.qkv.{name}.weight": draw(rows, e), f"{at}.attn.qkv.{name}.bias": draw(rows)}
        state[f"{at}.attn.qkv.token_mask"] = torch.full((TOKENS, 1), factors[i])
        state |= {f"{at}.attn.proj.proj.weight": draw(e, h * v), f"{at}.attn.proj.proj.bias": draw(e)}
        state |= {f"{at}.mlp.fc1.weight": draw(m, e), f"{at}.mlp.fc1.bias": draw(m)}
        state |= {f"{at}.mlp.fc2.weight": draw(e, m), f"{at}.mlp.fc2.bias": draw(e)}
    state |= {"norm.weight": 1 + draw(e), "norm.bias": draw(e)}
    for head in ("head", "head_dist"):
        state |= {f"{head}.weight": draw(CLASSES, e), f"{head}.bias": draw(CLASSES)}
    return state


def reference(w: dict[str, Tensor], image: Tensor) -> Tensor:
    """Logits of the official network: mean of its two heads."""
    batch = len(image)
    patches = image.view(batch, 3, 2, PATCH, 2, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(batch, 4, -1)
    x = patches @ w["patch_embed.proj.weight"][..., 0, 0].T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"].expand(batch, -1, -1), w["dist_token"].expand(batch, -1, -1), x], 1) + w["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (16,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for i, heads in enumerate((2, 1)):
        at, y = f"blocks.{i}", norm(x, f"blocks.{i}.norm1")
        mask = w[f"{at}.attn.qkv.token_mask"]
        q, k, v = (linear(y, f"{at}.attn.qkv.{name}") * mask for name in "QKV")
        q, k, v = (one.view(batch, TOKENS, heads, -1).transpose(1, 2) for one in (q, k, v))
        attention = (q @ k.transpose(-2, -1) * 64**-0.5).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f"{at}.attn.proj.proj")
        x = x + linear(functional.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    x = norm(x, "norm")
    return (linear(x[:, 0], "head") + linear(x[:, 1], "head_dist")) / 2


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, 1.25)])
def test_a_checkpoint_becomes_the_same_network(tmp_path: Path, factors: tuple[float, float]) -> None:
    weights = official(factors)
    torch.save({"model": weights, "dim": DIM, "epoch": 3}, tmp_path / "nvit.pth")
    found = read_official(tmp_path / "nvit.pth")
    assert found.structure.blocks == [(2, 4, 8, 24), (1, 8, 4, 16)] and found.structure.head_dim == 64
    assert found.folded == {i: factor for i, factor in enumerate(factors) if factor != 1}
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.build()(image), reference(weights, image), rtol=0, atol=1e-5)
    found.save(tmp_path / "model", origin="nvit.pth")
    with torch.no_grad():
        assert torch.equal(vitlab.load_model(tmp_path / "model")(image), found.build()(image))
    assert read_meta(tmp_path / "model").args["structure"] == found.structure.as_json()
    model: Any = timm.create_model("pruned_vit", **found.args)
    load_weights(model, weights, "official")  # model.checkpoint does this
    assert all(torch.equal(value, found.state[name]) for name, value in model.state_dict().items())


def test_token_factors_that_differ_are_refused(tmp_path: Path) -> None:
    weights = official()
    weights["blocks.1.attn.qkv.token_mask"][2] = 0.25
    torch.save({"model": weights, "dim": DIM}, tmp_path / "nvit.pth")
    with pytest.raises(UserError, match=r"Block 1 .* 6 tokens by factors from 0\.25 to 1"):
        read_official(tmp_path / "nvit.pth")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "deit.pth")
    with pytest.raises(UserError, match="is not a checkpoint of NViT: it needs the entries model, and dim"):
        read_official(tmp_path / "deit.pth")
