"""Copies of ``metrics.jsonl`` for other eyes: a CSV file, TensorBoard, Weights & Biases.

The record is the truth and a copy may be thrown away at any time. One copy is open for each stage, so that W&B shows
the run as a group with one job a stage; a continued stage goes on under the id that is kept in the run's folder.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.files import atomic_write
from vitlab.recorder import Recorder, Row, read_rows
from vitlab.run import Run

PROGRESS_ONLY = ("stage", "step", "time")


@contextmanager
def copied(config: Config, run: Run, stage: str, recorder: Recorder) -> Iterator[None]:
    """While ``stage`` runs, the logger that ``logger=`` names hears every row of it.

    Raises:
        UserError: the logger's package is not installed.
    """
    match config.logger.name:
        case "csv":
            try:
                yield
            finally:
                write_csv(run.folder)
        case "tensorboard":
            with _tensorboard(run, stage, recorder):
                yield
        case "wandb":
            with _wandb(config, run, stage, recorder):
                yield
        case _:
            yield


def write_csv(folder: Path) -> None:
    """``metrics.csv``: the whole record as a table, one column for every name that occurs."""
    rows = read_rows(folder / "metrics.jsonl")
    names = list(dict.fromkeys(name for row in rows for name in row))
    from io import StringIO

    text = StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / "metrics.csv", text.getvalue())


@contextmanager
def _tensorboard(run: Run, stage: str, recorder: Recorder) -> Iterator[None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("logger=tensorboard needs a package.", "pip install 'vitlab[tensorboard]'.") from None
    last = max((int(str(row["step"])) for row in recorder.read() if row["stage"] == stage), default=-1)
    # Steps after the checkpoint were written by the killed session and will come again: they are purged.
    writer = SummaryWriter(run.folder / "tensorboard" / stage, purge_step=last + 1)

    def hear(row: Row) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, int(str(row["step"])))

    recorder.listeners.append(hear)
    try:
        yield
    finally:
        recorder.listeners.remove(hear)
        writer.close()


@contextmanager
def _wandb(config: Config, run: Run, stage: str, recorder: Recorder) -> Iterator[None]:
    import wandb

    offline = config.logger.offline
    if offline is None:
        offline = not (os.environ.get("WANDB_API_KEY") or _has_key())
    job = wandb.init(
        project=config.logger.project,
        group=run.name,
        job_type=stage,
        name=f"{run.name}/{stage}",
        id=_wandb_id(run, stage),
        resume="allow",
        dir=str(run.folder),
        config=dict(run.tree),
        tags=config.logger.tags,
        mode="offline" if offline else "online",
        settings=wandb.Settings(silent=True),
    )
    job.define_metric("step")
    job.define_metric("*", step_metric="step")

    def hear(row: Row) -> None:
        job.log({"step": row["step"], **numbers(row)})

    recorder.listeners.append(hear)
    try:
        yield
    finally:
        recorder.listeners.remove(hear)
        job.finish()


def numbers(row: Row) -> dict[str, float]:
    """What of a row can be drawn: its finite numbers, without the bookkeeping."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in PROGRESS_ONLY
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _wandb_id(run: Run, stage: str) -> str:
    path = run.folder / "wandb" / f"{stage}.id"
    if not path.exists():
        import secrets

        atomic_write(path, secrets.token_hex(4))
    return path.read_text()


def _has_key() -> bool:
    import netrc

    try:
        found: Any = netrc.netrc().authenticators("api.wandb.ai")
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
    return found is not None
