"""Released reinforcements at the prompt: converted, verified, trained from, converted back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitlab.cli import main
from vitlab.compose import load as compose
from vitlab.data.build import open_splits
from vitlab.distill.formats.imagenet_plus import CONFIG, SUFFIX, Pipeline, load, save
from vitlab.distill.reinforce_draw import Reinforcement, sample

SMALL = (
    "method=reinforce",
    "dataset=digits",
    "hardware=cpu",
    "hardware.threads=1",
    "debug=smoke",
    "recipe.batch_size=16",
)
STEPS: dict[str, Any] = {
    "random_resized_crop": {"size": 224},
    "random_horizontal_flip": {"p": 0.5},
    "rand_augment": {"num_ops": 2, "magnitude": 9},
    "random_erase": {"p": 0.25},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set as it is released, for 64 digits."""
    folder = tmp_path_factory.mktemp("released")
    how = {"reinforce": {"num_samples": 3, "image_augmentation": STEPS}}
    save(folder / CONFIG, how)
    config = compose(list(SMALL)).config
    source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
    sizes = [source[i][0].size for i in range(len(source))]
    for image in range(len(source)):
        rng = np.random.default_rng(image)
        samples = []
        for number in range(3):
            drawn = sample(Reinforcement("randaug"), 5, image, number, len(source), lambda i: sizes[i])
            prob = (rng.dirichlet([0.2] * 4) * 0.9).astype(np.float32).tolist()
            samples.append(
                {"params": Pipeline(how, "").params(drawn), "prob": (prob, rng.permutation(10)[:4].tolist())}
            )
        save(folder / f"{image}{SUFFIX}", (image, samples))
    return folder


def test_there_and_back(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    assert main([*SMALL, "mode=convert", f"method.store={released}", f"method.convert_to={packed}"]) == 0
    assert "64 images, 3 samples" in capsys.readouterr().out
    assert main([*SMALL, "mode=verify", f"method.store={packed}"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main([*SMALL, "mode=convert", f"method.store={packed}", f"method.convert_to={again}"]) == 0
    for path in released.iterdir():
        assert load(again / path.name) == load(path)
    assert main([*SMALL, "mode=convert", f"method.store={packed}", f"method.convert_to={again}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_is_missing_is_asked_for(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "mode=convert", f"method.store={released}"]) == 2
    assert "method.convert_to=FOLDER" in capsys.readouterr().err


def test_released_files_are_trained_from_as_they_are(released: Path, tmp_path: Path) -> None:
    words = ("method.erm=false", "export=none", "evaluation.latency=false", f"output={tmp_path}")
    assert main([*SMALL, *words, f"method.store=[{released},{released}]"]) == 0
    assert len(list(tmp_path.glob("*/*/train/model.json"))) == 1
