"""The end of the process of a command: nothing that is due is left out, and the modules are not taken apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, sys, threading, time
from vitlab.cli import main as module

class Last:
    def __del__(self):
        print("taken apart")

last = Last()

def work():
    if "import" in sys.argv:
        sys.modules["torch"] = sys  # that it is there counts, and its import would take seconds
    if "raise" in sys.argv:
        raise ZeroDivisionError("provoked")
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("work")
    return 3

module.main = work
module.command()
"""


@pytest.mark.parametrize(
    ("word", "lines", "code"),
    [
        ("import", ["work", "thread", "handler"], 3),
        ("without", ["work", "thread", "handler", "taken apart"], 3),
        ("import raise", ["taken apart"], 1),
    ],
)
def test_threads_handlers_and_output_are_completed(word: str, lines: list[str], code: int) -> None:
    root = Path(__file__).parents[2]
    line = [sys.executable, "-c", PROGRAM, *word.split()]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split("\n")[:-1], done.returncode) == (lines, code), done.stderr
    assert ("ZeroDivisionError: provoked" in done.stderr) == (code == 1)
