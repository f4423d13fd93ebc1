"""Two processes: one designs, both train what it designed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.story import SMALL, the_run
from vitlab.methods.deepmad.search import JOURNAL, load_design
from vitlab.methods.deepmad.structure import Structure

WORDS = (
    *(word for word in SMALL if not word.startswith("hardware=")),
    *("method=deepmad", "method.budget.params=0.1M", "method.budget.flops=8M", "method.chains=64", "method.steps=150"),
    "hardware=ddp_cpu",
)


@pytest.mark.slow
def test_two_processes_design_once(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "vitlab", *WORDS, f"output={tmp_path}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 devices" in done.stdout
    run = the_run(tmp_path)
    design = load_design(run / "solve" / "design.json")
    # A second designer would have written a second head into the journal, and its table to the screen.
    heads = [row for row in map(json.loads, (run / "solve" / JOURNAL).read_text().splitlines()) if "score" not in row]
    assert len(heads) == 1
    assert done.stdout.count("it is no accuracy") == 1
    trained = json.loads((run / "train" / "model.json").read_text())
    assert Structure.from_list(trained["args"]["structure"]) == design.structure
    assert "it is no measured accuracy" in (run / "report.md").read_text()
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["stage"] == "train" and "loss" in row]
    assert steps == sorted(set(steps))
