"""What a stage may bring to a training: a network, callbacks with state, an early end, teachers, an objective.

One small stage has all of it at once: a network with two heads, two frozen teachers whose weight changes with the step,
repeated augmentation, gradient accumulation, a callback that collects gradients, puts the student into eval mode and
ends the training. It runs in one process and in two, uninterrupted and killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from tests.contract.story import at, before
from tests.contract.together import become_rank, wait_for_all
from tests.shared import skip_where_torch_is_not_forked
from vitlab.compose.load import load
from vitlab.config import Config, ModelConfig
from vitlab.data.batch import Batch
from vitlab.data.datamodule import VisionData
from vitlab.data.views import FreshViews
from vitlab.distill.sparse import SparseTarget, soft_cross_entropy
from vitlab.launch import stages
from vitlab.launch.start import find_run
from vitlab.methods.base import Method, stage
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.build import build_model
from vitlab.run.recorder import Recorder, read_rows
from vitlab.stage import Context, Stage
from vitlab.training.build import make_data
from vitlab.training.checkpoint import CHECKPOINT, Done, read_done
from vitlab.training.distributed import rank
from vitlab.training.learner import Learner
from vitlab.training.objectives import StepObjective, label_cross_entropy
from vitlab.training.schedule import Schedule
from vitlab.training.train import Training, prepare, train_on_labels

WORDS = (
    *("method=supervised", "dataset=digits", "hardware=cpu", "hardware.threads=1", "debug=smoke", "logger.every=3"),
    *("debug.max_images=80", "debug.max_steps=12", "recipe.batch_size=16", "recipe.optimizer=sgd", "recipe.lr=0.05"),
    *("recipe.checkpoint_every=2st", "recipe.accumulate=2", "recipe.clip=0.01", "evaluation.batch_size=32"),
)
VIT = ModelConfig(
    name="vit_tiny_patch16_224", args={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
)
STAGE = Stage("prune", (), (), "model", "pruned", "student", None)
END = 9  # steps, of 12


def configured(*words: str) -> Config:
    """:data:`WORDS` with ``words`` in place of those of the same keys."""
    given = {word.partition("=")[0] for word in words}
    return load([*(word for word in WORDS if word.partition("=")[0] not in given), *words]).config


class TwoHeads(nn.Module):
    """Logits of both heads in training, their mean in evaluation, as a distilled DeiT."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.head, self.head_dist = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.drop(self.body(image))
        first, second = self.head(x), self.head_dist(x)
        return (first, second) if self.training else (first + second) / 2


class Distil(StepObjective):
    """The labels for the first head, both teachers for the second, whose share grows with the step."""

    def __call__(
        self, output: Any, batch: Batch, targets: Mapping[str, SparseTarget | Tensor], step: int
    ) -> dict[str, Tensor]:
        assert sorted(targets) == ["new", "old"]
        first, second = output if isinstance(output, tuple) else (output, output)
        hard = F.cross_entropy(first, batch.label)
        soft = torch.stack([soft_cross_entropy(second, target) for target in targets.values()]).mean()
        share = torch.tensor(step / 12)
        return {"loss": (1 - share) * hard + share * soft, "hard": hard, "share": share}


class Gates(Callback):
    """Sums the squared gradient of a head, has an event every fourth step, ends the training after step ``END``."""

    def __init__(self, end: int | None = END) -> None:
        self.end = end
        self.gates = torch.zeros(10, 16)
        self.events = 0
        self.norms: list[float] = []
        self.seeds: list[int] = []  # of the generator of each batch, on this rank

    def state_dict(self) -> dict[str, Any]:
        return {"gates": self.gates, "events": self.events, "norms": self.norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.gates, self.events, self.norms = (state_dict[name] for name in ("gates", "events", "norms"))

    def on_before_optimizer_step(self, trainer: L.Trainer, learner: L.LightningModule, optimizer: Any) -> None:
        assert isinstance(learner, Learner) and isinstance(learner.student, TwoHeads)
        gradient = learner.student.head.weight.grad
        assert gradient is not None and gradient.dtype == torch.float32
        self.gates = self.gates + gradient.square()
        parts = [p.grad for p in learner.student.parameters() if p.grad is not None]
        self.norms = [*self.norms, float(torch.cat([part.ravel() for part in parts]).norm())]

    def on_train_batch_end(self, trainer: L.Trainer, learner: L.LightningModule, *_: object) -> None:
        assert isinstance(learner, Learner)
        self.seeds.append(torch.initial_seed())
        if self.end is None or not learner.completes_step:
            return
        assert len(self.norms) == learner.step + 1  # called before the step is counted
        if (learner.step + 1) % 4 == 0:
            self.events += 1
            learner.student_eval = True
        if learner.step + 1 == self.end and rank() == trainer.world_size - 1:  # the other ranks do not know yet
            learner.finished = True


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two artifacts of networks that were not trained."""
    found = {}
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        found[name] = tmp_path_factory.mktemp(name)
        meta = ModelMeta(VIT.name, VIT.args, [str(i) for i in range(10)], 32, [0.3] * 3, [0.4] * 3)
        save_model(found[name], build_model(VIT, 10, 32), meta)
    return found


def prune(
    config: Config, folder: Path, teachers: dict[str, Path], dropout: float = 0.5, full_config: Config | None = None
) -> dict[str, object]:
    """The stage."""
    recorder = Recorder(folder / "metrics.jsonl") if rank() == 0 else None
    context = Context(config, STAGE, {"prune": folder}, recorder, full_config)
    training = prepare(
        context,
        config.model,
        config.recipe,
        FreshViews(repeats=3),
        objective=Distil(),
        teachers=teachers,
        network=lambda data: TwoHeads(dropout),
    )
    training.learner.can_finish = True
    training.learner.student_eval = not dropout
    gates = Gates()
    training.run([gates])
    record = training.save(replace(training.meta, name="two_heads", args={}))
    (folder / f"seeds_{rank()}.txt").write_text("\n".join(map(str, gates.seeds)))
    if recorder is not None:
        torch.save(gates.state_dict(), folder / "gates.pt")
        recorder.close()
    return record


def run_stage(folder: Path, stage: Callable[[], object], processes: int = 1) -> list[int]:
    """Run ``stage`` in forked processes that work together; their exit codes."""
    skip_where_torch_is_not_forked()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                become_rank(number, processes, port)
                if processes > 1:
                    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
                stage()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return wait_for_all(children)


def learned(folder: Path) -> dict[str, Any]:
    """Weights, the callback's state and the record without clocks."""
    clocks = ("time", "images_per_second", "data_ms")
    rows = [{k: v for k, v in row.items() if k not in clocks} for row in read_rows(folder / "metrics.jsonl")]
    state = torch.load(folder / "gates.pt", weights_only=True)
    weights = (folder / "model.safetensors").read_bytes()
    return {"weights": weights, "gates": state.pop("gates").tolist(), **state, "rows": rows}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_of_its_own_ends_early_and_continues_bit_for_bit(
    processes: int, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """Killed in mid-training between two checkpoints, and once more between the last step and the artifact."""
    words = ("hardware=ddp_cpu", "hardware.threads=1") if processes > 1 else ()
    config = configured(*words)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_stage(straight, lambda: prune(config, straight, teachers), processes) == [0] * processes
    found = learned(straight)
    assert [row["step"] for row in found["rows"] if "loss" in row] == [3, 6, 9]
    assert (found["events"], len(found["norms"])) == (2, END)
    assert [row["share"] for row in found["rows"] if "loss" in row] == pytest.approx([1 / 12, 4 / 12, 7 / 12])
    seeds = [seed for path in straight.glob("seeds_*.txt") for seed in path.read_text().split()]
    assert len(set(seeds)) == len(seeds) == 2 * END * processes  # every batch of every rank draws its own dropout
    assert read_done(straight / CHECKPOINT) == Done(END, finished=True)
    state = torch.load(straight / CHECKPOINT, weights_only=True)
    assert state["learner"] == {"step": END, "student_eval": True, "finished": True}

    def killed_in_mid_training() -> None:
        with at(Learner, "after_step", lambda learner: learner.step + 1 == 7, signal.SIGKILL):
            prune(config, broken, teachers)

    def killed_before_the_artifact() -> None:
        with at(Training, "save", lambda *_: True, signal.SIGKILL):
            prune(config, broken, teachers)

    def trains_on() -> None:
        raise AssertionError("the training was over")

    def continued() -> None:
        with before(L.Trainer, "fit", lambda *_, **__: True, trains_on):
            prune(config, broken, teachers)

    assert set(run_stage(broken, killed_in_mid_training, processes)) == {-signal.SIGKILL}
    assert read_done(broken / CHECKPOINT) == Done(6)
    assert set(run_stage(broken, killed_before_the_artifact, processes)) == {-signal.SIGKILL}
    assert not (broken / "model.safetensors").exists()
    assert run_stage(broken, continued, processes) == [0] * processes
    assert learned(broken) == found


def test_callbacks_see_the_gradient_of_the_global_batch_before_it_is_clipped(
    teachers: dict[str, Path], tmp_path: Path
) -> None:
    """The same to 1e-5 for any number of ranks and micro-batches, in a student that is in eval mode from the start
    (BatchNorm's statistics are those of a part of the batch)."""
    found = {}
    for name, processes, words in (
        ("batch", 1, ("recipe.accumulate=1",)),
        ("parts", 1, ()),
        ("ranks", 2, ("hardware=ddp_cpu", "hardware.threads=1")),
        ("rounded", 1, ("trainer.precision=bf16-mixed",)),
    ):
        config, folder = configured(*words), tmp_path / name
        assert run_stage(folder, lambda c=config, f=folder: prune(c, f, teachers, 0.0), processes) == [0] * processes  # type: ignore[misc]
        found[name] = learned(folder)
    batch = found["batch"]
    assert min(batch["norms"]) > 0.01  # recipe.clip
    assert [row["gradient_norm"] for row in batch["rows"] if "loss" in row] == pytest.approx(batch["norms"][2::3])
    for name in ("parts", "ranks"):
        torch.testing.assert_close(torch.tensor(found[name]["gates"]), torch.tensor(batch["gates"]), rtol=1e-4, atol=0)
        assert found[name]["norms"] == pytest.approx(batch["norms"], rel=1e-5)
    assert found["rounded"]["norms"] == pytest.approx(batch["norms"], rel=0.1)


def test_the_gradient_that_a_callback_sees_is_not_scaled() -> None:
    """fp16 training multiplies the loss by 65,536 at first; the hook comes after the division."""
    seen = []
    for precision in (None, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))):
        torch.manual_seed(0)
        learner = Learner(TwoHeads(0.0), label_cross_entropy, Schedule("constant", 0.1, 2), sgd)
        rows = torch.arange(8)
        batches = [Batch(torch.randn(8, 3, 32, 32), rows % 10, rows, rows) for _ in range(2)]
        gates = Gates(end=None)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[gates], plugins=[precision] if precision else None,
        )  # fmt: skip
        trainer.fit(learner, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        seen.append(gates.norms)
    assert seen[1] == pytest.approx(seen[0], rel=0.02) and len(seen[0]) == 2


def test_a_rehearsal_runs_the_callbacks(teachers: dict[str, Path], tmp_path: Path) -> None:
    config = configured()
    record = prune(config, tmp_path, teachers, full_config=config)
    assert len(torch.load(tmp_path / "gates.pt", weights_only=True)["norms"]) == 3
    assert record["steps"] == 12 and float(str(record["seconds"])) > 0
    assert not (tmp_path / "views.png").exists()


def test_an_early_end_must_be_announced(tmp_path: Path) -> None:
    config = configured("recipe.accumulate=1")
    context = Context(config, STAGE, {"prune": tmp_path}, Recorder(tmp_path / "metrics.jsonl"))
    training = prepare(context, config.model, config.recipe, network=lambda data: TwoHeads(0.0))
    with pytest.raises(RuntimeError, match="can_finish"):
        training.run([Gates(end=2)])


def test_a_checkpoint_of_an_older_vitlab_goes_on(tmp_path: Path) -> None:
    torch.save(
        {"learner": {"step": 7}, "state_dict": {}, "optimizer_states": [], "callbacks": {}}, tmp_path / "old.ckpt"
    )
    assert read_done(tmp_path / "old.ckpt") == Done(7, finished=False)
    learner = Learner(TwoHeads(0.0), label_cross_entropy, Schedule("constant", 0.1, 9), sgd)
    learner.accumulate = 2
    learner.on_load_checkpoint(torch.load(tmp_path / "old.ckpt", weights_only=True))
    assert (learner.step, learner.batches, learner.finished, learner.student_eval) == (7, 14, False, False)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1)


def test_a_distilled_deit_trains_on_labels_with_the_mean_of_its_heads(tmp_path: Path) -> None:
    """As timm's own average of the heads, which the network gives where it was not set to distilled training."""
    config = configured("debug.max_steps=3")
    model = ModelConfig("deit_tiny_distilled_patch16_224", args=VIT.args)
    found = []
    for distilled in (True, False):
        folder = tmp_path / str(distilled)
        folder.mkdir()
        context = Context(config, STAGE, {"prune": folder}, Recorder(folder / "metrics.jsonl"))
        training = prepare(context, model, config.recipe)
        network: Any = training.network
        network.set_distilled_training(distilled)
        assert isinstance(network.train()(torch.zeros(2, 3, 32, 32)), tuple) == distilled
        training.run()
        training.save()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        numbers = [[row.get(name) for name in ("loss", "train_accuracy", "val_top1", "val_nll")] for row in rows]
        found.append(((folder / "model.safetensors").read_bytes(), numbers))
    assert found[0] == found[1]


class Measured(Method):
    """A table that one process measures, and a stage of all."""

    @stage(makes="report", alone=True)
    def table(self, context: Context) -> dict[str, object]:
        (context.folder / f"rank{rank()}").touch()
        return {}

    @stage(needs=("table",), makes="report")
    def read(self, context: Context) -> dict[str, object]:
        assert [path.name for path in context.artifact("table").glob("rank*")] == ["rank0"]
        (context.folder / f"rank{rank()}").touch()
        return {}


def test_a_stage_that_only_rank_0_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_method", lambda name: Measured)
    words = [word for word in WORDS if not word.startswith("hardware")]
    composed = load([*words, "hardware=ddp_cpu", f"output={tmp_path}"])
    run = find_run(composed)
    run.lock("test")
    try:
        assert run_stage(run.folder, lambda: stages.run_stages(run, composed.config), 2) == [0, 0]
    finally:
        run.release()
    assert [path.name for path in sorted(run.folder.glob("*/rank*"))] == ["rank0", "rank1", "rank0"]
    assert run.is_done("table") and run.is_done("read")


def test_outputs_that_are_no_logits_are_named() -> None:
    learner = Learner(TwoHeads(0.0), label_cross_entropy, Schedule("constant", 0.1, 9), sgd)
    with pytest.raises(TypeError, match="StepObjective"):
        learner.logits((torch.zeros(2, 10), torch.zeros(2, 4, 16)))


def test_a_student_in_eval_mode_learns_without_noise_and_without_stale_tables() -> None:
    """TinyViT keeps a table of attention biases in eval mode, which a training step would leave behind."""
    config = load(["dataset=digits"]).config
    student = build_model(replace(config.model, args=config.model.args | {"drop_path_rate": 0.5}), 10, 32)
    learner = Learner(student, label_cross_entropy, Schedule("constant", 0.1, 9), sgd)
    learner.student_eval = True
    image, label = torch.randn(4, 3, 32, 32), torch.arange(4)
    optimizer = sgd(student)
    before_training = {name: value.clone() for name, value in student.named_buffers()}
    losses = []
    student.train()
    for _ in range(3):
        learner._freeze()
        assert not any(m.training for m in student.modules() if isinstance(m, (nn.BatchNorm2d, nn.Dropout)))
        first, second = student(image), student(image)
        assert first.equal(second)
        loss = label_cross_entropy(first, label)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(value.equal(before_training[name]) for name, value in student.named_buffers())
    assert any("attention_biases" in name and p.grad is not None for name, p in student.named_parameters())


def test_repeats_are_different_views_of_one_image() -> None:
    config = load(["dataset=digits", "recipe.augmentation.crop_scale=[0.3,1.0]"]).config
    data: VisionData = make_data(config, config.recipe, (0.5,) * 3, (0.5,) * 3, FreshViews(repeats=3))
    batch = next(iter(data.train_loader(0, 1)))
    assert batch.index[:3].unique().numel() == 1 and batch.slot[:3].tolist() == [0, 1, 2]
    assert not batch.image[0].equal(batch.image[1]) and not batch.image[1].equal(batch.image[2])


def test_labels_alone_need_no_objective(tmp_path: Path) -> None:
    """``recipe.label_smoothing`` is in the loss."""
    losses = []
    for smoothing in (0.0, 0.5):
        config = configured("debug.max_steps=1", f"recipe.label_smoothing={smoothing}")
        folder = tmp_path / str(smoothing)
        folder.mkdir()
        context = Context(config, STAGE, {"prune": folder}, Recorder(folder / "metrics.jsonl"))
        train_on_labels(context, VIT, config.recipe)
        losses.append(next(float(str(row["loss"])) for row in read_rows(folder / "metrics.jsonl") if "loss" in row))
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
