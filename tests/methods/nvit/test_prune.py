"""The prune stage: killed at any step and continued, split over ranks and micro-batches, ended by its target (A10)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.story import at
from tests.training.test_three_calls import run_stage
from vitlab.compose.load import load
from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.methods.nvit.method import NViT
from vitlab.methods.nvit.prune import PRUNED, RECORD, load_pruned, prune, pruned_structure
from vitlab.models.artifact import ModelMeta, load_model, save_model
from vitlab.models.build import build_model
from vitlab.models.pruning.export import export
from vitlab.run.recorder import Recorder
from vitlab.stage import Context
from vitlab.training.checkpoint import CHECKPOINT, read_done
from vitlab.training.distributed import rank
from vitlab.training.learner import Learner

WORDS = (
    *("method=nvit", "dataset=digits", "hardware=cpu", "hardware.threads=1", "debug.max_images=64"),
    *("model.args.embed_dim=32", "model.args.depth=2", "method.target.latency=null", "method.target.macs=0.1"),
    *("method.target.events=10", "method.prune.interval=2", "method.prune.units_per_event=32"),
    *("recipe.duration=40st", "recipe.batch_size=16", "recipe.checkpoint_every=1st", "recipe.lr=1e-3"),
    *("recipe.validate_every=40st", "evaluation.batch_size=64", "logger.every=5", "method.loss.kl_weight=10"),
)


def configured(*words: str) -> Config:
    return load([*WORDS, *words]).config


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a network with random weights."""
    folder, model = tmp_path_factory.mktemp("dense"), configured().model
    torch.manual_seed(0)
    network = build_model(model, 10, 32)
    meta = ModelMeta(model.name, {**model.args, "img_size": 32}, [str(i) for i in range(10)], 32, [0.3] * 3, [0.4] * 3)
    save_model(folder, network, meta)
    return folder


def run_prune(config: Config, folder: Path, dense: Path) -> None:
    stage = next(one for one in NViT.stages(config) if one.name == "prune")
    recorder = Recorder(folder / "metrics.jsonl") if rank() == 0 else None
    prune(Context(config, stage, {"prune": folder}, recorder), config.method, dense, None, None)
    if recorder is not None:
        recorder.close()


def result(folder: Path) -> dict[str, Any]:
    """Weights and gates as bytes, events, and the rows of the record without clocks."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time", "images_per_second", "data_ms")
    plain = [{name: value for name, value in row.items() if name not in clocks} for row in rows]
    return {"weights": (folder / PRUNED).read_bytes(), "record": (folder / RECORD).read_text(), "rows": plain}


def gates(folder: Path) -> dict[str, list[bool]]:
    return {name: value.tolist() for name, value in load_file(folder / PRUNED).items() if name.startswith("pruning.")}


@pytest.fixture(scope="module")
def straight(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert run_stage(folder, lambda: run_prune(configured(), folder, dense)) == [0]
    return folder


def test_events_prune_exactly_the_groups_of_the_schedule(straight: Path) -> None:
    record = json.loads((straight / RECORD).read_text())
    sizes = {"embedding": 8, "head": 1, "qk": 4, "v": 4, "mlp": 8}
    groups = [sum(len(units) // sizes[axis.rpartition(".")[2]] for axis, units in e["pruned"].items())
              for e in record["events"]]  # fmt: skip
    assert groups == [2] * 10 and [event["step"] for event in record["events"]] == list(range(2, 21, 2))
    assert record["target"]["reached"] == record["events"][-1]["macs"] < 1
    assert record["non_finite"] == 0
    assert read_done(straight / CHECKPOINT).step == 20  # 20 of 40 steps: the tenth event ends the training
    rows = [row for row in result(straight)["rows"] if "prune_macs" in row]
    assert [row["prune_macs"] for row in rows] == [event["macs"] for event in record["events"]]
    assert {path.name for path in straight.glob("*.png")} >= {"structure.png", "events.png"}
    assert len((straight / "events.csv").read_text().splitlines()) == 11


def test_pruned_weights_stay_zero_and_the_export_is_the_masked_network(straight: Path, dense: Path) -> None:
    masked = load_pruned(straight, load_model(dense)).eval()
    found = export(masked)
    assert found.structure == pruned_structure(straight) and found.difference < 1e-5
    assert sum(p.numel() for p in found.model.parameters()) < sum(p.numel() for p in load_model(dense).parameters())


@pytest.mark.parametrize("step", [3, 4, 13])  # between two events; of an event; after several
def test_killed_and_continued_to_the_same_bits(step: int, straight: Path, dense: Path, tmp_path: Path) -> None:
    def killed() -> None:
        with at(Learner, "after_step", lambda learner: learner.step + 1 == step, signal.SIGKILL):
            run_prune(configured(), tmp_path, dense)

    assert run_stage(tmp_path, killed) == [-signal.SIGKILL]
    assert read_done(tmp_path / CHECKPOINT).step == step - 1
    assert run_stage(tmp_path, lambda: run_prune(configured(), tmp_path, dense)) == [0]
    assert result(tmp_path) == result(straight)


def test_ranks_and_micro_batches_close_the_same_gates(straight: Path, dense: Path, tmp_path: Path) -> None:
    expected = gates(straight)
    assert not all(all(gate) for gate in expected.values())
    for name, processes, words in (
        ("ranks", 2, ("hardware=ddp_cpu", "hardware.threads=1")),
        ("parts", 1, ("recipe.accumulate=2",)),
    ):
        config, folder = configured(*words), tmp_path / name
        assert run_stage(folder, lambda c=config, f=folder: run_prune(c, f, dense), processes) == [0] * processes  # type: ignore[misc]
        assert gates(folder) == expected, name


def test_a_met_target_ends_the_training_on_all_ranks(dense: Path, tmp_path: Path) -> None:
    config = configured("method.target.macs=0.9", "method.target.events=null", "hardware=ddp_cpu", "hardware.threads=1")
    assert run_stage(tmp_path, lambda: run_prune(config, tmp_path, dense), 2) == [0, 0]
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["target"]["reached"] <= 0.9 and record["events"][-1]["step"] < 40
    assert all(event["macs"] > 0.9 for event in record["events"][:-1])


def test_an_unreachable_target_is_refused_before_training(dense: Path, tmp_path: Path) -> None:
    config = configured("method.target.macs=0.001")
    with pytest.raises(UserError, match=r"target\.macs=0\.001 cannot be reached: .* still costs 0\.\d+"):
        run_prune(config, tmp_path, dense)
    assert not (tmp_path / CHECKPOINT).exists()


def test_an_official_event_that_prunes_nothing_ends_nothing(dense: Path, tmp_path: Path) -> None:
    """Places of the ranking go to groups that must stay; the training goes on to its length."""
    words = (
        "method.compat=official",
        "method.prune.interval=1",
        "method.prune.divisor=32",
        "method.target.events=null",
    )
    assert run_stage(tmp_path, lambda: run_prune(configured(*words), tmp_path, dense)) == [0]
    events = json.loads((tmp_path / RECORD).read_text())["events"]
    empty = [event["number"] for event in events if not event["pruned"]]
    assert empty and empty[0] < len(events)
