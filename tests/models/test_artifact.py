from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitlab
from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.files import sha256
from vitlab.models.artifact import ModelMeta, build_from_meta, load_model, read_meta, save_model
from vitlab.models.build import build_model, resolve_architecture
from vitlab.models.checkpoints import load_weights
from vitlab.modes.predict import view_of
from vitlab.run.model_file import digest_of, write_metrics
from vitlab.run.repair import model_is_intact, refuse_lost_models

VIT = ModelConfig(name="vit_tiny_patch16_224", args={"embed_dim": 24, "depth": 1, "num_heads": 1})


def _trained(cfg: ModelConfig, size: int) -> nn.Module:
    """A network whose running statistics and parameters have moved."""
    torch.manual_seed(0)
    model = build_model(cfg, 3, size).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 3, size, size)).square().sum().backward()
        optimizer.step()
    return model.eval()


def _meta(cfg: ModelConfig, size: int, **more: Any) -> ModelMeta:
    return ModelMeta(*resolve_architecture(cfg, size), ["a", "b", "c"], size, [0.1, 0.2, 0.3], [0.5] * 3, **more)


@pytest.fixture
def folder(tmp_path: Path, tiny: ModelConfig) -> Path:
    save_model(tmp_path / "model", _trained(tiny, 32), _meta(tiny, 32, method="supervised", metrics={"top1": 0.5}))
    return tmp_path / "model"


@pytest.mark.parametrize("size", [32, 48])
def test_a_reloaded_network_gives_the_same_logits_bit_for_bit(tmp_path: Path, tiny: ModelConfig, size: int) -> None:
    for cfg in (tiny, VIT):
        model = _trained(cfg, size)
        save_model(tmp_path / cfg.name, model, _meta(cfg, size))
        again = vitlab.load_model(tmp_path / cfg.name)
        image = torch.randn(5, 3, size, size)
        assert not again.training
        assert torch.equal(again(image), model(image))


def test_the_description_survives(folder: Path) -> None:
    meta = read_meta(folder)
    assert meta == load_model(folder).meta
    assert (meta.name, meta.size, meta.classes) == ("tiny_vit_5m_224", 32, ["a", "b", "c"])
    assert (meta.mean, meta.std, meta.crop_pct) == ([0.1, 0.2, 0.3], [0.5] * 3, 1.0)
    assert (meta.method, meta.metrics, meta.vitlab) == ("supervised", {"top1": 0.5}, vitlab.__version__)
    assert meta.sha256 == sha256(folder / "model.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_saving_again_replaces(folder: Path, tiny: ModelConfig) -> None:
    model = build_model(tiny, 3, 32).eval()
    save_model(folder, model, _meta(tiny, 32))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_model(folder)(image), model(image))


def test_tied_and_strided_weights_are_saved(tmp_path: Path, tiny: ModelConfig) -> None:
    model = build_model(tiny, 3, 32).to(memory_format=torch.channels_last).eval()
    first, second = (model.get_submodule(f"stages.2.blocks.{i}.attn.proj") for i in (0, 1))
    second.weight = first.weight
    save_model(tmp_path, model, _meta(tiny, 32))
    again = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_class_names_must_match_the_logits(tmp_path: Path, tiny: ModelConfig) -> None:
    with pytest.raises(ValueError, match="3 class names for a network with 4 logits"):
        save_model(tmp_path, build_model(tiny, 4, 32), _meta(tiny, 32))


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"not the file that model\.json describes"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"unheard_of": 1}, "has format 1"),
        ({"classes": None}, "lacks classes"),
        ({"surgeries": [{"kind": "unheard_of"}]}, "needs surgeries that this vitlab cannot do: unheard_of"),
        ({"name": "unheard_of"}, "has no model 'unheard_of'"),
        ({"name": "hf-hub:some/one"}, "has no model 'hf-hub:some/one'"),
    ],
)
def test_a_description_it_cannot_follow_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / "model.json"
    stored = {**json.loads(path.read_text()), "digest": None, **changes}
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_description_that_was_changed_is_noticed(folder: Path) -> None:
    """A value that another network could have: no other check would see it."""
    path = folder / "model.json"
    stored = json.loads(path.read_text())
    (folder / "done.json").write_text("{}")
    for key, value in (("classes", ["b", "a", "c"]), ("mean", [0.1, 0.2, 0.35]), ("metrics", {"top1": 0.6})):
        path.write_text(json.dumps(stored | {key: value}))
        for read in (load_model, lambda one: write_metrics(one, {}, {}), lambda one: refuse_lost_models(one.parent)):
            with pytest.raises(UserError, match=r'model\.json\' was changed .* remove the line "digest"'):
                read(folder)
        assert not model_is_intact(folder)
        assert json.loads(path.read_text())[key] == value, "nothing was written"
    path.write_text(json.dumps(dict(sorted(stored.items()))))  # laid out otherwise, the same content
    assert model_is_intact(folder) and read_meta(folder).classes == ["a", "b", "c"]
    del stored["digest"]
    path.write_text(json.dumps(stored | {"classes": ["b", "a", "c"]}))
    assert read_meta(folder).classes == ["b", "a", "c"], "as files of earlier versions are read"


def test_new_metrics_have_a_new_digest(folder: Path) -> None:
    path = folder / "model.json"
    write_metrics(folder, {"top1": 0.7, "nll": math.nan}, {"temperature": 1.5})
    stored = json.loads(path.read_text())
    assert list(stored)[-1] == "digest" and stored["digest"] == digest_of(stored)
    assert (read_meta(folder).metrics["top1"], read_meta(folder).fitted) == (0.7, {"temperature": 1.5})
    del stored["digest"]
    path.write_text(json.dumps(stored))
    write_metrics(folder, {}, {})
    assert "digest" not in json.loads(path.read_text()), "a file of an earlier version stays readable for that version"


def test_no_folder_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a model folder"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 1, "na')
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(
    tmp_path: Path, tiny: ModelConfig, kind: str, value: float
) -> None:
    model = _trained(tiny, 32)
    tensors = dict(getattr(model, f"named_{kind}")())
    name = next(name for name in tensors if kind == "parameters" or name.endswith("running_var"))
    tensors[name].data[0] = value
    with pytest.raises(UserError, match=rf"not finite \({name}\); no model was written"):
        save_model(tmp_path / "model", model, _meta(tiny, 32))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=rf"weights that are not finite \({name}\)"):
        build_from_meta(_meta(tiny, 32), model.state_dict())
    with pytest.raises(UserError, match=rf"The checkpoint a file has weights that are not finite \({name}\)"):
        load_weights(build_model(tiny, 3, 32), model.state_dict(), "a file")


WRONG: list[Any] = [None, True, -1, 0, 3, 1e400, "x", "", [], ["a"], [0.5, math.nan, 0.5], [-1, 0, 1], {}, {"x": 1}]


@pytest.mark.parametrize(
    "key", [item.name for item in dataclasses.fields(ModelMeta)] + ["format", "surgeries", "other"]
)
def test_any_value_of_a_description_is_used_or_refused_in_one_paragraph(folder: Path, key: str) -> None:
    """Whatever stands in ``model.json``, building the network and its view ends well or names the file."""
    path = folder / "model.json"
    stored = json.loads(path.read_text())
    del stored["digest"]
    refused = 0
    for value in WRONG:
        path.write_text(json.dumps(stored | {key: value}))
        try:
            load_model(folder)
            view_of(read_meta(folder))
        except UserError as error:
            assert "model.json" in error.what or str(folder) in error.what
            refused += 1
    assert refused > 3, "text, numbers and objects are not all alike"


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "elsewhere.pth"},
        {"pretrained": True},
        {"num_classes": 7},
        {"features_only": True},
        {"depthz": 3},
        {"depths": "many"},
        {"depths": [1, 1]},
        {"in_chans": 1},
    ],
)
def test_arguments_of_a_description_that_build_no_such_network(folder: Path, args: dict[str, Any]) -> None:
    path = folder / "model.json"
    stored = json.loads(path.read_text())
    del stored["digest"]
    path.write_text(json.dumps(stored | {"args": stored["args"] | args}))
    with pytest.raises(UserError, match=r"model\.json"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, "{" + '"a":{' * 50_000])
def test_a_description_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json' is damaged"):
        load_model(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    path = folder / "model.json"
    (folder / "model.safetensors").write_bytes(b"text")
    stored = json.loads(path.read_text()) | {"sha256": sha256(b"text")}
    path.write_text(json.dumps(stored | {"digest": digest_of(stored)}))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(folder)
