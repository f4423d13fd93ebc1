"""The part of a run that needs torch: the stages in order, then evaluate, benchmark, export, report."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.methods.base import Context, Method, Stage, find_method
from vitlab.recorder import Recorder
from vitlab.run import Run
from vitlab.training.assemble import check_batches, recipes_of
from vitlab.training.fit import CHECKPOINT
from vitlab.training.interrupt import listen, stop_if_asked
from vitlab.training.loggers import copied
from vitlab.training.progress import clock


def work(run: Run, config: Config, command: str) -> None:
    """Tell the method's story in ``run``'s folder, skipping what is done, and close the run.

    Raises:
        Interrupted: somebody asked to stop; what was done is saved.
        UserError: whatever the user can mend.
    """
    listen()
    settle(config)
    method = find_method(config.method.name)(config)
    stages = method.stages(config)
    check_batches(config, method.reads(config))
    recorder = run.recorder()
    folders = {stage.name: run.folder / stage.name for stage in stages}
    for number, stage in enumerate(stages, 1):
        if run.is_done(stage.name):
            continue
        say(f"\n[{number}/{len(stages)}] {stage.name}: {stage.title}")
        run.stage_folder(stage.name)
        with copied(config, run, stage.name, recorder):
            record = tell(method, stage, Context(config, stage, folders, recorder))
        run.mark_done(stage.name, record)
        (run.folder / stage.name / CHECKPOINT).unlink(
            missing_ok=True
        )  # only now: it is what a killed stage goes on from
        say(f"{stage.name} done in {clock(_seconds(record))}")
        stop_if_asked()
    from vitlab.closing import close

    close(run, config, stages, command)


def tell(method: Method, stage: Stage, context: Context) -> dict[str, object]:
    """Run one stage; running out of GPU memory is answered with the cure."""
    try:
        record: dict[str, object] = getattr(method, stage.name)(context)
        return record
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Stage {stage.name} ran out of GPU memory: {str(error).splitlines()[0]}",
            "Raise recipe.accumulate (the global batch and the results stay the same), or lower recipe.batch_size.",
        ) from error


def settle(config: Config) -> None:
    """Process-wide switches that hardware= decides; warnings of ours reach the prompt."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    torch.set_float32_matmul_precision("high")


def rehearse(folder: Path, config: Config) -> str:
    """mode=check: a batch or three of every stage in ``folder``; a table of sizes and how long the whole will take.

    The stages run on few images, so that a store is sealed and the next stage can read it; sizes and times are those
    of the whole.
    """
    settle(config)
    check_batches(config, find_method(config.method.name).reads(config))
    method = find_method(config.method.name)(few(config))
    stages = method.stages(config)
    folders = {stage.name: folder / stage.name for stage in stages}
    recorder = Recorder(folder / "metrics.jsonl")
    rows: list[tuple[str, dict[str, object]]] = []
    for stage in stages:
        folders[stage.name].mkdir()
        rows.append((stage.name, tell(method, stage, Context(method.config, stage, folders, recorder, whole=config))))
    total = sum(_seconds(record) for _, record in rows)
    lines = ["", "A few batches of every stage ran. On this machine the whole takes about"]
    lines += [f"  {name:<10} {clock(_seconds(record)):>14}   {_sizes(record)}" for name, record in rows]
    lines.append(f"  {'together':<10} {clock(total):>14}   and a little for evaluation, exports and the report")
    return "\n".join(lines)


def few(config: Config) -> Config:
    """``config`` with just enough images for two steps of its largest batch, and one stored view of each."""
    recipes = recipes_of(config, find_method(config.method.name).reads(config))
    batch = max((recipe.batch_size for recipe in recipes.values()), default=1)
    images = min(2 * batch, config.debug.max_images or 2 * batch)
    return replace(config, debug=replace(config.debug, max_images=images, max_slots=1))


def _seconds(record: dict[str, object]) -> float:
    return float(str(record.get("seconds", 0.0)))


def _sizes(record: dict[str, Any]) -> str:
    """The counts of a stage's record in words: 259,000 params, 420 steps."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in record.items() if isinstance(value, int))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
