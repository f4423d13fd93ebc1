"""Loggers are copies of the record: what they hold is read back and compared with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.story import tell, the_run
from vitlab.recorder import Row, read_rows
from vitlab.training.loggers import numbers

WORDS = ("method=supervised", "export=none", "evaluation=quick")


@pytest.fixture(scope="module", params=["csv", "tensorboard", "wandb"])
def logged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small run under each logger."""
    output = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        assert tell(output, *WORDS, f"logger={request.param}") == 0
    return str(request.param), the_run(output)


def test_copy_holds_every_number_of_the_record(logged: tuple[str, Path]) -> None:
    logger, run = logged
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["stage"] == "train"]
    assert len(rows) > 5
    copied = {"csv": from_csv, "tensorboard": from_tensorboard, "wandb": from_wandb}[logger](run)
    for row in rows:
        for name, value in numbers(row).items():
            assert copied[name, int(str(row["step"]))] == pytest.approx(value, rel=1e-6), (name, row)


Found = dict[tuple[str, int], float]


def from_csv(run: Path) -> Found:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return {(name, int(row["step"])): float(v) for row in rows for name, v in row.items() if v and name != "stage"}


def from_tensorboard(run: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "train"))
    events.Reload()
    return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}


def from_wandb(run: Path) -> Found:
    """The offline file, as `wandb sync` reads it."""
    found: Found = {}
    for record in wandb_records(run):
        row: dict[str, Any] = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        if "step" in row:
            found |= {(name, int(row["step"])): value for name, value in row.items() if isinstance(value, (int, float))}
    return found


def wandb_records(run: Path) -> list[Any]:
    """The offline file holds protocol buffers in LevelDB's log format: blocks of fragments with 7-byte heads."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made by protobuf at import

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    data, at, records, whole = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of the block is too short for a head
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            records.append(Record.FromString(whole))
            whole = b""
    return records


def test_wandb_groups_the_stages_of_a_run(logged: tuple[str, Path]) -> None:
    logger, run = logged
    if logger != "wandb":
        pytest.skip("about W&B only")
    (record,) = [one.run for one in wandb_records(run) if one.WhichOneof("record_type") == "run"][:1]
    assert (record.run_group, record.job_type) == (run.name, "train")
    assert record.run_id == (run / "wandb" / "train.id").read_text()


def test_what_is_not_a_finite_number_is_not_drawn() -> None:
    row: Row = {"stage": "a", "step": 3, "loss": float("nan"), "lr": 0.1, "note": "x", "flag": True}
    assert numbers(row) == {"lr": 0.1}
