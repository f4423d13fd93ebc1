"""What a training step costs beyond the arithmetic: vitlab's training against a bare PyTorch loop.

Same model, data, optimiser, schedule, clipping and precision; the two alternate, so that a machine whose speed drifts
slows both. Run as a script for the table; the test holds that both end at the same weights.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlab.config import AugmentationConfig, Config, DatasetConfig, LoggerConfig, RecipeConfig, TrainerConfig
from vitlab.data.batch import Batch
from vitlab.models.artifact import ModelMeta
from vitlab.run.recorder import Recorder
from vitlab.stage import Context, Stage
from vitlab.training.build import make_optimizer
from vitlab.training.learner import Learner
from vitlab.training.objectives import label_cross_entropy
from vitlab.training.schedule import Schedule
from vitlab.training.train import Training

RECIPE = RecipeConfig(
    duration="1ep",
    batch_size=32,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    clip=1.0,
    validate_every="1000ep",
    checkpoint_every="1000ep",
    augmentation=AugmentationConfig(),
)


class InMemory:
    """Batches that are there already: nothing but the step is timed."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.steps_per_epoch = len(batches)
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.train_sampler = None

    def val_dataloader(self) -> None:
        """Nothing to validate on."""

    def train_loader(self, start: int, stop: int) -> torch.utils.data.DataLoader[Batch]:
        chosen = [self.batches[i % len(self.batches)] for i in range(start, stop)]
        return torch.utils.data.DataLoader(chosen, batch_size=None)  # type: ignore[arg-type]  # a list is map-style


def make_batches(count: int, width: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(32)
    return [Batch(torch.randn(32, width, generator=generator), rows % 10, rows, rows * 0) for _ in range(count)]


def make_network(width: int, hidden: int, depth: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.GELU()]
    for _ in range(depth):
        layers += [nn.Linear(hidden, hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


def bare_loop(network: nn.Module, batches: list[Batch], schedule: Schedule) -> float:
    """What one would write by hand; seconds a step."""
    optimizer = make_optimizer(network, RECIPE)
    network.train()
    start = time.thread_time()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        loss = nn.functional.cross_entropy(network(batch.image), batch.label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return (time.thread_time() - start) / len(batches)


def vitlab_fit(network: nn.Module, batches: list[Batch], schedule: Schedule) -> float:
    """The same through Learner and fit, record included; seconds a step, without building the Trainer.

    The first step waits for Lightning to set up, so steps are timed between the hooks of the first and the last.
    """
    config = Config(
        dataset=DatasetConfig(name="none", size=1, mean=[0.5] * 3, std=[0.5] * 3),
        trainer=TrainerConfig(accelerator="cpu"),
        logger=LoggerConfig(every=20),
    )
    learner = TimedLearner(network, partial(label_cross_entropy, smoothing=0.0), schedule, _optimizer, clip=1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "views.png").touch()  # nothing is drawn
        stage = Stage("bench", (), (), "model", "bench", "student", None)
        context = Context(config, stage, {"bench": folder}, Recorder(folder / "metrics.jsonl"))
        data: Any = InMemory(batches)  # only what a training reads of its data
        meta = ModelMeta("none", {}, [], 1, [0.5] * 3, [0.5] * 3)
        Training(context, RECIPE, network, data, learner, meta, len(batches), 32 * len(batches)).run()
    return (learner.stamps[-1] - learner.stamps[0]) / (len(learner.stamps) - 1)


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(network, RECIPE)


class TimedLearner(Learner):
    """Notes when each step begins."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.stamps: list[float] = []
        self.stamps.append(time.thread_time())
        super().on_train_batch_start(batch, batch_idx)


def measure(width: int, hidden: int, depth: int, steps: int, rounds: int) -> tuple[float, float]:
    """Median CPU seconds a step of both, bare first."""
    batches = make_batches(steps, width)
    schedule = Schedule("cosine", 1e-3, total=steps)
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(bare_loop(make_network(width, hidden, depth), batches, schedule))
        ours.append(vitlab_fit(make_network(width, hidden, depth), batches, schedule))
    return statistics.median(bare), statistics.median(ours)


def test_fit_and_bare_loop_learn_the_same_weights() -> None:
    batches, schedule = make_batches(12, 8), Schedule("cosine", 1e-3, total=12)
    one, other = make_network(8, 16, 1), make_network(8, 16, 1)
    bare_loop(one, batches, schedule)
    vitlab_fit(other, batches, schedule)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'step':<24}{'bare loop':>12}{'vitlab':>12}{'ratio':>8}{'overhead':>12}")
    for name, sizes, steps in (("trivial (80 weights)", (7, 4, 0), 400), ("about 50 ms", (768, 1024, 6), 60)):
        bare, ours = measure(*sizes, steps, rounds=5)
        row = f"{1e3 * bare:>9.2f} ms{1e3 * ours:>9.2f} ms{ours / bare:>8.2f}{1e3 * (ours - bare):>9.2f} ms"
        print(f"{name:<24}{row}")


if __name__ == "__main__":
    main()
