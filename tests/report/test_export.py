from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import vitlab
from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.artifact import ModelMeta
from vitlab.models.build import architecture, build_model
from vitlab.report.export import Exported, export

CFG = ModelConfig(
    name="tiny_vit_5m_224",
    args={
        "embed_dims": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 2],
        "window_sizes": [8, 4, 2, 1],
    },
)
META = ModelMeta(*architecture(CFG, 32), list("0123456789"), 32, [0.305] * 3, [0.376] * 3, method="supervised")


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """Five real digits [5, 3, 32, 32], normalised."""
    torch.set_num_threads(1)
    digits = torch.from_numpy(load_digits().images[:5]).float() / 16
    return (functional.interpolate(digits[:, None].expand(-1, 3, -1, -1), (32, 32)) - 0.305) / 0.376


@pytest.fixture(scope="module")
def model(sample: Tensor) -> nn.Module:
    """A network in training mode whose parameters, tables and statistics have moved."""
    torch.manual_seed(0)
    model = build_model(CFG, 10, 32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        functional.cross_entropy(model(sample), torch.arange(5)).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def exported(model: nn.Module, sample: Tensor, tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    folder = tmp_path_factory.mktemp("export")
    return export(model, META, folder, ["safetensors", "onnx"], sample, 1e-4)


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(image)
    model.train()
    return logits


def test_what_was_written_is_stated(exported: list[Exported]) -> None:
    assert [row["format"] for row in exported] == ["safetensors", "onnx"]
    assert [Path(row["path"]).name for row in exported] == ["model.safetensors", "model.onnx"]
    assert all(Path(row["path"]).stat().st_size == row["bytes"] for row in exported)
    assert exported[0]["max_diff"] == 0
    assert 0 < exported[1]["max_diff"] <= 1e-4
    folder = Path(exported[0]["path"]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx", "model.safetensors"]


def test_the_artifact_gives_equal_logits(exported: list[Exported], model: nn.Module, sample: Tensor) -> None:
    again = vitlab.load_model(Path(exported[0]["path"]).parent)
    with torch.no_grad():
        assert torch.equal(again(sample), _logits(model, sample))


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_onnx_gives_equal_logits_at_any_batch(
    exported: list[Exported], model: nn.Module, sample: Tensor, batch: int
) -> None:
    session = onnxruntime.InferenceSession(exported[1]["path"], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": sample[:batch].numpy()})
    assert logits.shape == (batch, 10)
    np.testing.assert_allclose(logits, _logits(model, sample[:batch]).numpy(), atol=1e-4)


def test_onnx_says_what_a_runtime_must_know(exported: list[Exported]) -> None:
    session = onnxruntime.InferenceSession(exported[1]["path"], providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list("0123456789")
    assert json.loads(said["mean"]) == [0.305] * 3
    assert json.loads(said["std"]) == [0.376] * 3
    assert (said["size"], said["crop_pct"], said["interpolation"]) == ("32", "1.0", "bicubic")
    assert (said["model"], said["method"], said["vitlab"]) == ("tiny_vit_5m_224", "supervised", vitlab.__version__)


def test_the_network_is_left_as_it_was(exported: list[Exported], model: nn.Module) -> None:
    assert exported
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_the_exporter_is_silent(
    model: nn.Module, sample: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(model, META, tmp_path, ["onnx"], sample, 1e-4)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_logits_that_differ_are_refused_and_nothing_is_written(
    model: nn.Module, sample: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"differ from torch's by .*export\.tolerance allows 1e-12"):
        export(model, META, tmp_path, ["onnx"], sample, 1e-12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 4])
def test_logits_that_are_not_numbers_are_refused(model: nn.Module, sample: Tensor, tmp_path: Path, place: int) -> None:
    broken = sample.clone()
    broken[place] = float("nan")
    with pytest.raises(UserError, match="differ from torch's by nan"):
        export(model, META, tmp_path, ["safetensors"], broken, 1e-4)


def test_a_missing_package_is_named(
    model: nn.Module, sample: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs onnxscript, not installed here"):
        export(model, META, tmp_path, ["onnx"], sample, 1e-4)


def test_formats_and_sample_are_checked_first(model: nn.Module, sample: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tflite', which vitlab cannot write"):
        export(model, META, tmp_path, ["safetensors", "tflite"], sample, 1e-4)
    with pytest.raises(ValueError, match="three images are needed, not 2"):
        export(model, META, tmp_path, ["safetensors"], sample[:2], 1e-4)
    assert not list(tmp_path.iterdir())
