"""``only=STAGE``: one stage and what it needs, in the run that the command without it continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.story import TEACHER, run_command, the_run
from vitlab.cli.main import main

WORDS = ("method=tinyvit", "export=none", *TEACHER)


def test_one_stage_and_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tmp_path, *WORDS, "only=store") == 0
    run = the_run(tmp_path)
    assert "only=store: done" in capsys.readouterr().out
    assert {path.parent.name for path in run.glob("*/done.json")} == {"teacher", "store"}
    assert not (run / "finished.json").exists()
    stored = (run / "store" / "done.json").stat().st_mtime_ns
    assert run_command(tmp_path, *WORDS) == 0
    assert the_run(tmp_path) == run
    assert (run / "finished.json").exists()
    assert (run / "store" / "done.json").stat().st_mtime_ns == stored


@pytest.mark.parametrize(
    ("stage", "answer"), [("stroe", "Did you mean only=store?"), ("finetune", "runs no such stage here")]
)
def test_a_stage_that_does_not_run(stage: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["method=tinyvit", f"only={stage}"]) == 2
    assert answer in " ".join(capsys.readouterr().err.split())
