"""The networks of any structure as timm networks: features, sizes, groups, maps, files, graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import vitlab
from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.measure.explain import network_maps
from vitlab.measure.rollout import attention_rollout
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.build import build_backbone, build_model, resolve_architecture
from vitlab.models.param_groups import layer_levels, parameter_groups
from vitlab.report.export_onnx import onnx_session, to_onnx
from vitlab.tasks.classification import Classification

STRUCTURE: dict[str, Any] = {
    **{"embed": 16, "heads": [2, 1, 3], "qk": [4, 8, 3], "v": [8, 4, 5], "mlp": [24, 8, 7]},
    "head_dim": 8,
}
SMALL: dict[str, Any] = {"structure": STRUCTURE, "img_size": 16, "patch_size": 8}
AVERAGE = {"class_token": False, "global_pool": "avg"}


def small(**args: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("pruned_vit", num_classes=5, **SMALL | args).eval()


@pytest.mark.parametrize(
    "args",
    [{}, {"distilled": True}, {"attention": "timm"}, {"qk_norm": True}, AVERAGE],
    ids=["compact", "distilled", "timm", "qk norm", "average"],
)
def test_a_timm_network(args: dict[str, Any]) -> None:
    model, image = small(**args), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits = model(image)
        assert logits.shape == (2, 5)
        for block in model.blocks:
            block.attn.fused_attn = not block.attn.fused_attn
        torch.testing.assert_close(model(image), logits, rtol=0, atol=1e-5)
        last, maps = model.forward_intermediates(image, indices=2)
        assert (
            last.shape == (2, 4 + model.num_prefix_tokens, 16) and [one.shape[1:] for one in maps] == [(16, 2, 2)] * 2
        )
        model.set_input_size((24, 16))
        assert model(torch.randn(1, 3, 24, 16)).shape == (1, 5)
    levels = layer_levels(model)
    assert levels["blocks.2.mlp.fc1.weight"] > levels["blocks.0.mlp.fc1.weight"] > levels["patch_embed.proj.weight"]
    decayed = {id(p) for group in parameter_groups(model, 0.05) if group["weight_decay"] for p in group["params"]}
    assert id(model.pos_embed) not in decayed and id(model.blocks[0].mlp.fc1.weight) in decayed
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 24, 16)).shape == (1, 3)


def test_attention_masks() -> None:
    """Both forms take timm's masks and give the same with and without the fused kernel."""
    model, image = small(), torch.randn(2, 3, 16, 16)
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    mask.fill_diagonal_(True)
    for kind in ({"attn_mask": mask}, {"attn_mask": torch.randn(5, 5)}, {"is_causal": True}):
        found = []
        for fused in (True, False):
            for block in model.blocks:
                block.attn.fused_attn = fused
            with torch.no_grad():
                found.append(model(image, **kind))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
        assert not torch.allclose(found[0], model(image))


def test_a_distilled_one_has_two_outputs_in_training() -> None:
    model = small(distilled=True).train()
    model.set_distilled_training(True)
    first, second = model(torch.randn(2, 3, 16, 16))
    assert first.shape == second.shape == (2, 5)
    assert model.pretrained_cfg["classifier"] == ("head", "head_dist")
    assert small().pretrained_cfg["classifier"] == "head"


def test_drop_rates_reach_the_blocks() -> None:
    model = small(drop_path_rate=0.2, attn_drop_rate=0.1, proj_drop_rate=0.3, init_values=1e-3)
    assert model.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.blocks[0].attn.attn_drop.p == 0.1 and model.blocks[0].mlp.drop1.p == 0.3
    assert float(model.blocks[0].ls1.gamma.detach()[0]) == pytest.approx(1e-3)


def test_features_at_any_size() -> None:
    network: Any = timm.create_model(
        "pruned_vit", **SMALL, dynamic_img_size=True, features_only=True, out_indices=(0, 2)
    )
    with torch.no_grad():
        assert [tuple(one.shape[1:]) for one in network(torch.randn(1, 3, 40, 24))] == [(16, 5, 3)] * 2
    backbone = build_backbone(ModelConfig("pruned_vit", args={"structure": STRUCTURE, "patch_size": 8}), (16, 24), 1)
    with torch.no_grad():
        assert [tuple(one.shape) for one in backbone(torch.randn(1, 3, 16, 24))] == [(1, 16, 2, 3)]


@pytest.mark.parametrize(
    "args", [{}, {"distilled": True, "attention": "timm"}, {"class_token": False, "global_pool": "avg"}]
)
def test_attention_maps_and_rollout(args: dict[str, Any]) -> None:
    model, image = small(**args), torch.randn(2, 3, 16, 24)
    model.set_input_size((16, 24))
    maps = network_maps(model, image)["attention"]
    assert maps.shape == (2, 2, 3) and bool((maps >= 0).all()) and float(maps.sum((1, 2)).max()) <= 1 + 1e-6
    with torch.no_grad():
        heads = model.attention_maps(image)["attention"]
    assert heads.shape == (2, 3, 2, 3)  # three heads in the last block
    assert attention_rollout(model, image).shape == (2, 2, 3)


def test_an_artifact_comes_back_and_holds_its_structure(tmp_path: Path) -> None:
    path = tmp_path / "structure.json"
    path.write_text(json.dumps(STRUCTURE))
    cfg = ModelConfig("pruned_vit", args={"structure": str(path), "patch_size": 8, "distilled": True})
    name, args = resolve_architecture(cfg, 16)
    assert args["structure"] == STRUCTURE
    model = build_model(cfg, 2, 16).eval()
    save_model(tmp_path / "model", model, ModelMeta(name, args, ["a", "b"], 16, [0.5] * 3, [0.2] * 3))
    path.unlink()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(vitlab.load_model(tmp_path / "model")(image), model(image))
    again = timm.create_model(name, num_classes=2, **args)
    again.load_state_dict(model.state_dict())


def test_mistakes_are_named() -> None:
    for args, message in (
        ({"embed_dim": 32}, "takes no argument 'embed_dim'"),
        ({"attention": "fused"}, "attention=fused of a pruned ViT is not one of compact, timm"),
        ({"global_pool": "map"}, "no pooling by attention"),
        ({"structure": {"embed": 16}}, "lacks heads, qk, v, mlp"),
    ):
        with pytest.raises(UserError, match=message):
            small(**args)
    with pytest.raises(UserError, match="no structure at"):
        build_model(ModelConfig("pruned_vit", args={"structure": "none.json"}), 5, 16)


@pytest.mark.parametrize("attention", ["compact", pytest.param("timm", marks=pytest.mark.slow)])
def test_graphs(attention: str) -> None:
    """torch.export, ONNX in onnxruntime and torch.compile's capture in one graph give the network's logits."""
    structure = {"embed": 16, "heads": [2], "qk": [4], "v": [8], "mlp": [24]}
    model = small(structure=structure, distilled=True, attention=attention, norm_width=24)
    sample = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        logits = model(sample)
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(sample), logits)
        program = torch.export.export(model, (sample[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(program.module()(sample), logits)
    meta = ModelMeta("pruned_vit", SMALL, list("abcde"), 16, [0.5] * 3, [0.2] * 3)
    session = onnx_session(to_onnx(model, meta, sample, Classification()), Classification())
    np.testing.assert_allclose(np.asarray(session(sample)), logits.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_trains() -> None:
    model: nn.Module = small().train()
    compiled: Any = torch.compile(model)
    image, label = torch.randn(4, 3, 16, 16), torch.arange(4)

    def gradient(network: Any) -> Tensor:
        model.zero_grad()
        nn.functional.cross_entropy(network(image), label).backward()
        grad = model.get_parameter("blocks.1.attn.k.weight").grad
        assert grad is not None
        return grad.clone()

    torch.testing.assert_close(gradient(compiled), gradient(model), rtol=1e-4, atol=1e-6)
