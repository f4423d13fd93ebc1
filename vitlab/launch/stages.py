"""The part of a run that needs torch: the stages in order, then evaluate, benchmark, export, report."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.launch.finish import evaluate_models, finish_run
from vitlab.launch.processes import process_count
from vitlab.methods.base import Context, Method, Stage, find_method
from vitlab.run.recorder import Recorder
from vitlab.run.run import Run
from vitlab.stage import recipes_of
from vitlab.training.checkpoint import CHECKPOINT
from vitlab.training.distributed import barrier, configure_torch, device_of, rank
from vitlab.training.interrupt import install_signal_handlers, stop, stop_requested_on_any_rank
from vitlab.training.loggers import logging_to
from vitlab.training.preflight import preflight
from vitlab.training.progress import format_duration, print_line


def run_method(run: Run, config: Config, command: str) -> int:
    """Run the method's stages in the folder of a locked run, skipping what is done, then measure, export and report.

    Returns:
        The exit code, 0.

    Raises:
        Interrupted: a stop was requested; everything done is saved.
        UserError: a mistake that the user can fix.
    """
    with run.session():
        install_signal_handlers()
        configure_torch(config)
        stages = run_stages(run, config)
        _finish(run, config, stages, command)
    return 0


def run_method_on_rank(run: Run, config: Config, command: str) -> None:
    """The same in one of several processes: stages and evaluation on all ranks, export and report on rank 0.

    torch's launcher sets RANK, WORLD_SIZE, MASTER_ADDR and so on.

    Raises:
        Interrupted, UserError: as :func:`run_method`.
    """
    device = device_of(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Rank 0 may run alone for hours (a design, a file to write) while the others wait in a barrier; a dead process is
    # detected by the launcher, not by this timeout.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=30))
    configure_torch(config)
    stages = run_stages(run, config)
    is_main = rank() == 0
    if config.only is None:
        evaluate_models(run, config, stages)
    barrier()
    dist.destroy_process_group()
    if is_main:
        _finish(run, config, stages, command)


def _finish(run: Run, config: Config, stages: list[Stage], command: str) -> None:
    """Close the run, or with ``only=`` leave it open for the command without it."""
    if config.only is None:
        finish_run(run, config, stages, command)
        return
    folder = run.folder / config.only
    print(f"\nonly={config.only}: done, {folder}. The same command without only= runs the other stages.")


def run_stages(run: Run, config: Config) -> list[Stage]:
    """The selected stages of the method in order, skipping what is done; all ranks run them together."""
    method = find_method(config.method.name)(config)
    stages = method.selected(config)
    open_stages = [stage for stage in stages if not run.is_done(stage.name)]
    preflight(config, set().union(*(stage.reads for stage in open_stages)))
    if open_stages:
        method.check_data()
    is_main = rank() == 0
    recorder = run.recorder() if is_main else None
    folders = {stage.name: run.folder / stage.name for stage in stages}
    for number, stage in enumerate(stages, 1):
        if run.is_done(stage.name):
            if is_main:  # left by a kill between the marker and the line below that removes it
                (run.folder / stage.name / CHECKPOINT).unlink(missing_ok=True)
            continue
        barrier()  # all ranks have read that it is not done
        if is_main:
            print_line(f"\n[{number}/{len(stages)}] {stage.name}: {stage.title}")
        run.stage_folder(stage.name)
        if is_main or not stage.alone:
            with logging_to(config, run, stages, stage, recorder) if recorder is not None else nullcontext():
                record = run_stage(method, stage, Context(config, stage, folders, recorder))
        barrier()
        if is_main:
            run.mark_done(stage.name, record)
            # Only now: a stage killed before this point resumes from it.
            (run.folder / stage.name / CHECKPOINT).unlink(missing_ok=True)
            print_line(f"{stage.name} done in {format_duration(_seconds(record))}")
        barrier()
        if stop_requested_on_any_rank(device_of(config)):
            stop()
    return stages


def run_stage(method: Method, stage: Stage, context: Context) -> dict[str, object]:
    """Run one stage; the record it returns.

    Raises:
        UserError: out of GPU memory, with the cure.
    """
    try:
        record: dict[str, object] = getattr(method, stage.name)(context)
        return record
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Stage {stage.name} ran out of GPU memory: {str(error).splitlines()[0]}",
            "Raise recipe.accumulate (the global batch and the results stay the same), or lower recipe.batch_size.",
        ) from error


def rehearse(folder: Path, config: Config) -> str:
    """mode=check: a few batches of every stage in ``folder``; a table of sizes and estimated times of the full run.

    The stages run on a small subset, so that a store is complete and the next stage can read it.
    """
    devices = config.trainer.devices
    device = [devices[0]] if isinstance(devices, list) else 1
    config = replace(config, trainer=replace(config.trainer, devices=device))
    process_count(config)  # refuses a device that this machine does not have
    configure_torch(config)
    preflight(config, find_method(config.method.name).reads(config))
    find_method(config.method.name)(config).check_data()
    method = find_method(config.method.name)(shrink_for_rehearsal(config))
    stages = method.selected(config)
    folders = {stage.name: folder / stage.name for stage in stages}
    recorder = Recorder(folder / "metrics.jsonl")
    rows: list[tuple[str, dict[str, object]]] = []
    for stage in stages:
        folders[stage.name].mkdir()
        rows.append(
            (stage.name, run_stage(method, stage, Context(method.config, stage, folders, recorder, full_config=config)))
        )
    if config.evaluation.corruptions:
        from vitlab.modes.robustness import estimate

        rows.append(("corrupted", estimate(config)))
    total = sum(_seconds(record) for _, record in rows)
    where = "this machine" if devices == 1 else "one device of this machine"
    lines = ["", f"A few batches of every stage ran. On {where} the full run takes about"]
    lines += [f"  {name:<10} {format_duration(_seconds(record)):>14}   {_sizes(record)}" for name, record in rows]
    lines.append(
        f"  {'together':<10} {format_duration(total):>14}   and a little for evaluation, exports and the report"
    )
    return "\n".join(lines)


def shrink_for_rehearsal(config: Config) -> Config:
    """``config`` with just enough images for two steps of its largest batch, and one stored view of each; all images
    where ``method.store`` is given, since its views are of these images."""
    recipes = recipes_of(config, find_method(config.method.name).reads(config))
    batch = max((recipe.batch_size for recipe in recipes.values()), default=1)
    images: int | None = min(2 * batch, config.debug.max_images or 2 * batch)
    if getattr(config.method, "store", None) is not None:
        images = config.debug.max_images
    return replace(config, debug=replace(config.debug, max_images=images, max_slots=1))


def _seconds(record: dict[str, object]) -> float:
    return float(str(record.get("seconds", 0.0)))


def _sizes(record: dict[str, Any]) -> str:
    """The counts of a stage's record as text: 259,000 params, 420 steps."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in record.items() if isinstance(value, int))
