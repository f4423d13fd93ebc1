"""Copies of ``metrics.jsonl`` for other eyes: a CSV file, TensorBoard, Weights & Biases.

The record is the truth and a copy may be thrown away at any time. One copy is open for each stage, so that W&B shows
the run as a group with one job a stage; a continued stage goes on under the id that is kept in the run's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.files import atomic_write
from vitlab.run.recorder import Recorder, Row, numbers, read_rows
from vitlab.run.run import Run
from vitlab.stage import Stage
from vitlab.training.wandb_logger import VIEWS, stage_job


@contextmanager
def logging_to(config: Config, run: Run, stages: Sequence[Stage], stage: Stage, recorder: Recorder) -> Iterator[None]:
    """While ``stage`` (of ``stages``) runs, the loggers that ``logger=`` and ``logger.also`` name get every row of it.

    Raises:
        UserError: the logger's package is not installed.
    """
    with ExitStack() as open_loggers:
        for name in config.logger.names:
            match name:
                case "csv":
                    open_loggers.callback(write_csv, run.folder)
                case "tensorboard":
                    open_loggers.enter_context(_tensorboard(run, stage.name, recorder))
                case "wandb":
                    open_loggers.enter_context(stage_job(config, run, stages, stage, recorder))
        yield


def write_csv(folder: Path) -> None:
    """``metrics.csv``: the record as a table, one column for every name that occurs."""
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
    import numpy as np
    from PIL import Image

    last = max((int(str(row["step"])) for row in recorder.read() if row["stage"] == stage), default=-1)
    # Steps after the checkpoint were written by the killed session and will come again: they are purged.
    writer = SummaryWriter(run.folder / "tensorboard" / stage, purge_step=last + 1)

    sent = False

    def copy_row(row: Row) -> None:
        nonlocal sent
        if not sent and (run.folder / stage / VIEWS).exists():
            writer.add_image("views", np.asarray(Image.open(run.folder / stage / VIEWS)), dataformats="HWC")
            sent = True
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, int(str(row["step"])))

    recorder.listeners.append(copy_row)
    try:
        yield
    finally:
        recorder.listeners.remove(copy_row)
        writer.close()
