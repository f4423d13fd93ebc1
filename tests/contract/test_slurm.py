"""Jobs: submitit's local executor in place of SLURM; after SLURM's signal the job saves and is requeued."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.contract.story import assert_same, run_command, the_run
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.launch.slurm import parameters

STEPS = "debug.max_steps=150"  # long enough to be signalled during training
WORDS = ("method=supervised", "evaluation=quick", "recipe.validate_every=100st", STEPS)
QUEUE = ("hardware=slurm", "slurm.executor=local", "trainer.accelerator=cpu", "trainer.devices=1")


def task_of(job: int) -> int:
    """The process of a local job that has submitit's signal handler."""
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
def test_a_preempted_job_is_requeued_with_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert run_command(tmp_path / "direct", *WORDS) == 0
    precise = ("trainer.precision=32-true", "hardware.compile=false")
    assert run_command(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    output = capsys.readouterr().out
    run = the_run(tmp_path / "queued")
    job = json.loads((run / "jobs" / "job.json").read_text())
    assert f"job      {job['job']} is submitted" in output and job["log"] in output

    wait_for(run / "metrics.jsonl", '"step": [2-9][0-9],')
    assert run_command(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    assert f"job      {job['job']} of this run is running" in capsys.readouterr().out
    os.kill(task_of(int(job["job"])), signal.SIGUSR2)
    wait_for(run / "finished.json", "table")
    log = Path(job["log"]).read_text()
    assert log.count("-m vitlab") == 2 and "(continued where it stopped)" in log
    assert_same(run, the_run(tmp_path / "direct"))
    assert run_command(tmp_path / "queued", *WORDS, *QUEUE, *precise) == 0
    assert "This run is finished" in capsys.readouterr().out


def test_parameters_of_the_job() -> None:
    words = ("method=supervised", "hardware=slurm", "trainer.num_nodes=2", "slurm.partition=big", "slurm.cpus=6")
    config = load([*words, "slurm.extra.exclude=node7", "slurm.memory=200", "slurm.minutes=60"]).config
    options = parameters(config, "digits-1")
    assert (options["nodes"], options["tasks_per_node"], options["gpus_per_node"], options["cpus_per_task"]) == (
        2,
        1,
        8,
        48,
    )
    assert (options["slurm_partition"], options["mem_gb"], options["timeout_min"]) == ("big", 200, 60)
    assert options["slurm_additional_parameters"] == {"exclude": "node7"}
    with pytest.raises(UserError, match=r"trainer\.devices=auto"):
        parameters(load([*words, "trainer.devices=auto"]).config, "digits-1")


def test_without_slurm_an_error_is_reported_and_no_run_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tmp_path, *WORDS, "hardware=slurm") == 2
    assert "The job could not be submitted" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.json"))
