"""What a logger costs a training step, beside a step of the demo's student.

A step's share is what handing over one record costs, divided by ``logger.every``. Rows are handed to every logger in
turn, in rounds, so that a machine whose speed drifts slows all alike. CPU time is that of this process, all its
threads, and of the processes it started (W&B has one of its own). Run as a script for the table; the test holds that
every logger received every row.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from vitlab.compose.load import load
from vitlab.data.batch import Batch
from vitlab.methods.base import find_method
from vitlab.models.build import build_model
from vitlab.run.recorder import Recorder, read_rows
from vitlab.run.run import Run
from vitlab.training.build import make_optimizer
from vitlab.training.loggers import logging_to
from vitlab.training.objectives import label_cross_entropy

LOGGERS = ("local", "csv", "tensorboard", "wandb")
VALUES = ("loss", "teacher_accuracy", "train_accuracy", "lr", "gradient_norm", "images_per_second", "data_share")


def cpu_seconds() -> float:
    """CPU time of this process and of those it started, which Linux's /proc knows while they live."""
    used = time.process_time()
    tick = os.sysconf("SC_CLK_TCK")
    me, todo = str(os.getpid()), [str(os.getpid())]
    parents: dict[str, list[tuple[str, float]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(fields[1], []).append((path.parent.name, (int(fields[11]) + int(fields[12])) / tick))
    while todo:
        for child, seconds in parents.get(todo.pop(), []):
            used += seconds if child != me else 0
            todo.append(child)
    return used


def measure(rows: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """CPU seconds for handing over one record, a number for each round, under each logger."""
    spent: dict[str, list[float]] = {name: [] for name in LOGGERS}
    with ExitStack() as stack:
        recorders: dict[str, Recorder] = {}
        for name in LOGGERS:
            composed = load(["method=supervised", f"logger={name}", f"output={folder}"])
            run = Run(folder / name, {"tree": composed.tree})
            recorders[name] = run.recorder()
            stages = find_method("supervised").stages(composed.config)
            config = replace(composed.config, logger=replace(composed.config.logger, offline=True))
            stack.enter_context(logging_to(config, run, stages, stages[0], recorders[name]))
        for number in range(rounds + 1):
            for name in LOGGERS:
                seconds = timed(lambda: write(recorders[name], rows, number), drain=name == "wandb")  # noqa: B023
                if number:  # the first round warms up
                    spent[name].append(seconds / rows)
    return spent


def write(recorder: Recorder, rows: int, number: int) -> None:
    for row in range(rows):
        step = number * rows + row
        recorder.write(stage="train", step=step, **{name: step / 7 + place for place, name in enumerate(VALUES)})


def timed(work: Callable[[], None], drain: bool) -> float:
    """CPU seconds of ``work``; where another process does some of it, until that is idle again."""
    before = cpu_seconds()
    work()
    after = cpu_seconds()
    while drain:
        time.sleep(0.3)
        now = cpu_seconds()
        if now - after < 0.02:
            return now - before
        after = now
    return after - before


def demo_step(steps: int) -> float:
    """Median CPU seconds of a training step of the demo's student, labels alone, without vitlab around it."""
    config = load([]).config
    network = build_model(config.model, 10, config.dataset.size, [str(one) for one in range(10)])
    optimizer = make_optimizer(network, config.recipe)
    image = torch.randn(config.recipe.batch_size, 3, config.dataset.size, config.dataset.size)
    index = torch.arange(len(image))
    batch = Batch(image, index % 10, index, index * 0)
    found = []
    for _ in range(steps):
        begun = time.process_time()
        optimizer.zero_grad()
        label_cross_entropy(network(batch.image), batch.label)["loss"].backward()
        optimizer.step()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def test_every_logger_hears_every_row(tmp_path: Path) -> None:
    spent = measure(rows=5, rounds=1, folder=tmp_path)
    assert set(spent) == set(LOGGERS)
    assert all(len(read_rows(tmp_path / name / "metrics.jsonl")) == 10 for name in LOGGERS)
    assert len((tmp_path / "csv" / "metrics.csv").read_text().splitlines()) == 11


def main() -> None:
    torch.set_num_threads(1)
    every = load([]).config.logger.every
    step = demo_step(15)
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(rows=200, rounds=7, folder=Path(folder))
    print(f"a step of the demo's student: {1e3 * step:.1f} ms of CPU time; a record every {every} steps")
    print(f"{'logger':<14}{'record':>12}{'a step':>12}{'share':>9}")
    for name, values in spent.items():
        record = statistics.median(values)
        print(f"{name:<14}{1e6 * record:>9.0f} µs{1e6 * record / every:>9.1f} µs{record / every / step:>9.3%}")


if __name__ == "__main__":
    main()
