"""debug=: batches from a small number of images, the timing of a step, memorising a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.contract.story import TEACHER, the_run
from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.distill.sparse import sparsify
from vitlab.tasks.classification import Classification
from vitlab.training.objectives import distillation, label_cross_entropy
from vitlab.training.overfit import Overfit, perfect
from vitlab.training.profile import REST, part_of

TASK = Classification()
WORDS = (
    "dataset=digits",
    "hardware=cpu",
    "hardware.threads=1",
    "export=none",
    "report.figures=false",
    "evaluation=quick",
)


def run_command(output: Path, *words: str, method: str = "supervised") -> Path:
    torch.set_num_threads(1)
    assert main([*WORDS, f"method={method}", "evaluation.latency=false", f"output={output}", *words]) == 0
    return the_run(output)


def test_few_images_make_small_batches() -> None:
    paper = ["experiment=tinyvit_21m_distill", "dataset=fake"]
    assert load(paper).config.recipe.batch_size > 64
    smoke = load([*paper, "debug=smoke", "recipe.accumulate=4"])
    assert smoke.config.recipe.batch_size == 64 and smoke.tree["recipe"]["batch_size"] > 64
    teacher = load(["debug=smoke", "debug.max_images=20"]).config.teacher.recipe
    assert teacher is not None and teacher.batch_size == 20
    assert load(["debug=smoke", "recipe.batch_size=16"]).config.recipe.batch_size == 16


def test_a_profile_says_where_the_time_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("debug=profile", "debug.profile=6", "debug.max_steps=16", "debug.max_images=96", "recipe.batch_size=16")
    run = run_command(tmp_path, *words, *TEACHER, "method.baseline=false", method="tinyvit")
    output = capfd.readouterr().err
    assert "ms a batch on cpu (mean of 6)" in output and "USDT" not in output
    labelling = json.loads((run / "store" / "profile" / "profile.json").read_text())
    assert list(labelling["ms"]) == ["data", "teacher", "writing", "sealing"] and labelling["batches"] > 0
    assert all(value > 0 for value in labelling["ms"].values()) and "\nstore: " in output
    folder = run / "pretrain" / "profile"
    found = json.loads((folder / "profile.json").read_text())
    assert found["batches"] == 6
    assert {"data", "forward and loss", "backward", "optimiser", "logging"} <= set(found["ms"])
    assert all(value > 0 for value in found["ms"].values())
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    scopes = {str(event.get("name", "")).partition(":")[0] for event in events}
    assert {"data", "forward and loss", "backward", "optimiser"} <= scopes
    assert sum(str(event.get("name")).startswith("forward and loss") for event in events) >= 5
    assert "aten::" in (folder / "operators.txt").read_text()


def test_an_action_counts_for_one_part() -> None:
    assert part_of("[_TrainingEpochLoop].train_dataloader_next") == "data"
    assert part_of("[Strategy]SingleDeviceStrategy.training_step") == "forward and loss"
    assert part_of("[LightningModule]Learner.on_before_optimizer_step") == "optimiser"
    assert part_of("[Callback]RecordAndCheckpoint.on_train_batch_end") == "logging"
    assert part_of("run_training_batch") == REST


def test_a_network_learns_a_few_images_by_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_command(tmp_path, "debug=overfit", "debug.max_steps=80", "recipe.lr=2e-3")
    found = json.loads((run / "train" / "overfit.json").read_text())
    assert found["first"] > 1 and found["last"] < 0.05 and 5 < found["reached"] <= 80
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("train: OVERFITS, as it should: ")


def test_the_verdict_on_a_network_that_does_not_learn(tmp_path: Path) -> None:
    one = Overfit("train", tmp_path, 0.05, 10, TASK)
    one.first, one.last = 2.3, 2.2
    assert one.verdict().startswith("DOES NOT OVERFIT: 2.300 → 2.2000") and "recipe.lr" in one.verdict()


def test_the_smallest_loss_is_that_of_a_network_that_says_its_target() -> None:
    label = torch.tensor([1, 0, 3])
    assert float(label_cross_entropy(TASK.perfect(label, 5), label)["loss"]) < 1e-9
    prob = torch.softmax(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), 1)
    entropy = float(-(prob * prob.log()).sum(1).mean())
    assert float(distillation(perfect(prob), label, prob)["loss"]) == pytest.approx(entropy, rel=1e-5)
    subset = sparsify(prob, 2)
    least = float(distillation(perfect(subset), label, subset)["loss"])
    for shift in 0.01, -0.01:
        moved = perfect(subset) + shift * torch.arange(5.0)
        assert float(distillation(moved, label, subset)["loss"]) > least
