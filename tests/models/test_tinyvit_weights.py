from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.build import build_model, load_report
from vitlab.models.imagenet22k import CLASSES, class_map, map_rows, wordnet_ids_22k
from vitlab.models.tinyvit_weights import is_official, resize_table, to_official, to_timm

WNIDS_1K: list[str] = ImageNetInfo("imagenet1k").label_names()


@pytest.mark.parametrize(
    ("name", "digest"), [("tiny_vit_5m_224", "12e87e9bc25c9bc4"), ("tiny_vit_21m_512", "8dcece5faba689d3")]
)
def test_names_and_shapes_are_those_of_the_official_network(name: str, digest: str) -> None:
    """The digest was taken from the official code's own ``state_dict``."""
    state = timm.create_model(name, device="meta", num_classes=1000).state_dict()
    official = to_official(state)
    assert len(official) == 296
    text = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(official.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    assert is_official(official) and not is_official(state)
    assert to_timm(official).keys() == state.keys()
    assert to_timm(official | {"layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(1)}).keys() == state.keys()


def official_file(path: Path, cfg: ModelConfig, classes: int) -> dict[str, Tensor]:
    """A checkpoint such as the official code writes; the state of the network that it was made from."""
    torch.manual_seed(3)
    model = build_model(cfg, classes, 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.normal_()
    torch.save({"model": to_official(model.state_dict())}, path)
    return model.state_dict()


def test_an_official_checkpoint_just_works(tmp_path: Path, tiny: ModelConfig) -> None:
    state = official_file(tmp_path / "tiny.pth", tiny, 4)
    model = build_model(replace(tiny, checkpoint=str(tmp_path / "tiny.pth")), 4, 32)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_resized_table_is_the_official_one() -> None:
    table = torch.arange(49, dtype=torch.float32)[None] / 10
    resized = resize_table(table, 12)
    assert resized.shape == (1, 144)
    assert resized[0, :4].tolist() == pytest.approx([-0.078342, -0.039106, 0.025329, 0.084583], abs=1e-6)
    assert resized.sum().item() == pytest.approx(345.6001, abs=1e-3)
    noise = torch.randn(4, 49, generator=torch.Generator().manual_seed(0))
    assert 0.05 < (resize_table(noise, 12) - resize_table(noise, 12, "timm")).abs().max() < 0.5
    assert resize_table(table, 7) is table
    with pytest.raises(ValueError, match="square"):
        resize_table(table[:, :48], 12)


@pytest.mark.parametrize("resize", ["official", "timm"])
def test_tables_follow_the_window(tmp_path: Path, tiny: ModelConfig, resize: str) -> None:
    state = official_file(tmp_path / "tiny.pth", tiny, 4)
    wide = {**tiny.args, "window_sizes": [8, 8, 4, 2]}
    cfg = replace(tiny, args=wide | {"table_resize": resize}, checkpoint=str(tmp_path / "tiny.pth"))
    model = build_model(cfg, 4, 64)
    name = "stages.1.blocks.0.attn.attention_biases"
    assert model.state_dict()[name].equal(resize_table(state[name], 8, resize))
    assert "4 tables of positions resized (stages." in load_report(model)
    other = "stages.1.blocks.0.attn.qkv.weight"
    assert model.state_dict()[other].equal(state[other])


def test_a_setting_that_is_none_is_refused(tiny: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"model\.args\.table_resize=best is not one of official, timm"):
        build_model(replace(tiny, args=tiny.args | {"table_resize": "best"}), 4, 32)


def test_class_map_is_the_official_file() -> None:
    rows = class_map(WNIDS_1K)
    assert rows is not None
    assert np.flatnonzero(rows < 0).tolist() == [850] and WNIDS_1K[850] == "n04399382"
    assert rows[:5].tolist() == [359, 368, 460, 475, 486]
    digest = hashlib.sha256(" ".join(map(str, rows)).encode()).hexdigest()
    assert digest[:16] == "c3000ef7603d6e24"  # of the 1,000 numbers that the authors published
    assert len(wordnet_ids_22k()) == CLASSES and list(wordnet_ids_22k()) == sorted(wordnet_ids_22k())
    assert class_map(["cat", "dog"]) is None and class_map([*WNIDS_1K[:10], "cat"]) is None
    assert class_map([]) is None and class_map(["n99999999", "n04399382"]) is None


def test_absent_class_gets_the_mean_or_nothing() -> None:
    weight = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(0))
    rows = class_map(WNIDS_1K)
    assert rows is not None
    mean, zero = map_rows(weight, rows), map_rows(weight, rows, "zero")
    known = np.delete(np.arange(1000), 850)
    assert mean[known].equal(weight[rows[known]]) and zero[known].equal(mean[known])
    torch.testing.assert_close(mean[850], weight[rows[known]].mean(0))
    assert not zero[850].any()
    with pytest.raises(ValueError, match="absent"):
        map_rows(weight, rows, "best")


@pytest.mark.parametrize("absent", ["mean", "zero"])
def test_a_22k_checkpoint_is_cut_down_to_its_classes(tmp_path: Path, tiny: ModelConfig, absent: str) -> None:
    classes = WNIDS_1K[845:855]
    state = official_file(tmp_path / "22k.pth", tiny, CLASSES)
    cfg = replace(tiny, checkpoint=str(tmp_path / "22k.pth"), args=tiny.args | {"absent_class": absent})
    model = build_model(cfg, 10, 32, classes)
    rows = class_map(classes)
    assert rows is not None and (rows < 0).sum() == 1
    for name in ("head.fc.weight", "head.fc.bias"):
        assert model.state_dict()[name].equal(map_rows(state[name], rows, absent))
    start = {"mean": "the mean of the others", "zero": "zero"}[absent]
    assert "9 of 10 classes of the head are taken from ImageNet-22k's" in load_report(model)
    assert f"absent there, so starting from {start}: n04399382" in load_report(model)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = build_model(replace(cfg, args=tiny.args), CLASSES, 32).eval()(image)
        logits = model.eval()(image)
    torch.testing.assert_close(logits[:, rows >= 0], full[:, rows[rows >= 0]])
    if absent == "zero":
        assert not logits[:, 5].any(), "the official evaluation: logit 0"


def test_other_classes_start_from_zero(tmp_path: Path, tiny: ModelConfig) -> None:
    official_file(tmp_path / "22k.pth", tiny, CLASSES)
    model = build_model(replace(tiny, checkpoint=str(tmp_path / "22k.pth")), 3, 32, ["cat", "dog", "emu"])
    assert not model.state_dict()["head.fc.weight"].any()
    assert "the head has other classes and starts from zero" in load_report(model)


def test_weights_of_the_hub_are_cut_down_alike(
    tmp_path: Path, tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands in for timm's hub."""
    state = official_file(tmp_path / "22k.pth", tiny, CLASSES)
    torch.save(state, tmp_path / "timm.pth")
    here = ("file", str(tmp_path / "timm.pth"))
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda cfg: here)
    cfg = replace(tiny, name="tiny_vit_5m_224.dist_in22k", pretrained=True)
    model = build_model(cfg, 10, 32, WNIDS_1K[:10])
    rows = class_map(WNIDS_1K[:10])
    assert rows is not None
    assert model.state_dict()["head.fc.weight"].equal(state["head.fc.weight"][rows])
    assert load_report(model).startswith("timm tiny_vit_5m_224.dist_in22k: 10 of 10 classes of the head are taken from")
