from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from vitlab.compose.load import load
from vitlab.config import ModelConfig, RecipeConfig
from vitlab.config.catalogue import choices, conf_dir
from vitlab.errors import UserError
from vitlab.models.build import build_model, parameter_groups
from vitlab.models.param_groups import head_names, layer_levels, undecayed_names
from vitlab.training.build import make_optimizer

OFFICIAL_SCALES = [
    *(0.085899, 0.107374, 0.134218, 0.167772, 0.209715, 0.262144),
    *(0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0),
]
"""TinyViT, layer decay 0.8 (tinyvit.md, section 6.2)."""


@pytest.fixture(scope="module")
def tiny_vit_5m() -> nn.Module:
    return timm.create_model("tiny_vit_5m_224", device="meta")


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "tiny_vit_11m_224", "tiny_vit_21m_224"])
def test_tiny_vit_decays_68_tensors_of_215(name: str) -> None:
    model = timm.create_model(name, device="meta")
    undecayed, decayed = parameter_groups(model, 0.05)
    assert (len(decayed["params"]), len(undecayed["params"])) == (68, 147)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert (decayed["lr_scale"], undecayed["lr_scale"]) == (1.0, 1.0)


def test_tiny_vit_follows_the_official_levels(tiny_vit_5m: nn.Module) -> None:
    groups = parameter_groups(tiny_vit_5m, 0.05, 0.8)
    assert len(groups) == 24
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx(OFFICIAL_SCALES, abs=5e-7)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {
        "patch_embed.conv1.conv.weight": 0,
        "stages.0.blocks.0.conv1.conv.weight": 0,
        "stages.0.blocks.1.conv1.conv.weight": 1,
        "stages.1.downsample.conv1.conv.weight": 1,
        "stages.1.blocks.0.attn.qkv.weight": 2,
        "stages.2.downsample.conv3.bn.bias": 3,
        "stages.2.blocks.5.mlp.fc2.weight": 9,
        "stages.3.downsample.conv2.conv.weight": 9,
        "stages.3.blocks.1.attn.attention_biases": 11,
        "head.norm.weight": 11,
        "head.fc.weight": 11,
    }
    parameters = dict(tiny_vit_5m.named_parameters())
    for name, level in expected.items():
        assert scale[id(parameters[name])] == pytest.approx(OFFICIAL_SCALES[level], abs=5e-7), name


@pytest.mark.parametrize(
    "name", ["tiny_vit_5m_224", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_every_trainable_parameter_is_in_one_group(name: str, layer_decay: float) -> None:
    model = timm.create_model(name, device="meta")
    next(model.parameters()).requires_grad = False
    groups = parameter_groups(model, 0.05, layer_decay)
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert counts == Counter(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    assert max(group["lr_scale"] for group in groups) == 1.0


def test_tables_tokens_biases_and_norms_are_not_decayed() -> None:
    swin = undecayed_names(timm.create_model("swin_tiny_patch4_window7_224", device="meta"))
    assert "layers.0.blocks.0.attn.relative_position_bias_table" in swin
    assert "layers.0.blocks.0.attn.qkv.weight" not in swin
    vit = undecayed_names(timm.create_model("vit_tiny_patch16_224", device="meta"))
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= vit
    assert {"patch_embed.proj.weight", "head.weight"}.isdisjoint(vit)
    levit = undecayed_names(timm.create_model("levit_128s", device="meta"))
    assert any(name.endswith("attention_biases") for name in levit)


def test_a_vision_transformer_has_a_level_a_block() -> None:
    levels = layer_levels(timm.create_model("vit_tiny_patch16_224", device="meta"))
    assert levels["pos_embed"] == levels["patch_embed.proj.weight"] == 0
    assert [levels[f"blocks.{i}.attn.qkv.weight"] for i in range(12)] == list(range(1, 13))
    assert levels["head.weight"] == max(levels.values()) == 13


def test_an_optimiser_takes_the_groups(tiny: ModelConfig) -> None:
    model = build_model(tiny, 3, 32)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, 0.5), lr=1.0)  # type: ignore[arg-type]
    assert [group["lr_scale"] for group in optimizer.param_groups[-2:]] == [1.0, 1.0]


def _is_own(name: str) -> bool:
    return timm.models.model_entrypoint(name).__module__.startswith("vitlab.")


OWN = [name for name in timm.list_models() if _is_own(name) and name not in ("deepmad", "pruned_vit", "revit")]
"""But those that need a structure."""
RECIPES = choices(conf_dir(), "recipe")


@pytest.fixture(scope="module")
def recipes() -> list[RecipeConfig]:
    """Every ``recipe=`` of the configuration."""
    return [load(["method=supervised", f"recipe={name}"]).config.recipe for name in RECIPES]


@pytest.mark.parametrize("name", OWN)
def test_every_registered_network_takes_the_optimiser_of_every_recipe(name: str, recipes: list[RecipeConfig]) -> None:
    """Fine-tuning, the default of ``dataset=folder``, has a layer decay."""
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, pretrained=False), 4, 224)
    assert any(recipe.layer_decay < 1 for recipe in recipes)
    for recipe in recipes:
        scales = {group["lr_scale"] for group in make_optimizer(model, recipe).param_groups}
        assert (len(scales) > 3) == (recipe.layer_decay < 1), (recipe, scales)


def test_layer_decay_needs_named_layers() -> None:
    with pytest.raises(UserError, match=r"recipe\.layer_decay=1"):
        parameter_groups(nn.Linear(2, 2), 0.05, 0.5)
    with pytest.raises(ValueError, match="layer_decay"):
        parameter_groups(nn.Linear(2, 2), 0.05, 0.0)
    assert [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.05)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("tiny_vit_5m_224", {"head.fc.weight", "head.fc.bias"}),
        ("resnet18", {"fc.weight", "fc.bias"}),
        (
            "deit_tiny_distilled_patch16_224",
            {f"{one}.{part}" for one in ("head", "head_dist") for part in ("weight", "bias")},
        ),
    ],
)
@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_the_head_learns_at_its_own_rate(name: str, head: set[str], layer_decay: float) -> None:
    model = timm.create_model(name, device="meta")
    assert head_names(model) == head
    plain, scaled = (
        {
            id(p): group["lr_scale"]
            for group in parameter_groups(model, 0.05, layer_decay, rate)
            for p in group["params"]
        }
        for rate in (1.0, 10.0)
    )
    for key, parameter in model.named_parameters():
        assert scaled[id(parameter)] == pytest.approx(plain[id(parameter)] * (10 if key in head else 1)), key
    groups = parameter_groups(model, 0.05, layer_decay, 10.0)
    assert len({group["name"] for group in groups}) == len(groups)
    assert [group["weight_decay"] for group in groups[-2:]] == [0.0, 0.05]


def test_a_head_of_its_own_rate_needs_a_network_that_names_it() -> None:
    class Named(nn.Linear):
        def get_classifier(self) -> nn.Module:
            return self

    assert head_names(Named(2, 2)) == {"weight", "bias"}
    with pytest.raises(UserError, match=r"recipe\.head_lr=1"):
        parameter_groups(nn.Linear(2, 2), 0.05, 1.0, 10.0)


def test_with_decay_norms_every_parameter_is_decayed() -> None:
    """As in the published code of Dataset Reinforcement, whose optimiser has one group."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (group,) = parameter_groups(model, 0.05, decay_norms=True)
    assert group["weight_decay"] == 0.05 and len(group["params"]) == 4
    assert [one["weight_decay"] for one in parameter_groups(model, 0.05)] == [0.0, 0.05]
