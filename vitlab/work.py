"""The part of a run that needs torch: the stages in order, then evaluate, benchmark, export, report."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.methods.base import Context, Method, Stage, find_method
from vitlab.run import Run
from vitlab.training.fit import CHECKPOINT
from vitlab.training.interrupt import listen, stop_if_asked
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
    recorder = run.recorder()
    folders = {stage.name: run.folder / stage.name for stage in stages}
    for number, stage in enumerate(stages, 1):
        if run.is_done(stage.name):
            continue
        say(f"\n[{number}/{len(stages)}] {stage.name}: {stage.title}")
        run.stage_folder(stage.name)
        record = tell(method, stage, Context(config, stage, folders, recorder))
        run.mark_done(stage.name, record)
        (run.folder / stage.name / CHECKPOINT).unlink(
            missing_ok=True
        )  # only now: it is what a killed stage goes on from
        if isinstance(record.get("seconds"), (int, float)):
            say(f"{stage.name} done in {clock(float(str(record['seconds'])))}")
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
    """mode=check: one batch of every stage in ``folder``; a table of sizes and how long the whole will take."""
    settle(config)
    method = find_method(config.method.name)(config)
    stages = method.stages(config)
    folders = {stage.name: folder / stage.name for stage in stages}
    from vitlab.recorder import Recorder

    recorder = Recorder(folder / "metrics.jsonl")
    rows, total = [], 0.0
    for stage in stages:
        folders[stage.name].mkdir()
        record = tell(method, stage, Context(config, stage, folders, recorder, trial=True))
        total += float(str(record.get("seconds", 0.0)))
        rows.append((stage.name, record))
    lines = ["", "one batch of every stage ran; on this machine the whole will take about"]
    for name, record in rows:
        seconds = float(str(record.pop("seconds", 0.0)))
        lines.append(f"  {name:<10} {clock(seconds):>14}   {_sizes(record)}")
    lines.append(f"  {'together':<10} {clock(total):>14}   without evaluation and report")
    return "\n".join(lines)


def _sizes(record: dict[str, Any]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in record.items() if isinstance(value, int))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
