"""A queue: submitit's local executor stands for SLURM; the job is warned as SLURM warns, saves and comes again."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.contract.story import assert_same, tell, the_run
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.launch.slurm import parameters

STEPS = "debug.max_steps=150"  # long enough to be warned in mid-training
WORDS = ("method=supervised", "evaluation=quick", "recipe.validate_every=100st", STEPS)
QUEUE = ("hardware=slurm", "slurm.executor=local", "trainer.accelerator=cpu", "trainer.devices=1")


def task_of(job: int) -> int:
    """The process of a local job that submitit's handler lives in."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == job and b"submitit.core._submit" in line:
            return int(folder.name)
    raise AssertionError(f"job {job} has no task")


def wait_for(what: Path, holds: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not (what.exists() and re.search(holds, what.read_text())):
        assert time.monotonic() < deadline, f"{what} does not hold {holds}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_job_that_is_preempted_comes_again_and_learns_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert tell(tmp_path / "whole", *WORDS) == 0
    precise = ("trainer.precision=32-true", "hardware.compile=false")
    assert tell(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    said = capsys.readouterr().out
    run = the_run(tmp_path / "queued")
    job = json.loads((run / "jobs" / "job.json").read_text())
    assert f"job      {job['job']} is in the queue" in said and job["log"] in said

    wait_for(run / "metrics.jsonl", '"step": [2-9][0-9],')
    assert tell(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    assert f"job      {job['job']} of this run is running" in capsys.readouterr().out
    os.kill(task_of(int(job["job"])), signal.SIGUSR2)
    wait_for(run / "finished.json", "table")
    log = Path(job["log"]).read_text()
    assert log.count("-m vitlab") == 2 and "(continued where it stopped)" in log
    assert_same(run, the_run(tmp_path / "whole"))
    assert tell(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    assert "This run is finished" in capsys.readouterr().out


def test_what_is_asked_of_the_queue() -> None:
    words = ("method=supervised", "hardware=slurm", "trainer.num_nodes=2", "slurm.partition=big", "slurm.cpus=6")
    config = load([*words, "slurm.extra.exclude=node7", "slurm.memory=200", "slurm.minutes=60"]).config
    asked = parameters(config, "digits-1")
    assert (asked["nodes"], asked["tasks_per_node"], asked["gpus_per_node"], asked["cpus_per_task"]) == (2, 1, 8, 48)
    assert (asked["slurm_partition"], asked["mem_gb"], asked["timeout_min"]) == ("big", 200, 60)
    assert asked["slurm_additional_parameters"] == {"exclude": "node7"}
    with pytest.raises(UserError, match=r"trainer\.devices=auto"):
        parameters(load([*words, "trainer.devices=auto"]).config, "digits-1")


def test_no_slurm_here_is_told_and_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(tmp_path, *WORDS, "hardware=slurm") == 2
    assert "The queue did not take the job" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.json"))
