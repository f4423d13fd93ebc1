"""``metrics.jsonl``: one JSON object per line, the record from which plots, tables and loggers are made."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vitlab.errors import written_to
from vitlab.files import atomic_write, fsync_dir

Value = float | int | str | bool | None
Row = dict[str, Value]

PROGRESS_ONLY = ("stage", "step", "time")
"""Keys of every row that are not measurements."""

_SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Recorder:
    """Appends rows to one file; after a crash at any point, readers see complete rows only.

    A row is ``{"stage", "step", "time", name: value, ...}``. ``step`` is the stage's own counter (optimiser
    steps, stored images), and a row describes the state *after* it. A stage that resumes from a checkpoint of step s
    first calls ``rewind(stage, s)``: rows of later steps are written again.

    Only one process writes (rank 0, under the run's lock).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(path)
        self._file = _open(path)
        self._failure: OSError | None = None
        self._replayed: set[str] = set()
        self.listeners: list[Callable[[Row], None]] = []
        """Called with every row that is written: the loggers."""

    def write(self, *, stage: str, step: int, **values: Value) -> None:
        """Append a row and flush it to the operating system (it survives this process, but not a power failure).

        NaN and infinities become the strings "NaN", "Infinity", "-Infinity", which every JSON parser accepts.

        Raises:
            TypeError: if a value is not a number, text, bool or None (convert a tensor to a float first).
            OSError: the disk is full, for instance. Nothing of the row is kept, and this recorder writes no other: the
                next session would find it behind newer ones.
        """
        if self._failure is not None:
            raise self._failure
        row: Row = {"stage": stage, "step": step, **{name: _plain(name, value) for name, value in values.items()}}
        if self._replayed and _content(row) in self._replayed:
            return  # the step of the checkpoint itself was run again
        line = json.dumps({"stage": stage, "step": step, "time": round(time.time(), 3), **row}, allow_nan=False)
        try:
            _append(self._file, self.path, line.encode() + b"\n")
        except OSError as error:
            self._failure = error
            raise
        for listener in self.listeners:
            listener(row)

    def sync(self) -> None:
        """fsync the file; called before a checkpoint is written that relies on its rows."""
        with written_to(self.path):
            os.fsync(self._file.fileno())

    def rewind(self, stage: str, step: int) -> int:
        """Remove the rows of ``stage`` after ``step``; the number removed. Other stages are not changed.

        Rows of ``step`` itself stay, and writing one of them again with the same values adds nothing.
        ``rewind(stage, -1)`` removes all rows of the stage.
        """
        lines = self.path.read_bytes().split(b"\n")[:-1]
        lines = [line + b"\n" for line in lines]
        kept: list[bytes] = []
        self._replayed = set()
        for line in lines:
            row = parse_row(line)
            if row is None:  # damaged; lines of a run that is locked were checked before
                continue
            if row["stage"] == stage:
                at = int(str(row["step"]))
                if at > step:
                    continue
                if at == step:
                    self._replayed.add(_content(row))
            kept.append(line)
        if len(kept) < len(lines):
            self._file.close()
            atomic_write(self.path, b"".join(kept))
            self._file = _open(self.path)
        return len(lines) - len(kept)

    def read(self) -> list[Row]:
        """All rows, as :func:`read_rows` gives them."""
        return read_rows(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl`` with NaN and infinities as floats again; [] when there is no file.

    An incomplete last line (the run is being written, or was killed) and damaged lines are left out; the file is not
    changed.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    complete = text[: text.rfind(b"\n") + 1]
    rows = (parse_row(line) for line in complete.split(b"\n")[:-1])
    return [
        {name: _SPELT.get(value, value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
        if row is not None
    ]


def parse_row(line: bytes) -> Row | None:
    """The row of a line; None for a line that is none (garbage, or the NUL bytes that a power failure leaves)."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
        return None
    return row


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without :data:`PROGRESS_ONLY`."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in PROGRESS_ONLY
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append ``record`` to a ``.jsonl`` file as one line, with fsync."""
    line = json.dumps(dict(record)).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_half_line(path)
    with _open(path) as file:
        _append(file, path, line)
        with written_to(path, len(line)):
            os.fsync(file.fileno())


def _open(path: Path) -> io.FileIO:
    """``path`` for appending, without a buffer: what a buffer holds after a failed write is written later, when the
    file is closed, behind the lines of other writers.

    The name of a new file is on the disk then: its fsync alone does not promise that, and checkpoints rely on its rows.
    """
    if not path.exists():
        path.touch()
        fsync_dir(path.parent)
    return open(path, "ab", buffering=0)


def _append(file: io.FileIO, path: Path, line: bytes) -> None:
    """Append ``line`` completely or not at all."""
    left = memoryview(line)
    try:
        with written_to(path, len(line)):
            while left:
                left = left[file.write(left) :]
    except OSError:
        if written := len(line) - len(left):
            os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
        raise


def drop_half_line(path: Path) -> None:
    """Truncate an incomplete last line, which a killed process left."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        text = file.read()
        end = text.rfind(b"\n") + 1
        if end < len(text):
            file.truncate(end)
            os.fsync(file.fileno())


def _plain(name: str, value: Value) -> Value:
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return float(value)  # json prints subclasses of float (numpy.float64) differently
    if value is None or isinstance(value, (int, str)):
        return value
    raise TypeError(f"metric '{name}' is a {type(value).__name__}; give a number, text, bool or None")


def _content(row: Row) -> str:
    """A row without its time, as text to compare."""
    return json.dumps({name: value for name, value in row.items() if name != "time"}, sort_keys=True)
