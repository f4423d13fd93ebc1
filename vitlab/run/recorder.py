"""``metrics.jsonl``: one JSON object a line, the record that plots, tables and loggers are copies of."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vitlab.errors import written_to
from vitlab.files import atomic_write

Value = float | int | str | bool | None
Row = dict[str, Value]

PROGRESS_ONLY = ("stage", "step", "time")
"""What every row has, and is no measurement."""

_SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Recorder:
    """Appends rows to one file; whatever happens in between, the file holds whole rows only.

    A row is ``{"stage", "step", "time", name: value, ...}``. ``step`` counts what the stage counts (optimiser
    steps, stored images) and a row says how things stood *after* it, so that whoever continues a stage from a
    checkpoint of step s first calls ``rewind(stage, s)``: rows of later steps are going to be written again.

    Only one process writes (the one that holds the run's lock, rank 0).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(path)
        self._file = open(path, "ab")  # noqa: SIM115  (kept open for the life of the run)
        self._there: set[str] = set()
        self.listeners: list[Callable[[Row], None]] = []
        """Called with every row that is written: the loggers that copy the record."""

    def write(self, *, stage: str, step: int, **values: Value) -> None:
        """Append a row and hand it to the operating system (it outlives this process, if not a power cut).

        NaN and infinities become the strings "NaN", "Infinity", "-Infinity", which every JSON reader takes.

        Raises:
            TypeError: if a value is not a number, text, bool or None (a tensor must be made a float by its owner).
        """
        row: Row = {"stage": stage, "step": step, **{name: _plain(name, value) for name, value in values.items()}}
        if self._there and _content(row) in self._there:
            return  # seen again because the step of the checkpoint itself was replayed
        line = json.dumps({"stage": stage, "step": step, "time": round(time.time(), 3), **row}, allow_nan=False)
        with written_to(self.path, len(line) + 1):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        for listener in self.listeners:
            listener(row)

    def sync(self) -> None:
        """Make every row survive a power cut; called before a checkpoint that relies on them is written."""
        with written_to(self.path):
            os.fsync(self._file.fileno())

    def rewind(self, stage: str, step: int) -> int:
        """Drop the rows of ``stage`` after ``step``, and return how many; other stages are untouched.

        Rows of ``step`` itself stay, and writing one of them once more with the same values adds nothing.
        ``rewind(stage, -1)`` forgets the stage.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept: list[bytes] = []
        self._there = set()
        for line in lines:
            row = json.loads(line)
            if row["stage"] == stage:
                if row["step"] > step:
                    continue
                if row["step"] == step:
                    self._there.add(_content(row))
            kept.append(line)
        if len(kept) < len(lines):
            self._file.close()
            atomic_write(self.path, b"".join(kept))
            self._file = open(self.path, "ab")  # noqa: SIM115
        return len(lines) - len(kept)

    def read(self) -> list[Row]:
        """All rows, as :func:`read_rows` gives them."""
        return read_rows(self.path)

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl`` with NaN and infinities as floats again; [] when there is no file.

    A half-written last line (a run that is being written, or was killed) is left out; the file is not changed.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    return [
        {
            name: _SPELT.get(value, value) if isinstance(value, str) else value
            for name, value in json.loads(line).items()
        }
        for line in whole.splitlines()
    ]


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


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append ``record`` to a ``.jsonl`` file as one line, on disk before this returns."""
    line = json.dumps(dict(record)).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_half_line(path)
    with written_to(path, len(line)), open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def drop_half_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            file.truncate(whole)
            os.fsync(file.fileno())


def _plain(name: str, value: Value) -> Value:
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return float(value)  # subclasses of float (numpy.float64) print under other names
    if value is None or isinstance(value, (int, str)):
        return value
    raise TypeError(f"metric '{name}' is a {type(value).__name__}; give a number, text, bool or None")


def _content(row: Row) -> str:
    """A row without its time, comparable."""
    return json.dumps({name: value for name, value in row.items() if name != "time"}, sort_keys=True)
