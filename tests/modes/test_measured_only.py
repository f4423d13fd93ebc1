"""Data that are there to be measured on alone, without training images: val/ of ImageNet, test/ of a user's folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.modes.conftest import ask
from vitlab.data.sets.imagenet import wordnet_ids
from vitlab.files import read_json

SHAPE = {"patch_size": "8", "embed_dim": "32", "depth": "1", "num_heads": "2"}
NETWORK = ("model=vit_small", "model.name=vit_tiny_patch16_224", *(f"model.args.{k}={v}" for k, v in SHAPE.items()))
FAST = ("evaluation=quick", "evaluation.resamples=0")


def noise(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def test_imagenet_with_nothing_but_val(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The thousand classes, an image of each; a network of random weights must say something of them."""
    args = {name: int(value) for name, value in SHAPE.items()}
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=1000, **args)  # type: ignore[arg-type]
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    noise(*(tmp_path / "in1k" / "val" / name / "x.JPEG" for name in wordnet_ids()))
    words = (*NETWORK, f"model.checkpoint={tmp_path / 'weights.safetensors'}", "dataset=imagenet", "dataset.size=32")
    assert ask(output, "mode=evaluate", *words, f"dataset.root={tmp_path / 'in1k'}", *FAST) == 0
    text = capsys.readouterr().out
    assert "imagenet, val split, 1,000 images" in text
    record = read_json(next((output / "evaluate").glob("vit_tiny*imagenet*/dataset.json")))
    assert (record["train"], record["test"], len(record["classes"])) == (0, 1000, 1000)
    assert ask(output, "method=supervised", *words[:-2], "dataset=imagenet", f"dataset.root={tmp_path / 'in1k'}") == 2
    assert "no train split, only val" in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_nothing_but_test(
    run: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = json.loads((run / "train" / "model.json").read_text())["classes"]
    noise(*(tmp_path / "test" / name / f"{i}.png" for name in classes[:4] for i in range(3)))
    words = (f"run={run}", "dataset=folder", f"dataset.root={tmp_path}")
    assert ask(output, "mode=evaluate", *words, *FAST) == 0
    assert f"{tmp_path.name}, test split, 12 images" in capsys.readouterr().out
    robust = ("evaluation=robust", "evaluation.resamples=0", "evaluation.latency=false", "evaluation.severities=[1]")
    assert ask(output, "mode=evaluate", *words, *robust, "evaluation.corruptions=[fog]") == 0
    assert "fog" in capsys.readouterr().out
