"""What only a GPU can show. Without one these tests are skipped, with a sentence."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vitlab
from tests.contract.story import assert_same, at, run_command, the_run
from vitlab.compose.load import load
from vitlab.data.build import open_splits
from vitlab.distill.views import EvalView
from vitlab.measure.latency_table import HeldOutNetwork, Part, measure_table
from vitlab.models.artifact import read_meta
from vitlab.run.recorder import read_rows
from vitlab.training.learner import Learner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

VIT = (
    "model=vit_small",
    "model.name=vit_tiny_patch16_224",
    "model.args={patch_size:8,embed_dim:48,depth:2,num_heads:2,drop_path_rate:0.1}",
)
WORDS = ("method=supervised", "hardware=gpu", *VIT)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_stopped_and_continued_is_uninterrupted(precision: str, tmp_path: Path) -> None:
    words = (*WORDS, f"trainer.precision={precision}", "recipe.ema=0.9")
    assert run_command(tmp_path / "straight", *words) == 0
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7, signal.SIGTERM):
        assert run_command(tmp_path / "stopped", *words) == 130
    assert run_command(tmp_path / "stopped", *words) == 0
    assert_same(the_run(tmp_path / "straight"), the_run(tmp_path / "stopped"))


def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path) -> None:
    words = (*WORDS, "trainer.precision=32-true", "model.args.drop_path_rate=0")
    losses = {}
    for name in ("cpu", "gpu"):
        assert run_command(tmp_path / name, *words, *(("trainer.accelerator=cpu",) if name == "cpu" else ())) == 0
        rows = read_rows(the_run(tmp_path / name) / "metrics.jsonl")
        losses[name] = [float(str(row["loss"])) for row in rows if "loss" in row]
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=5e-3)  # matrix products round to tf32


def test_the_kept_model_answers_alike_on_both(tmp_path: Path) -> None:
    assert run_command(tmp_path, *WORDS) == 0
    run = the_run(tmp_path)
    model = vitlab.load_model(run / "train")
    meta = read_meta(run / "train")
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
    source = open_splits(load([*WORDS, "dataset=digits"]).config.dataset, 0, 64)["test"]
    image = torch.stack([view(source[position][0]) for position in range(len(source))])
    with torch.inference_mode():
        here, there = model(image), model.cuda()(image.cuda()).cpu()
    assert (here - there).abs().max() < 2e-2
    assert (here.argmax(1) == there.argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("method", ["tinyvit", "reinforce"])
def test_a_teacher_labels_on_a_gpu(method: str, tmp_path: Path) -> None:
    assert run_command(tmp_path, f"method={method}", "hardware=gpu") == 0
    assert (the_run(tmp_path) / "finished.json").exists()


class MLP(nn.Sequential):
    """A block's MLP."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(embed), nn.Linear(embed, hidden), nn.GELU(), nn.Linear(hidden, embed))


def test_a_latency_table_of_a_gpu(tmp_path: Path) -> None:
    """Kernels are waited for: twelve times the products take longer, where they outlast the launches; networks between
    the points are predicted."""

    def tokens(embed: int) -> torch.Tensor:
        return torch.randn(64, 196, embed)

    def mlp(dims: Mapping[str, int]) -> tuple[nn.Module, torch.Tensor]:
        return MLP(dims["embed"], dims["hidden"]), tokens(dims["embed"])

    parts = {"mlp": Part({"embed": (256, 512, 768), "hidden": (256, 1024, 2048, 3072)}, mlp)}
    blocks = [{"embed": 640, "hidden": 1536}, {"embed": 640, "hidden": 2560}]
    held = HeldOutNetwork(blocks, lambda: (nn.Sequential(MLP(640, 1536), MLP(640, 2560)), tokens(640)))
    table = measure_table(
        "MLP", parts, device=torch.device("cuda"), batch=64, held_out=[held], rounds=5, seconds=0.02,
        partial=tmp_path / "partial.json",
    )  # fmt: skip
    grid = table.grids["mlp"]
    assert grid.seconds[-1, -1] > 2 * grid.seconds[-1, 0]
    line = table.seconds({"embed": 512, "hidden": np.linspace(256, 3072, 9)})
    assert (np.diff(line) >= 0).all()
    print(f"{table.conditions.device}: held-out error {table.held_out[0].relative_error:+.1%}, busy {table.busy}")
    assert abs(table.held_out[0].relative_error) < 0.25
