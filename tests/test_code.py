"""The code is clean by the tools' reckoning; their settings are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


TOOLS = (
    ("ruff", "check", "vitlab", "tests"),
    ("ruff", "format", "--check", "vitlab", "tests"),
    ("mypy",),  # vitlab and tests
)


@pytest.mark.parametrize("tool", TOOLS, ids=["ruff-check", "ruff-format", "mypy"])
def test_clean(tool: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
