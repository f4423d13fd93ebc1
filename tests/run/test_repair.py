"""Damaged records of a run: what can be made again is made again and said, the rest is named; nothing is a trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.contract.story import run_command, the_run
from vitlab.cli.main import main
from vitlab.errors import DamagedError
from vitlab.files import read_json
from vitlab.run.recorder import Recorder, read_rows
from vitlab.run.repair import read_marker, repair_records

PLAIN = ("method=supervised", "evaluation=quick")

DAMAGE = {
    "garbage": b"\x00\x93garbage{",
    "list": b"[]",
    "empty object": b"{}",
    "empty": b"",
    "NUL": b"\0" * 200,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert run_command(output, *PLAIN) == 0
    return output


def damage(path: Path, kind: str) -> None:
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGE[kind])


@pytest.mark.parametrize("kind", [*DAMAGE, "folder"])
def test_markers(kind: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All markers at once: the same command ends well, with the model as it was, and the next one has nothing to do."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    weights = (run / "train/model.safetensors").read_bytes()
    metrics = (run / "metrics.jsonl").read_bytes()
    names = ["finished.json", *(f"{stage}/done.json" for stage in ("train", "evaluation", "benchmark"))]
    for name in names:
        damage(run / name, kind)
    assert run_command(output, *PLAIN) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert all(f"{run / name} was damaged" in text for name in names), text
    assert (run / "train/model.safetensors").read_bytes() == weights and (run / "metrics.jsonl").read_bytes() == metrics
    assert all((run / f"{name}.damaged").exists() for name in names)
    table = read_marker(run / "finished.json")["table"]
    assert table.split("report")[0] == read_marker(the_run(finished) / "finished.json")["table"].split("report")[0]
    assert run_command(output, *PLAIN) == 0
    assert "repaired" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dataset.json", "mistakes.json", "train.json"])
def test_evaluation_files(name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    good = json.loads((run / "evaluation" / name).read_text())
    damage(run / "evaluation" / name, "NUL")
    assert main([f"output={output}", f"run={run}", "mode=report"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"{run / 'evaluation' / name} is damaged" in text and "Traceback" not in text
    (run / "finished.json").unlink()
    assert run_command(output, *PLAIN) == 0
    assert json.loads((run / "evaluation" / name).read_text()) == good


def test_rows(tmp_path: Path) -> None:
    """What a power failure leaves in the middle of a record is left out, and a copy is kept."""
    path = tmp_path / "metrics.jsonl"
    with_rows = Recorder(path)
    for step in range(4):
        with_rows.write(stage="train", step=step, loss=0.5)
    with_rows.close()
    lines = path.read_bytes().split(b"\n")
    damaged = b"\n".join([lines[0], b"\0" * 40, lines[1], b"[1]", b"\xff\xfe{", b"7", lines[2], lines[3], b""])
    path.write_bytes(damaged)
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3]
    (line,) = repair_records(tmp_path)
    assert "4 damaged line(s)" in line
    assert path.read_bytes() == b"\n".join(lines) and (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    assert Recorder(path).rewind("train", 2) == 1 and list(repair_records(tmp_path)) == []


def test_read_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"\xff\xfe", b"[1", b"[" * 100000, b"[]"):
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=r"a\.json is damaged \("):
            read_json(path, dict)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("kind", [*DAMAGE, "folder"])
def test_run_json(kind: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that made the run makes it again from config.yaml; readers name it; other runs are not held up."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    good = json.loads((run / "run.json").read_text())
    damage(run / "run.json", kind)
    assert main([f"output={output}", f"run={run}", "mode=report"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"{run / 'run.json'}" in text and "Traceback" not in text
    assert run_command(output, *PLAIN, "seed=1", "recipe.duration=3st", "recipe.warmup=0st", "debug=none") == 0
    (run / "finished.json").unlink()
    assert run_command(output, *PLAIN) == 0
    again = json.loads((run / "run.json").read_text())
    assert again["identity"] == good["identity"] and (run / "finished.json").exists()
    assert again["tree"] | {"output": ""} == good["tree"] | {"output": ""}  # the fixture was copied


def test_run_json_without_config(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    damage(run / "run.json", "NUL")
    damage(run / "config.yaml", "NUL")
    assert run_command(output, *PLAIN) == 2
    assert "fresh=true" in capsys.readouterr().err
    assert run_command(output, *PLAIN, "fresh=true") == 0


def test_a_finished_run_without_its_weights(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether finished or not, it is not taken for complete; with the stage moved away it is trained again."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    weights = run / "train/model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert run_command(output, *PLAIN) == 2
    assert "is not the file that model.json describes" in " ".join(capsys.readouterr().err.split())
    weights.unlink()
    assert run_command(output, *PLAIN) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"{weights} is missing" in text and f"move {run / 'train'} away" in text
    (run / "finished.json").rename(run / "aside.json")
    assert run_command(output, *PLAIN) == 2
    (run / "train").rename(tmp_path / "train")
    assert run_command(output, *PLAIN) == 0 and weights.read_bytes() == good


def test_a_moved_run_names_its_files_where_they_are(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    for old in (False, True):
        if old:  # of a version that did not note the folder
            record = json.loads((run / "finished.json").read_text())
            (run / "finished.json").write_text(json.dumps({k: v for k, v in record.items() if k != "folder"}))
        assert run_command(output, *PLAIN) == 0
        printed = capsys.readouterr().out
        assert f"{run / 'report.html'}\n" in printed and f"{run / 'train'}\n" in printed
        assert str(the_run(finished)) not in printed
    (run / "report.html").unlink()
    assert run_command(output, *PLAIN) == 0
    assert f"Missing: {run / 'report.html'}" in capsys.readouterr().out


def test_a_checkpoint_left_by_a_kill_is_removed(finished: Path, tmp_path: Path) -> None:
    """The process was killed between the marker of the stage and the removal of its checkpoint."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    run = the_run(output)
    (run / "finished.json").unlink()
    (run / "train/checkpoint.ckpt").write_bytes(b"of a finished stage")
    assert run_command(output, *PLAIN) == 0
    assert not (run / "train/checkpoint.ckpt").exists()
