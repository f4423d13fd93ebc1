"""What ``import vitlab.models`` does, and what a network may declare beyond timm's conventions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.models.networks import MEAN, SHAPE, Gated
from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.measure.explain import network_maps
from vitlab.models.artifact import ModelMeta, load_model, save_model
from vitlab.models.build import build_backbone, build_model, normalisation, resolve_architecture
from vitlab.models.checkpoints import load_weights, new_parameters
from vitlab.models.deepmad import published_structure
from vitlab.models.param_groups import layer_levels


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of the small ViT with seven classes, where timm finds them for ``small_vit.ours``."""
    torch.manual_seed(1)
    state = timm.create_model("small_vit", num_classes=7).state_dict()
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(state, path)
    from timm.models._registry import _model_pretrained_cfgs

    _model_pretrained_cfgs["small_vit.ours"].file = str(path)
    return state


def test_importing_the_package_registers_every_network() -> None:
    ours = Path(__file__).parents[2] / "vitlab" / "models"
    files = [path.stem for path in ours.glob("*.py") if "@register_model" in path.read_text()]
    assert {"deepmad", "resnext48"} <= set(files)
    code = (
        "import vitlab.models, timm; from timm.models import model_entrypoint, list_models\n"
        "print(timm.create_model('deepmad_r18', num_classes=0).num_features, "
        "sorted({model_entrypoint(one).__module__ for one in list_models() "
        "if model_entrypoint(one).__module__.startswith('vitlab')}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split(maxsplit=1) == ["672", f"{sorted(f'vitlab.models.{one}' for one in files)}\n"]


def test_the_package_itself_stays_light() -> None:
    code = "import sys, vitlab; assert 'torch' not in sys.modules and 'vitlab.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pretrained_weights_reach_the_network_inside(donor: dict[str, Tensor]) -> None:
    model = build_model(ModelConfig("wrapped_vit", pretrained=True), 7, 32)
    assert isinstance(model, Gated) and bool((model.gate == 2).all())
    state = model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in donor.items())
    cfg = ModelConfig("wrapped_vit", pretrained=True)
    assert normalisation(cfg, (0.0,) * 3, (1.0,) * 3) == (MEAN, (0.2, 0.2, 0.2))


def test_other_classes_and_another_size(donor: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        model = build_model(ModelConfig("wrapped_vit", pretrained=True), 5, (16, 40))
    assert isinstance(model, Gated)
    assert not model.backbone.head.weight.any() and model.backbone.pos_embed.shape[1] == 1 + 2 * 5
    assert "1 tensors that the network adds keep" in caplog.text and "backbone.head.weight" in caplog.text
    assert model(torch.zeros(1, 3, 16, 40)).shape == (1, 5)


def test_all_but_what_is_new_is_loaded_strictly(donor: dict[str, Tensor]) -> None:
    part = {name: value for name, value in donor.items() if name != "blocks.1.attn.qkv.weight"}
    with pytest.raises(UserError, match=r"missing blocks\.1\.attn\.qkv\.weight"):
        load_weights(Gated(), part, "it")
    with pytest.raises(UserError, match=r"unexpected blocks\.9\.x"):
        load_weights(Gated(), donor | {"blocks.9.x": torch.zeros(1)}, "it")
    with pytest.raises(ValueError, match=r"new_parameters\(\) leaves out gate"):
        load_weights(Gated(declared=False), donor, "it")
    with pytest.raises(ValueError, match=r"has no nowhere, which it declares as new"):
        load_weights(Gated(), donor, "it", new=["nowhere"])
    report = load_weights(Gated(), donor, "it")
    assert report.new == ["gate"] and not report.head and report.loaded == len(donor)


def test_a_subclass_with_more_parameters(donor: dict[str, Tensor]) -> None:
    class Wider(VisionTransformer):
        def __init__(self) -> None:
            super().__init__(img_size=32, patch_size=8, num_classes=7, **SHAPE)
            self.extra = nn.Parameter(torch.ones(3))

        def new_parameters(self) -> Iterable[str]:
            return ["extra"]

    model: Any = Wider()
    assert load_weights(model, donor, "it").new == ["extra"] and new_parameters(model) == {"extra"}
    assert torch.equal(model.blocks[1].attn.qkv.weight, donor["blocks.1.attn.qkv.weight"])
    again = Wider()
    with torch.no_grad():
        model.extra.fill_(5)
    assert load_weights(again, model.state_dict(), "it").new == [] and bool((again.extra == 5).all())


def test_a_wrapper_as_artifact_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = ModelConfig("wrapped_vit")
    model = build_model(cfg, 2, 32).eval()
    name, args = resolve_architecture(cfg, 32)
    save_model(tmp_path, model, ModelMeta(name, args, ["a", "b"], 32, [0.5] * 3, [0.2] * 3))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(image), model(image))
    finetuned = build_model(ModelConfig("wrapped_vit", checkpoint=str(tmp_path)), 2, 32, ["a", "b"])
    assert all(torch.equal(value, finetuned.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_wrapper_starts_from_a_model_folder_of_what_is_inside(tmp_path: Path) -> None:
    inside = build_model(ModelConfig("small_vit"), 2, 32)
    name, args = resolve_architecture(ModelConfig("small_vit"), 32)
    save_model(tmp_path, inside, ModelMeta(name, args, ["a", "b"], 32, [0.5] * 3, [0.2] * 3))
    model = build_model(ModelConfig("wrapped_vit", checkpoint=str(tmp_path)), 2, 32, ["a", "b"])
    assert isinstance(model, Gated)
    assert all(torch.equal(value, model.backbone.state_dict()[key]) for key, value in inside.state_dict().items())
    other = build_model(ModelConfig("wrapped_vit", checkpoint=str(tmp_path)), 2, 32, ["a", "c"])
    assert isinstance(other, Gated) and not other.backbone.head.weight.any()


def test_levels_and_maps_are_the_networks_own() -> None:
    model = Gated()
    assert layer_levels(model)["gate"] == 1 and layer_levels(model)["backbone.cls_token"] == 0
    image = torch.randn(2, 3, 32, 32)
    maps = network_maps(model, image)
    assert list(maps) == ["gate"] and maps["gate"].shape == (2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(maps["gate"], model.eval().attention_maps(image)["gate"].mean(1))
    assert network_maps(nn.Identity(), image) == {}
    model.attention_maps = lambda image: {"flat": image[:, 0]}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"attention_maps\(\)\['flat'\] is \(2, 32, 32\)"):
        network_maps(model, image)


STRUCTURE = [
    {"block": "conv", "out": 8, "kernel": 3, "stride": 2},
    {"block": "K1KXK1", "out": 16, "bottleneck": 8, "kernel": 3, "stride": 2, "depth": 1},
    {"block": "K1DWK1", "out": 24, "bottleneck": 16, "kernel": 3, "stride": 2, "depth": 2},
]


@pytest.mark.parametrize(
    ("cfg", "indices", "size", "shapes"),
    [
        (ModelConfig("deepmad", args={"structure": STRUCTURE}), None, None, [(8, 20, 28), (16, 10, 14), (24, 5, 7)]),
        (ModelConfig("deepmad", args={"structure": STRUCTURE}), [1, -1], None, [(16, 10, 14), (24, 5, 7)]),
        (ModelConfig("resnet10t", args={"channels": (8, 8, 16, 16)}), 2, None, [(16, 3, 4), (16, 2, 2)]),
        (ModelConfig("small_vit"), [0, 2], (40, 56), [(24, 5, 7), (24, 5, 7)]),
        (ModelConfig("small_vit", args={"dynamic_img_size": True}), 1, 32, [(24, 5, 7)]),
    ],
)
def test_feature_maps_at_any_size(
    cfg: ModelConfig, indices: Any, size: Any, shapes: list[tuple[int, int, int]]
) -> None:
    network = build_backbone(cfg, size, indices).eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 40, 56))
    assert [tuple(one.shape[1:]) for one in maps] == shapes
    assert network.feature_info.channels() == [one[0] for one in shapes]


def test_feature_maps_that_there_are_not() -> None:
    with pytest.raises(UserError, match=r"has 3 feature maps, not 4"):
        build_backbone(ModelConfig("deepmad", args={"structure": STRUCTURE}), 32, 4)
    with pytest.raises(UserError, match=r"has no forward_intermediates"):
        build_backbone(ModelConfig("wrapped_vit"), 32)


def test_timms_feature_extractor_reads_our_networks() -> None:
    network: Any = timm.create_model("deepmad", structure=STRUCTURE, features_only=True, out_indices=(0, 2)).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 40, 56))
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 20, 28), (24, 5, 7)]
    assert network.feature_info.reduction() == [2, 8]
    published_one: Any = timm.create_model("deepmad_r18", features_only=True)
    assert published_one.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert len(published_structure("r18")) == 6


def test_a_backbone_has_the_weights_and_no_classifier(donor: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(donor, tmp_path / "vit.safetensors")
    cfg = ModelConfig("small_vit", checkpoint=str(tmp_path / "vit.safetensors"))
    model = build_model(cfg, 0, 32).eval()
    full: Any = build_model(cfg, 7, 32).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(image), full.forward_head(full.forward_features(image), pre_logits=True))
        features = build_backbone(cfg, 32, 1).eval()(image)[0]
        assert features.shape == (2, 24, 4, 4)
        (wanted,) = full.forward_intermediates(image, indices=1, intermediates_only=True)
    assert torch.equal(features, wanted)
