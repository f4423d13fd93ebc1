from __future__ import annotations

import base64
import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional

import vitlab
from vitlab.config import ModelConfig
from vitlab.distill.views import EvalView
from vitlab.errors import UserError
from vitlab.models.artifact import ModelMeta, build_from_meta
from vitlab.models.build import build_model, resolve_architecture
from vitlab.report import export_formats
from vitlab.report.export import Exported, export
from vitlab.report.export_card import Facts, model_card, squashed
from vitlab.report.export_onnx import export_int8, export_onnx, quantised, to_onnx
from vitlab.report.export_timm import export_timm, push
from vitlab.tasks.classification import Classification

CFG = ModelConfig(
    name="tiny_vit_5m_224",
    args={
        "embed_dims": [8, 32],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_sizes": [8, 4],
    },
)
FORMATS = ["safetensors", "onnx", "timm", "hub", "onnx_int8", "torch_export"]
TASK = Classification()
META = ModelMeta(*resolve_architecture(CFG, 32), list("0123456789"), 32, [0.305] * 3, [0.376] * 3, method="supervised")


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
    return export(
        model,
        META,
        folder,
        FORMATS,
        sample,
        1e-4,
        TASK,
        lambda: [(sample, torch.arange(5)), (sample[:2], torch.tensor([9, 9]))],
    )


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A network of one convolution."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(image)
    model.train()
    return logits


def test_what_was_written_is_stated(exported: list[Exported]) -> None:
    assert [row["format"] for row in exported] == FORMATS
    assert set(FORMATS) == set(export_formats.FORMATS), "all that the prompt accepts"
    folder = Path(exported[0]["path"]).parent
    names = ["model.safetensors", "model.onnx", "timm/model.safetensors", "hub/model.safetensors"]
    assert [str(Path(row["path"]).relative_to(folder)) for row in exported] == [*names, "model-int8.onnx", "model.pt2"]
    assert all(Path(row["path"]).stat().st_size == row["bytes"] for row in exported)
    by_format = {row["format"]: row["max_diff"] for row in exported}
    assert by_format["safetensors"] == by_format["timm"] == by_format["hub"] == by_format["torch_export"] == 0
    assert 0 < by_format["onnx"] <= 1e-4 < by_format["onnx_int8"] < 1
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    artifact = ["config.json", "model.json", "model.safetensors"]
    top = ["README.md", "model-int8.onnx", "model.json", "model.onnx", "model.pt2", "model.safetensors"]
    assert written == sorted([*top, "hub/README.md", *(f"{one}/{x}" for one in ("hub", "timm") for x in artifact)])


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


def test_onnx_metadata_describes_input_and_classes(exported: list[Exported]) -> None:
    session = onnxruntime.InferenceSession(exported[1]["path"], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list("0123456789")
    assert json.loads(metadata["mean"]) == [0.305] * 3
    assert json.loads(metadata["std"]) == [0.376] * 3
    assert (metadata["size"], metadata["crop_pct"], metadata["interpolation"]) == ("32", "1.0", "bicubic")
    assert (metadata["model"], metadata["method"], metadata["vitlab"]) == (
        "tiny_vit_5m_224",
        "supervised",
        vitlab.__version__,
    )


def test_timm_loads_the_folder(exported: list[Exported], model: nn.Module, sample: Tensor) -> None:
    folder = Path(exported[2]["path"]).parent
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(sample), _logits(model, sample))
        assert torch.equal(vitlab.load_model(folder)(sample), _logits(model, sample))
    assert json.loads((folder / "config.json").read_text())["label_names"] == list("0123456789")
    for path in (folder / "config.json", folder.parent / "hub/config.json"):
        assert "http" not in path.read_text() and str(folder) not in path.read_text()


@pytest.mark.parametrize(
    ("crop_pct", "crop"), [(0.8, "auto"), (1.0, "auto"), (1.0, "center"), (0.9, "squash"), (0.7, "squash_crop")]
)
def test_timms_transform_shows_the_view(model: nn.Module, tmp_path: Path, crop_pct: float, crop: str) -> None:
    """With config.json timm makes the pixels that the model was measured with, on a photograph that is not square."""
    meta = replace(META, crop_pct=crop_pct, crop=crop)
    sample = torch.zeros(3, 3, 32, 32)
    export_timm(build_from_meta(meta, model.state_dict()), meta, tmp_path, sample, 1e-4)
    again = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(again), is_training=False)
    image = Image.fromarray(load_sample_images().images[0])
    ours = EvalView(32, crop_pct, meta.mean, meta.std, meta.interpolation, crop)(image)
    assert float((transform(image) - ours).abs().mean()) < 0.02
    other = EvalView(
        32, 0.8 if crop == "squash_crop" else 0.7, meta.mean, meta.std, crop="center" if squashed(meta) else "squash"
    )(image)
    assert float((transform(image) - other).abs().mean()) > 0.2


def test_the_hub_folder_has_a_card(exported: list[Exported]) -> None:
    text = (Path(exported[3]["path"]).parent / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "timm" and "supervised" in head["tags"] and "license" not in head
    assert "sorts images into 10 classes (0, 1, 2" in text and "hf-hub:USER/NAME" in text
    assert "Nothing was measured" in text and "## Limits" in text


def test_card_numbers_and_licence() -> None:
    meta = replace(META, origin="timm tiny_vit_5m_224.dist_in22k", licence="apache-2.0")
    facts = Facts("A title", "fake", "Made-up stripes", 450, "test", True, {"top1": 0.9667, "ece": 0.0312, "nll": 0.25})
    text = model_card(meta, facts, TASK)
    assert "| Top-1 % | 96.67 |" in text and "| Expected calibration error % | 3.12 |" in text
    assert "450 images of the test split of fake (synthetic data" in text and "Data: Made-up stripes." in text
    assert "started from timm tiny_vit_5m_224.dist_in22k; their licence is apache-2.0." in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "not known to vitlab" in model_card(replace(meta, licence=""), facts, TASK)


def test_int8_is_smaller_and_its_accuracy_is_measured(
    exported: list[Exported], model: nn.Module, sample: Tensor
) -> None:
    """The labels say 0..4 for five images and 9 for two of them again: what both networks get right is known."""
    path = Path(exported[4]["path"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["size"] == "32"
    images, labels = torch.cat([sample, sample[:2]]), torch.tensor([0, 1, 2, 3, 4, 9, 9])
    theirs = torch.from_numpy(session.run(None, {"image": images.numpy()})[0]).argmax(1)
    ours = _logits(model, images).argmax(1)
    shares = [float((one == labels).float().mean()) for one in (theirs, ours)]
    note = exported[4]["note"]
    assert note.startswith(f"top-1 {100 * shares[0]:.2f} % instead of {100 * shares[1]:.2f} %, the same answer on ")
    assert f"{100 * float((theirs == ours).float().mean()):.2f} % of 7 test images" in note
    assert path.stat().st_size < exported[1]["bytes"]


def test_int8_is_refused_where_it_cannot_be_measured_or_gains_nothing(
    small: nn.Module, sample: Tensor, tmp_path: Path
) -> None:
    content = to_onnx(small, META, sample, TASK)
    with pytest.raises(UserError, match=r"measured on labelled images.*dataset=NAME"):
        export_int8(content, small, META, tmp_path, sample, None, TASK)
    with pytest.raises(UserError, match=r"measured on labelled images.*dataset=NAME"):
        export(small, META, tmp_path, ["safetensors", "onnx_int8"], sample, 1e-4, TASK)
    assert not list(tmp_path.iterdir()), "refused before the first format is written"
    with pytest.raises(UserError, match=r"makes the network no smaller.*almost no linear layers"):
        export_int8(content, small, META, tmp_path, sample, lambda: [(sample, torch.arange(5))], TASK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_program_runs_without_the_network(
    exported: list[Exported], model: nn.Module, sample: Tensor, batch: int
) -> None:
    record = {"model.json": ""}
    program = torch.export.load(exported[5]["path"], extra_files=record).module()
    assert torch.equal(program(sample[:batch]), _logits(model, sample[:batch]))
    assert json.loads(record["model.json"])["classes"] == list("0123456789")


def test_an_upload_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no server there
    with pytest.raises(UserError, match=r"export\.push=me/x: the upload failed \(.*hf auth login"):
        push(tmp_path, "me/x")
    with pytest.raises(UserError, match=r"export\.push=no name: the upload failed \(HFValidationError"):
        push(tmp_path, "no name")


def test_an_upload_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client against a server of three answers on this machine: what it is sent is what lies there."""
    for name, content in (("README.md", b"# x"), ("config.json", b"{}"), ("model.safetensors", bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
    requested: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            requested[path] = body = self.rfile.read(int(self.headers["Content-Length"]))
            answer: dict[str, Any] = {"url": f"{address}/me/x"}
            if "/preupload/" in path:
                names = [one["path"] for one in json.loads(body)["files"]]
                answer = {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in names]}
            elif "/commit/" in path:
                answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/me/x/commit/0"}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert push(tmp_path, "me/x") == f"{address}/me/x"
        server.shutdown()
    made = json.loads(requested["/api/repos/create"])
    assert made.get("visibility", "private" if made.get("private") else "public") == "private"
    lines = [json.loads(line)["value"] for line in requested["/api/models/me/x/commit/main"].splitlines()]
    files = {one["path"]: base64.b64decode(one["content"]) for one in lines if "content" in one}
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_network_is_left_as_it_was(exported: list[Exported], model: nn.Module) -> None:
    assert exported
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_the_exporter_is_silent(small: nn.Module, sample: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    content = to_onnx(small, META, sample, TASK)
    quantised(content)
    assert capfd.readouterr() == ("", "")


def test_logits_that_differ_are_refused_and_nothing_is_written(
    exported: list[Exported], model: nn.Module, sample: Tensor, tmp_path: Path
) -> None:
    content = Path(exported[1]["path"]).read_bytes()
    with pytest.raises(UserError, match=r"ONNX export differ from torch's by .*export\.tolerance allows 1e-12"):
        export_onnx(content, model, tmp_path, sample, 1e-12, TASK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 4])
def test_logits_that_are_not_numbers_are_refused(model: nn.Module, sample: Tensor, tmp_path: Path, place: int) -> None:
    broken = sample.clone()
    broken[place] = float("nan")
    with pytest.raises(UserError, match="differ from torch's by nan"):
        export(model, META, tmp_path, ["safetensors"], broken, 1e-4, TASK)


def test_a_missing_package_is_named(
    model: nn.Module, sample: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs onnxscript, not installed here"):
        export(model, META, tmp_path, ["onnx"], sample, 1e-4, TASK)


def test_formats_and_sample_are_checked_first(model: nn.Module, sample: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tflite', which vitlab cannot write"):
        export(model, META, tmp_path, ["safetensors", "tflite"], sample, 1e-4, TASK)
    with pytest.raises(ValueError, match="three images are needed, not 2"):
        export(model, META, tmp_path, ["safetensors"], sample[:2], 1e-4, TASK)
    assert not list(tmp_path.iterdir())
