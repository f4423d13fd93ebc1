"""metrics.jsonl has complete rows, each once, however the writer ended."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitlab.errors import DiskFullError
from vitlab.run.recorder import Recorder, Row, append_line, read_rows


def without_time(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    recorder.write(stage="store", step=1, loss=0.1 + 0.2, images=7, kind="train", ok=True, teacher=None)
    recorder.write(stage="store", step=2, loss=math.inf, low=-math.inf)
    recorder.write(stage="store", step=3, loss=math.nan)
    first, second, third = recorder.read()
    assert list(first) == ["stage", "step", "time", "loss", "images", "kind", "ok", "teacher"]
    assert without_time([first])[0] == {
        "stage": "store",
        "step": 1,
        "loss": 0.1 + 0.2,  # every bit of the float
        "images": 7,
        "kind": "train",
        "ok": True,
        "teacher": None,
    }
    assert second["loss"] == math.inf and second["low"] == -math.inf
    assert isinstance(third["loss"], float) and math.isnan(third["loss"])


def test_other_readers_can_read_non_finite_values(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    recorder.write(stage="a", step=1, x=math.nan, y=math.inf, z=-math.inf)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(recorder.path.read_text(), parse_constant=refuse)
    assert (row["x"], row["y"], row["z"]) == ("NaN", "Infinity", "-Infinity")


def test_a_row_that_could_not_be_written_is_not_written_later(tmp_path: Path) -> None:
    """The recorder of the failed session may live on in the process of the next one."""
    path = tmp_path / "metrics.jsonl"
    failed = Recorder(path)
    failed.write(stage="a", step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(DiskFullError):
            failed.write(stage="a", step=2)
        with pytest.raises(DiskFullError):
            append_line(path, {"stage": "a", "step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text().endswith("}\n"), "a part of the row is left"
    with pytest.raises(DiskFullError):
        failed.write(stage="a", step=4)
    following = Recorder(path)
    following.write(stage="a", step=5)
    failed.close()
    assert [row["step"] for row in read_rows(path)] == [1, 5]


@pytest.mark.parametrize("value", [[1.0], {"a": 1}, object()])
def test_an_invalid_value_is_refused_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError, match="loss"):
        recorder.write(stage="a", step=1, loss=value)
    assert recorder.read() == []


def test_a_file_truncated_anywhere_keeps_its_complete_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder(path)
    for step in range(3):
        recorder.write(stage="é", step=step, loss=step / 3)
    recorder.close()
    text = path.read_bytes()
    for length in range(len(text) + 1):
        path.write_bytes(text[:length])
        complete = text[:length].count(b"\n")
        assert [row["step"] for row in read_rows(path)] == list(range(complete))
        assert path.read_bytes() == text[:length]  # a reader changes nothing
        recorder = Recorder(path)
        recorder.write(stage="é", step=99)
        assert [row["step"] for row in recorder.read()] == [*range(complete), 99]
        recorder.close()


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_rewind_drops_later_rows_of_one_stage(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        recorder.write(stage="teacher", step=step, loss=1.0)
    for step in (10, 20, 30):
        recorder.write(stage="pretrain", step=step, loss=2.0)
    assert recorder.rewind("pretrain", 10) == 2
    assert [(row["stage"], row["step"]) for row in recorder.read()] == [
        ("teacher", 10),
        ("teacher", 20),
        ("teacher", 30),
        ("pretrain", 10),
    ]
    assert recorder.rewind("pretrain", 10) == 0
    recorder.write(stage="pretrain", step=20, loss=3.0)
    assert recorder.read()[-1]["loss"] == 3.0
    assert recorder.rewind("pretrain", -1) == 2
    assert {row["stage"] for row in recorder.read()} == {"teacher"}


def test_the_row_of_the_checkpoint_itself_is_not_written_twice(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    recorder.write(stage="pretrain", step=10, top1=math.nan)
    recorder.write(stage="pretrain", step=10, loss=1.0)
    recorder.rewind("pretrain", 10)
    recorder.write(stage="pretrain", step=10, top1=math.nan)  # the validation after the checkpoint, done again
    recorder.write(stage="teacher", step=10, loss=1.0)  # another stage
    recorder.write(stage="pretrain", step=10, loss=1.5)  # another value: kept
    values = [(row["stage"], row.get("loss", "none")) for row in recorder.read()]
    assert values == [("pretrain", "none"), ("pretrain", 1.0), ("teacher", 1.0), ("pretrain", 1.5)]


TRAINING = """
import sys
from pathlib import Path
from vitlab.files import atomic_write
from vitlab.run.recorder import Recorder

folder = Path(sys.argv[1])
checkpoint = folder / "checkpoint"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
recorder = Recorder(folder / "metrics.jsonl")
recorder.rewind("train", start)
for step in range(start + 1, 401):
    recorder.write(stage="train", step=step, loss=1 / step)
    if step % 25 == 0:
        recorder.sync()
        atomic_write(checkpoint, str(step))
"""


def test_killed_and_resumed_gives_the_rows_of_an_uninterrupted_run(tmp_path: Path) -> None:
    kills = 0
    metrics = tmp_path / "metrics.jsonl"
    for rows in (30, 110, 260, None):  # rows at which the process is killed -9; None: not killed
        process = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], cwd=Path(__file__).parents[2])
        while process.poll() is None:
            if rows is not None and metrics.exists() and metrics.read_bytes().count(b"\n") >= rows:
                process.kill()
                break
            time.sleep(0.0005)
        kills += process.wait() == -signal.SIGKILL
    assert kills > 0
    assert without_time(read_rows(metrics)) == [{"stage": "train", "step": s, "loss": 1 / s} for s in range(1, 401)]
