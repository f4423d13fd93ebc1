"""BatchNorm of a finetuned network keeps its running statistics, also after a validation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from vitlab.compose.load import load
from vitlab.methods.base import Context, Stage
from vitlab.models.artifact import load_model
from vitlab.run.recorder import Recorder
from vitlab.training.objectives import label_cross_entropy
from vitlab.training.train import train

WORDS = (
    "method=tinyvit", "dataset=digits", "hardware=cpu", "hardware.threads=1", "debug=smoke", "debug.max_steps=6",
    "recipe.batch_size=16", "recipe.validate_every=2st", "recipe.lr=1e-2", "recipe.warmup=0st",
)  # fmt: skip


def trained(folder: Path, *words: str, start: Path | None = None) -> dict[str, torch.Tensor]:
    config = load([*WORDS, *words]).config
    stage = Stage("labels", (), (), "model", "student", "student", None)
    folder.mkdir()
    context = Context(config, stage, {"labels": folder}, Recorder(folder / "metrics.jsonl"))
    train(context, config.model, config.recipe, partial(label_cross_entropy, smoothing=0.0), start=start)
    return load_model(folder).state_dict()


@pytest.mark.parametrize("frozen", [False, True])
def test_batchnorm_keeps_its_statistics_and_learns_its_scale(tmp_path: Path, frozen: bool) -> None:
    """Six steps, validated after every second one."""
    before = trained(tmp_path / "before")
    after = trained(tmp_path / "after", f"recipe.freeze_batchnorm={frozen}", start=tmp_path / "before")
    moved = {name for name in after if not after[name].equal(before[name])}
    statistics = {name for name in after if ".bn.running_" in name or name.endswith("num_batches_tracked")}
    assert statistics and bool(statistics & moved) == (not frozen)
    assert {name for name in after if name.endswith("bn.weight")} <= moved
