"""Runs whose images are no squares, from the training to every mode; and a network with two heads, measured only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.modes.conftest import ask, train
from vitlab.files import read_json
from vitlab.measure.cost import count_macs, count_params, measure_cost
from vitlab.measure.explain import grad_cam, to_grid
from vitlab.measure.rollout import attention_rollout
from vitlab.measure.throughput import measure_throughput
from vitlab.models.artifact import load_model, read_meta
from vitlab.modes.explain import _seen
from vitlab.modes.predict import view_of

WIDE = ("dataset.size=[24,40]", "debug.max_steps=3", "debug.max_images=60")
VIT = ("model.name=test_vit", "model.args={patch_size: 8}")
MIXED = ("recipe.augmentation.cutmix=1.0", "recipe.augmentation.crop_scale=[0.5,1]")


@pytest.fixture(scope="module")
def wide(output: Path) -> Path:
    """A ViT at 24 x 40 px, three steps, with its ONNX file."""
    return train(output, *WIDE, *VIT, *MIXED, "export=default", "export.formats=[onnx]")


def test_the_artifact_and_what_stands_beside_it(wide: Path) -> None:
    meta = read_meta(wide / "train")
    assert meta.size == [24, 40] and meta.args["img_size"] == [24, 40]
    model: Any = load_model(wide / "train")
    assert model.patch_embed.grid_size == (3, 5)
    costs = read_json(wide / "benchmark/done.json")["costs"]["train"]
    assert costs["size"] == [24, 40] and costs["macs"] == count_macs(model, (24, 40))
    report = (wide / "report.html").read_text()
    assert ("seen at 24 × 40 pixels" in report and "(24 × 40" in report) or "24 × 40" in report


def test_the_onnx_file_takes_the_size(wide: Path) -> None:
    import onnx
    import onnxruntime

    file = wide / "export/model.onnx"
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_value for one in shape[1:]] == [3, 24, 40]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    assert json.loads(stated["size"]) == [24, 40] and "[batch, 3, height, width]" in stated["input"]
    image = torch.randn(4, 3, 24, 40)
    with torch.no_grad():
        wanted = load_model(wide / "train")(image)
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)


def test_every_mode_takes_it(wide: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert ask(output, "mode=predict", f"run={wide}", f"input={tmp_path}/a.png", "predict.format=jsonl") == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])) > 0
    assert ask(output, "mode=evaluate", f"run={wide}", "debug.max_images=60") == 0
    words = ("evaluation.latency_batches=[2]", "evaluation.latency_repeats=2", "benchmark.backends=[eager]")
    assert ask(output, "mode=benchmark", f"run={wide}", "benchmark.models=[test_resnet]", *words) == 0
    assert "24 × 40" in capsys.readouterr().out
    assert ask(output, "mode=export", f"run={wide}", "export.formats=[hub]", "debug.max_images=60") == 0
    config = read_json(wide / "export/hub/config.json")["pretrained_cfg"]
    assert config["input_size"] == [3, 24, 40]
    assert "Input: RGB, 24 × 40 px" in (wide / "export/hub/README.md").read_text()
    words = ("explain.images=2", "explain.sanity=false", "debug.max_images=60")
    assert ask(output, "mode=explain", f"run={wide}", *words) == 0
    pixels = np.asarray(Image.open(wide / "explain/image-1.png").convert("RGB"))
    assert pixels.shape[0] > 200 and pixels.std() > 20
    assert ask(output, "mode=evaluate", f"run={wide}", "dataset.size=[40,24]") == 2
    assert "was made for 24 × 40 px" in " ".join(capsys.readouterr().err.split())


def test_a_convolutional_network(output: Path) -> None:
    words = ("model.name=resnet10t", "model.args={channels: [8, 8, 16, 16]}")
    run = train(output, *WIDE, *words)
    meta = read_meta(run / "train")
    assert meta.size == [24, 40] and "img_size" not in meta.args
    assert read_json(run / "evaluation/train.json")["n"] > 0


def test_the_map_lies_where_the_view_was_cut(wide: Path) -> None:
    """A mark in the middle of the view is drawn at the middle of the picture, and nothing where the view shows none."""
    from vitlab.modes.explain import _on_picture
    from vitlab.report.saliency_figures import Shown

    meta = read_meta(wide / "train")
    meta.crop_pct, meta.crop = 1.0, "center"
    picture = Image.new("RGB", (120, 120))  # of which the view shows the middle 72 rows
    seen = _seen("it", picture, view_of(meta))
    assert (seen.box.top, seen.box.bottom, seen.box.left, seen.box.right) == pytest.approx((24, 96, 0, 120))
    heat = np.zeros((24, 40), np.float32)
    heat[11:13, 19:21] = 1
    shown = _on_picture(seen, Shown(np.zeros((24, 40, 3), np.uint8), {"mark": heat, "all": heat * 0 + 1}, "", ""))
    rows, columns = np.nonzero(shown.maps["mark"] > 0.5)
    assert shown.maps["mark"].shape == (120, 120)
    assert (rows.mean(), columns.mean()) == pytest.approx((59.5, 59.5), abs=1)
    everywhere = np.nonzero(shown.maps["all"][:, 60] > 0.5)[0]
    assert (everywhere.min(), everywhere.max()) == pytest.approx((24, 95), abs=1)


NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, int] | None]] = {
    "test_vit": ({"patch_size": 8, "img_size": (24, 40)}, (3, 5), (3, 5)),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "img_size": (32, 64)},
        (4, 8),
        (8, 16),
    ),
    "tiny_vit_5m_224": (
        {
            **{"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 1, 1, 2]},
            "window_sizes": [3, 3, 2, 2],
        },
        (4, 6),
        (8, 12),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_and_costs_of_a_wide_network(name: str) -> None:
    args, cam_grid, rollout_grid = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **args).eval()
    size = args.get("img_size", (64, 96))
    image = torch.randn(2, 3, *size)
    assert grad_cam(model, image, torch.tensor([1, 2])).shape == (2, *cam_grid)
    assert attention_rollout(model, image).shape == (2, *(rollout_grid or ()))
    cost = measure_cost(model, list(size), batches=[2], repeats=1, memory=[1])
    assert (
        cost.size == list(size) and cost.params == count_params(model) and cost.memory[0].bytes > 4 * image[0].numel()
    )
    assert measure_throughput(model, size, 2, warmup=0, seconds=0).batches == 1


def test_a_block_on_nhwc_inside_a_network_of_nchw() -> None:
    model = timm.create_model("tiny_vit_5m_224", **NETWORKS["tiny_vit_5m_224"][0])
    assert to_grid(model, torch.zeros(1, 4, 6, 16), "it").shape == (1, 16, 4, 6)
    assert to_grid(model, torch.zeros(1, 16, 4, 6), "it").shape == (1, 16, 4, 6)
    assert to_grid(model, torch.zeros(1, 4, 4, 16), "it").shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=deepmad"], "method=deepmad designs for square images, and dataset.size is 32 × 64 px."),
        (["method=tinyvit", "mode=contract", "model=tiny_vit_digits"], "at square sizes, and dataset.size is 32 × 64"),
        (["method=reinforce", "method.views.variant=center", "method.samples=1"], "variant=center is the square"),
        (["method=supervised", "model.name=test_vit"], "patches of 16 px"),
    ],
)
def test_what_needs_a_square_says_so(
    output: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "dataset.size=[32,60]" if "test_vit" in words[-1] else "dataset.size=[32,64]"
    assert ask(output, *words, "dataset=digits", "debug=smoke", size) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_network_with_two_heads_is_evaluated_and_exported(output: Path, tmp_path: Path) -> None:
    """Distilled DeiT: a list of two classifiers, whose logits timm averages in eval mode."""
    name = "deit_tiny_distilled_patch16_224"
    args: dict[str, Any] = {"embed_dim": 24, "num_heads": 2, "depth": 2}
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10, img_size=32, **args).eval()
    save_file(model.state_dict(), tmp_path / "deit.safetensors")
    words = [f"model.name={name}", f"model.args={args}".replace("'", ""), "dataset=digits", "debug.max_images=60"]
    words += [f"model.checkpoint={tmp_path}/deit.safetensors", "dataset.size=32"]
    assert ask(output, "mode=evaluate", *words) == 0
    assert ask(output, "mode=export", *words, "export.formats=[timm,onnx]") == 0
    (folder,) = (output / "export").glob("*distilled*")
    again = timm.create_model(f"local-dir:{folder}/timm", pretrained=True).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.forward_features(image)
        wanted = (model.head(features[:, 0]) + model.head_dist(features[:, 1])) / 2
        torch.testing.assert_close(again(image), wanted)
