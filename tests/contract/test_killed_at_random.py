"""A complete run, killed with SIGKILL at random moments until it finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.contract.story import SMALL, assert_same, run_command, the_run

WORDS = ("method=tinyvit", "hardware.workers=2")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_at_random_moments_gives_the_same_result(tmp_path: Path) -> None:
    assert run_command(tmp_path / "uninterrupted", *WORDS) == 0
    dice = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "vitlab", *SMALL, *WORDS, f"output={tmp_path / 'killed'}"]
    kills, seconds = 0, 6.0
    while True:
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(seconds + dice.random() * 6) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            seconds += 0.5  # longer than the start of a process, so that one finishes in the end
            time.sleep(0.2)
    assert kills >= 2, "too fast to be killed; lower the seconds"
    assert_same(the_run(tmp_path / "killed"), the_run(tmp_path / "uninterrupted"))
