from __future__ import annotations

import logging
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch

from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.build import build_model, normalisation, resolve_architecture
from vitlab.models.hub import unreachable

DATASET = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def _message(cfg: ModelConfig, size: int = 32) -> str:
    with pytest.raises(UserError) as caught:
        build_model(cfg, 10, size)
    return str(caught.value)


def _folder(path: Path, tiny: ModelConfig, classes: list[str]) -> Path:
    model = build_model(tiny, len(classes), 32)
    save_model(path, model, ModelMeta(tiny.name, tiny.args, classes, 32, [0.3] * 3, [0.7] * 3))
    return path


def test_overrides_of_a_timm_network_are_built(tiny: ModelConfig) -> None:
    model = build_model(tiny, 7, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert [model.get_submodule(f"stages.{i}").out_dim for i in (1, 2, 3)] == [16, 16, 32]


def test_the_input_size_reaches_networks_built_for_one_size_only() -> None:
    assert resolve_architecture(ModelConfig(name="deit_tiny_patch16_224"), 64) == (
        "deit_tiny_patch16_224",
        {"img_size": 64},
    )
    assert resolve_architecture(ModelConfig(name="resnet18"), 64) == ("resnet18", {})
    assert resolve_architecture(ModelConfig(name="tiny_vit_5m_224"), 64) == ("tiny_vit_5m_224", {})
    small = ModelConfig(name="vit_tiny_patch16_224", args={"embed_dim": 24, "depth": 1, "num_heads": 1})
    assert build_model(small, 3, 48).get_parameter("pos_embed").shape == (1, 1 + 3 * 3, 24)


def test_a_size_the_patches_do_not_tile_is_refused() -> None:
    cfg = ModelConfig(name="vit_tiny_patch16_224", args={"embed_dim": 24, "depth": 1, "num_heads": 1})
    assert "patches of 16 px, which do not tile 40 px. Set dataset.size=32" in _message(cfg, 40)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt50", "Did you mean 'resnet50'?"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("resnet50.nowhere", "a1_in1k"),
        ("someone/model", "hf-hub:someone/model"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name: str, hint: str) -> None:
    assert hint in _message(ModelConfig(name=name))


def test_wrong_arguments_are_named() -> None:
    name = "tiny_vit_5m_224"
    assert "Did you mean model.args.embed_dims?" in _message(ModelConfig(name=name, args={"embed_dim": [8]}))
    assert "Leave img_size out" in _message(ModelConfig(name=name, args={"img_size": 32}))
    assert "{'embed_dims': [8]}" in _message(ModelConfig(name=name, args={"embed_dims": [8]}))
    assert "disagree about the size" in _message(ModelConfig(name="deit_tiny_patch16_224", args={"img_size": 64}))


def test_weights_that_cannot_be_downloaded_are_answered_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = _message(ModelConfig(name="test_resnet.r160_in1k", pretrained=True))
    assert "'test_resnet.r160_in1k' could not be loaded" in message
    assert "model.checkpoint" in message


def test_a_hub_that_cannot_be_reached_is_noticed_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line and one try, where the hub's own client tries each of two files six times, half a minute each."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    unreachable.cache_clear()
    begun = time.monotonic()
    try:
        message = _message(ModelConfig(name="test_resnet.r160_in1k", pretrained=True))
        again = _message(ModelConfig(name="test_resnet.r160_in1k", pretrained=True))
    finally:
        unreachable.cache_clear()
    assert time.monotonic() - begun < 10
    assert "they are not in the cache, and http://127.0.0.1:9 cannot be reached" in message and again == message
    said = capfd.readouterr().err
    assert said.count("cannot be reached") == 1 and "Retrying" not in said
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_model_folder_gives_weights_and_head(tmp_path: Path, tiny: ModelConfig) -> None:
    folder = _folder(tmp_path / "made", tiny, ["a", "b", "c"])
    cfg = ModelConfig(name=tiny.name, args=tiny.args, checkpoint=str(folder))
    first, second = (build_model(cfg, 3, 32, classes=classes).state_dict() for classes in (None, ["a", "b", "c"]))
    assert all(torch.equal(first[name], second[name]) for name in first)
    bare = build_model(cfg, 3, 32, pretrained=False).state_dict()
    assert not torch.equal(bare["patch_embed.conv1.conv.weight"], first["patch_embed.conv1.conv.weight"])


@pytest.mark.parametrize("classes", [["a", "b"], ["c", "b", "a"]])
def test_a_head_of_other_classes_starts_from_zero_and_says_so(
    tmp_path: Path, tiny: ModelConfig, classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = _folder(tmp_path / "made", tiny, ["a", "b", "c"])
    cfg = ModelConfig(name=tiny.name, args=tiny.args, checkpoint=str(folder))
    with caplog.at_level(logging.WARNING, logger="vitlab"):
        model = build_model(cfg, len(classes), 32, classes=classes)
    assert "starts from zero (head.fc.bias, head.fc.weight)" in caplog.text
    assert not model.get_parameter("head.fc.weight").any()
    assert not model.get_parameter("head.fc.bias").any()
    assert model.get_parameter("stages.0.blocks.0.conv1.conv.weight").any()


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path, tiny: ModelConfig) -> None:
    folder = _folder(tmp_path / "made", tiny, ["a", "b"])
    assert "holds a tiny_vit_5m_224, not a resnet18" in _message(ModelConfig(name="resnet18", checkpoint=str(folder)))


def test_normalisation_is_taken_from_the_first_that_knows(tmp_path: Path, tiny: ModelConfig) -> None:
    folder = str(_folder(tmp_path / "made", tiny, ["a", "b"]))
    clip = "vit_base_patch16_clip_224.openai"
    assert normalisation(tiny, *DATASET) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert normalisation(ModelConfig(name=clip), *DATASET)[0] == (0.1, 0.2, 0.3)
    assert normalisation(ModelConfig(name=clip, pretrained=True), *DATASET)[0] == (0.48145466, 0.4578275, 0.40821073)
    assert normalisation(ModelConfig(name=tiny.name, checkpoint=folder), *DATASET) == ((0.3,) * 3, (0.7,) * 3)
    given = ModelConfig(name=clip, pretrained=True, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    assert normalisation(given, *DATASET) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5] * 3, None, "has a mean but no std"),
        (None, [0.5] * 3, "has a std but no mean"),
        ([0.5], [0.5], "do not describe an RGB image"),
        ([0.5] * 3, [0.5, 0.0, 0.5], "do not describe an RGB image"),
    ],
)
def test_half_a_normalisation_is_refused(mean: list[float] | None, std: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        normalisation(ModelConfig(name="resnet18", mean=mean, std=std), *DATASET)


def test_class_names_must_match_their_number(tiny: ModelConfig) -> None:
    with pytest.raises(ValueError, match="2 class names for 3 logits"):
        build_model(tiny, 3, 32, classes=["a", "b"])
