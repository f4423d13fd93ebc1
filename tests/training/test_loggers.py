"""Loggers are copies of the record: what they hold is read back and compared with it."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.contract.story import TEACHER, at, run_command, the_run
from vitlab.run.recorder import Recorder, Row, numbers, read_rows

WORDS = ("method=supervised", "evaluation=quick")
LATENCY = "evaluation.latency=true"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run under two loggers."""
    output = tmp_path_factory.mktemp("logged")
    assert run_command(output, *WORDS, "logger=csv", "logger.also=[tensorboard]") == 0
    return the_run(output)


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_copy_holds_every_number_of_the_record(logger: str, logged: Path) -> None:
    rows = [row for row in read_rows(logged / "metrics.jsonl") if row["stage"] == "train"]
    assert len(rows) > 5
    agree(rows, {"csv": from_csv, "tensorboard": from_tensorboard}[logger](logged))


def agree(rows: list[Row], copied: dict[tuple[str, int], float]) -> None:
    for row in rows:
        for name, value in numbers(row).items():
            assert copied[name, int(str(row["step"]))] == pytest.approx(value, rel=1e-6), (name, row)


def test_wandb_holds_every_number_of_the_record(distilled: Path) -> None:
    for job in ("teacher", "pretrain", "labels"):
        rows = [row for row in read_rows(distilled / "metrics.jsonl") if row["stage"] == job]
        assert len(rows) > 5
        agree(rows, from_wandb(distilled, job))


Found = dict[tuple[str, int], float]


def from_csv(run: Path) -> Found:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return {(name, int(row["step"])): float(v) for row in rows for name, v in row.items() if v and name != "stage"}


def from_tensorboard(run: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "train"))
    events.Reload()
    assert events.Tags()["images"] == ["views"]
    return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}


def from_wandb(run: Path, job: str) -> Found:
    """The offline files, as `wandb sync` reads them."""
    found: Found = {}
    for record in wandb_records(run, job):
        row: dict[str, Any] = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        if "step" in row:
            found |= {(name, int(row["step"])): value for name, value in row.items() if isinstance(value, (int, float))}
    return found


def wandb_records(run: Path, job: str = "train") -> list[Any]:
    """The offline file of a job holds protocol buffers in LevelDB's log format: blocks of fragments with 7-byte heads.
    Of a job that was continued there are several files, in order."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made by protobuf at import

    number = (run / "wandb" / f"{job}.id").read_text()
    records = []
    for file in sorted(run.glob(f"wandb/offline-run-*-{number}/*.wandb")):
        data, at, full = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # what is left of the block is too short for a head
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            full += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a full record, or the last part of one
                records.append(Record.FromString(full))
                full = b""
    return records


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(one, kind) for one in records if one.WhichOneof("record_type") == kind]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of a sweep under W&B without a key: teacher, store and students, stopped and continued while one learns."""
    output = tmp_path_factory.mktemp("wandb")
    words = ("method=tinyvit", "evaluation=quick", "logger=wandb", "logger.predictions=9", LATENCY, *TEACHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("VITLAB_SWEEP", "grid-1")

        def in_the_student(self: Recorder, **row: Any) -> bool:
            return row["stage"] == "pretrain" and row["step"] == 6

        with at(Recorder, "write", in_the_student, signal.SIGTERM):
            assert run_command(output, *words) == 130
        assert run_command(output, *words) == 0
    return the_run(output)


def test_wandb_has_a_job_for_each_stage_under_one_group(distilled: Path) -> None:
    for job in ("teacher", "store", "pretrain", "labels"):
        records = wandb_records(distilled, job)
        record = of_kind(records, "run")[0]
        assert (record.run_group, record.job_type) == (distilled.name, job)
        config = {item.key: json.loads(item.value_json) for item in record.config.update}
        assert config["recipe"]["batch_size"] == 16 and config["method"]["name"] == "tinyvit"
        assert config["sweep"] == "grid-1" and "grid-1" in record.tags
        assert of_kind(records, "exit")[-1].exit_code == 0, "finished after its stage"
        if job != "store":
            keys = {"/".join(i.nested_key) or i.key for one in of_kind(records, "history") for i in one.item}
            assert {"loss", "lr", "val_top1", "views/path"} <= keys
            views = list(distilled.glob(f"wandb/*-{record.run_id}/files/media/images/views_*.png"))
            assert {one.read_bytes() for one in views} == {(distilled / job / "views.png").read_bytes()}


def test_a_continued_job_keeps_its_id_and_its_steps(distilled: Path) -> None:
    records = wandb_records(distilled, "pretrain")
    assert len(list(distilled.glob(f"wandb/offline-run-*-{of_kind(records, 'run')[0].run_id}"))) == 2
    assert [one.exit_code for one in of_kind(records, "exit")] == [1, 0], "stopped, then finished"
    steps = [one.step.num for one in of_kind(records, "history")]
    assert steps == sorted(steps) and set(steps) == {3, 5, 6, 9, 10, 11}, "W&B's steps are those of the training"


def test_what_a_job_made_is_what_the_next_one_used(distilled: Path) -> None:
    made: dict[str, tuple[str, str]] = {}  # stage -> name and digest
    used: dict[str, set[tuple[str, str]]] = {}
    for job in ("teacher", "store", "pretrain", "labels", "evaluation-pretrain"):
        for one in of_kind(wandb_records(distilled, job), "artifact"):
            if one.type == "run_table":
                continue
            if one.use_after_commit:
                used.setdefault(job, set()).add((one.name, one.digest))
            else:
                assert one.type == ("store" if job == "store" else "model")
                made[job] = (one.name, one.digest)
    assert set(made) == {"teacher", "store", "pretrain", "labels"}
    assert used["store"] == {made["teacher"]} and made["store"] in used["pretrain"]
    assert used["evaluation-pretrain"] == {made["pretrain"]}


def test_a_measured_model_has_numbers_tables_and_pictures(distilled: Path) -> None:
    records = wandb_records(distilled, "evaluation-pretrain")
    record = of_kind(records, "run")[0]
    assert (record.run_group, record.job_type) == (distilled.name, "evaluation")
    summary = {i.key: json.loads(i.value_json) for one in of_kind(records, "summary") for i in one.update}
    stored = json.loads((distilled / "evaluation" / "pretrain.json").read_text())
    assert summary["top1"] == stored["top1"] and summary["ece"] == stored["ece"] and summary["params"] > 1e5
    media = next(distilled.glob(f"wandb/*-{record.run_id}/files/media"))

    def table(name: str) -> list[dict[str, Any]]:
        (path,) = media.glob(f"table/{name}_*.table.json")
        found = json.loads(path.read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]

    predictions = table("predictions")
    assert len(predictions) == 9
    tables = {one.name.rpartition("-")[2]: one.manifest for one in of_kind(records, "artifact") if "table" in one.type}
    images = [one for one in tables["predictions"].contents if one.path.endswith(".png")]
    assert len(images) == 9 and all(distilled in Path(one.local_path).parents for one in images)
    assert all(row["right"] == (row["label"] == row["predicted"]) for row in predictions)
    assert sum(row["images"] for row in table("confusion")) == stored["n"]
    assert sum(row["images"] for row in table("reliability")) == stored["n"]
    assert {path.name.partition("_")[0] for path in (media / "images" / "pictures").iterdir()} == {
        *("reliability", "confusion", "views")
    }


def test_the_dashboard_of_the_readme_finds_its_keys(distilled: Path) -> None:
    """Every key that its table and the filter above it name is in the offline files."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    begin, end = page.index("**A dashboard that answers"), page.index("## Devices, machines")
    named = set(re.findall(r"`([\w./]+)`", page[begin:end])) - {"evaluation", "student", "config.sweep"}
    records = wandb_records(distilled, "evaluation-pretrain")
    config = {item.key: json.loads(item.value_json) for item in of_kind(records, "run")[0].config.update}
    assert (config["role"], config["method"]["name"], config["sweep"]) == ("student", "tinyvit", "grid-1")
    assert config["recipe"]["lr"] > 0 and of_kind(records, "run")[0].job_type == "evaluation"
    named -= {"config.role", "config.method.name", "config.recipe.lr", "jobType"}
    found = {item.key for one in of_kind(records, "summary") for item in one.update}
    learned = wandb_records(distilled, "pretrain")
    found |= {"/".join(i.nested_key) or i.key for one in of_kind(learned, "history") for i in one.item}
    pictures = of_kind(records, "history")[0].item
    found |= {("/".join(i.nested_key) or i.key).partition("/_type")[0].removesuffix("/path") for i in pictures}
    assert {"latency_ms_1", "top1", "macs", "pictures/views", "predictions", "loss"} <= named
    assert named <= found


def test_what_is_not_a_finite_number_is_not_drawn() -> None:
    row: Row = {"stage": "a", "step": 3, "loss": float("nan"), "lr": 0.1, "note": "x", "flag": True}
    assert numbers(row) == {"lr": 0.1}


@pytest.fixture
def with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_without_a_network_is_logged_offline(
    with_a_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line instead of minutes of silence and a trace; the run ends well, and its files wait for an upload."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    assert run_command(tmp_path, *WORDS, "logger=wandb", "export=none", "report.figures=false") == 0
    out, err = capsys.readouterr()
    run = the_run(tmp_path)
    assert "Traceback" not in err and (run / "finished.json").exists()
    (line,) = (line for line in (out + err).splitlines() if line.startswith("W&B:"))
    assert "127.0.0.1 cannot be reached" in line and f"{run / 'wandb'} (wandb sync uploads them)" in line
    assert of_kind(wandb_records(run), "history")


def test_an_error_of_wandb_ends_the_copy_and_not_the_training(
    with_a_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its client raises once the job runs, such as a lost connection."""
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    original, calls = wandb.Run.log, 0

    def log(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ConnectionResetError("Connection lost")
        original(self, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", log)
    assert run_command(tmp_path, *WORDS, "logger=wandb", "export=none", "report.figures=false") == 0
    out, err = capsys.readouterr()
    run = the_run(tmp_path)
    assert "Traceback" not in err and (run / "finished.json").exists()
    assert "W&B: logging of this job ended (Connection lost); the run goes on" in out + err
    assert len([row for row in read_rows(run / "metrics.jsonl") if row["stage"] == "train"]) > 3
