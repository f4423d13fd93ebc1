"""The record of a run's environment."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from vitlab.run.environment import environment, git_state


def test_the_record_is_json_and_describes_this_process() -> None:
    record = json.loads(json.dumps(environment("python -m vitlab seed=1")))
    assert record["command"] == "python -m vitlab seed=1"
    assert record["python"] == platform.python_version()
    assert record["packages"]["torch"] == metadata.version("torch")
    assert record["cores"] >= 1
    assert record["ram_bytes"] > 2**28
    assert record["cpu"]
    assert record["time"].endswith("+00:00")


def test_commit_and_changes_of_a_clone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/untracked").write_text("1")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None  # another repository around an installed vitlab
