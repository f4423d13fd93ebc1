"""What several test files need and one process makes: a folder, filled once in a session of pytest."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, filled by ``make`` in the first process that calls this; the others wait for it.

    It is for reading: a test that writes takes a copy. Under pytest-xdist the processes share the parent of their own
    temporary folders, which belongs to this session alone.
    """
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    folder, complete = shared / name, shared / f"{name}.complete"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed here
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


def skip_where_torch_is_not_forked() -> None:
    """Skip the test on macOS: system libraries start threads there, so that a process forked after torch is imported
    may crash. It is why Python starts processes by "spawn" on it."""
    if sys.platform == "darwin":
        pytest.skip("forks this process, which has torch in it; on macOS that may crash")
