"""A run in a process of its own under signals: a second Ctrl-C, a terminal that is closed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.contract.story import small, the_run

WORDS = ("method=supervised", "evaluation=quick", "export=none", "report.figures=false", "recipe.duration=2000ep")

STARTED = """
import os, signal, sys
import vitlab.run.recorder as recorder
from vitlab.cli.main import main
original = recorder.Recorder.write
rows = 0
def write(self, **row):
    global rows
    rows += 1
    if rows == 3:
        with open(sys.argv[1], "w") as file:
            file.write("training")
    return original(self, **row)
recorder.Recorder.write = write
sys.exit(main(sys.argv[2:]))
"""
"""The command line, which leaves a file when the third row of the record is written."""


def until(path: Path, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Wait until the file is there."""
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def command(tmp_path: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", STARTED, str(tmp_path / "training"), *small(*words), f"output={tmp_path}/out", *words]


def test_a_second_ctrl_c_ends_with_130_and_a_sentence(tmp_path: Path) -> None:
    """The first is held up by a validation that does not end, as one of minutes would."""
    stuck = STARTED.replace('file.write("training")', 'file.write("training")\n        import time; time.sleep(100)')
    words = [sys.executable, "-c", stuck, *command(tmp_path, *WORDS)[3:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(tmp_path / "training", process)
        process.send_signal(signal.SIGINT)
        time.sleep(1.3)  # sooner it would be a duplicate of the first
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "SIGINT: saving, then stopping" in err and "Traceback" not in err
    assert err.strip().endswith("Stopped at once; the same command continues from the last checkpoint.")


def test_a_closed_terminal_is_a_request_to_save(tmp_path: Path) -> None:
    """The run saves, though nothing can be printed any more, and the same command goes on from there."""
    main, other = pty.openpty()
    with subprocess.Popen(
        command(tmp_path, *WORDS, "debug.max_steps=4000"),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    ) as process:
        os.close(other)
        until(tmp_path / "training", process)
        os.close(main)  # what is written from now on fails with EIO
        time.sleep(0.5)  # in which it writes: the signal may be late
        process.send_signal(signal.SIGHUP)  # the kernel sends it to the session's leader where that owns the terminal
        assert process.wait(60) == 130
    run = the_run(tmp_path / "out")
    assert (run / "train/checkpoint.ckpt").exists() and not (run / "train/done.json").exists()


def test_nohup_goes_on(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from vitlab.training.interrupt import install_signal_handlers

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        install_signal_handlers()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        for number, handler in handlers.items():
            signal.signal(number, handler)
    finally:
        signal.signal(signal.SIGHUP, before)
