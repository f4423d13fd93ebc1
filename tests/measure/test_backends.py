"""One network in several backends: the same logits from the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vitlab.measure import backends
from vitlab.measure.robustness_names import BACKENDS
from vitlab.models.artifact import ModelMeta
from vitlab.report.export import export
from vitlab.tasks.base import find_task


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    out = backends.eager_pass(network, images)()
    assert isinstance(out, torch.Tensor)
    with torch.no_grad():
        assert torch.equal(out, network(torch.from_numpy(images)))
    return out.numpy()


@pytest.fixture(scope="module")
def file(network: torch.nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    meta = ModelMeta("test_resnet", {}, list("abcde"), 32, [0.5] * 3, [0.5] * 3)
    sample = torch.from_numpy(np.concatenate([images, images]))
    (written,) = export(
        network, meta, tmp_path_factory.mktemp("onnx"), ["onnx"], sample, 1e-4, find_task("classification")
    )
    return Path(written["path"])


def test_onnxruntime(file: Path, images: np.ndarray, expected: np.ndarray) -> None:
    out = backends.onnxruntime_pass(file, images)()
    np.testing.assert_allclose(np.asarray(out)[0], expected, atol=1e-5)


def test_openvino(file: Path, images: np.ndarray, expected: np.ndarray) -> None:
    if backends.missing_packages("openvino"):
        pytest.skip("OpenVINO is an extra")
    out = backends.openvino_pass(file, images)()
    np.testing.assert_allclose(out[0], expected, atol=1e-4)  # type: ignore[index]


@pytest.mark.slow
def test_compile(network: torch.nn.Module, images: np.ndarray, expected: np.ndarray) -> None:
    out = backends.compiled_pass(network, images)()
    assert isinstance(out, torch.Tensor)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-4)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.missing_packages("eager") == backends.missing_packages("compile") == []
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    assert backends.missing_packages("openvino") == ["openvino"]
    assert set(backends.NEEDS) < set(BACKENDS)
