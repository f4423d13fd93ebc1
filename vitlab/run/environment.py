"""Environment of a run: versions, commit, machine, command. No package is imported to read its version."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from vitlab._version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pillow",
    "scikit-learn",
    "torchmetrics",
    "safetensors",
    "onnx",
    "onnxruntime",
)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(command: str) -> dict[str, object]:
    """A JSON-able record of this start.

    Keys: ``time``, ``command``, ``python``, ``platform``, ``cpu`` (its name), ``cores`` (those this process may
    use), ``ram_bytes``, ``vitlab`` (its version), ``packages`` (name → version, of those installed) and ``git``
    (``commit`` and ``dirty`` of the clone that vitlab runs from; null for an installed wheel). Devices are not
    part of it, since torch is not imported here.
    """
    return {
        "time": now(),
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "vitlab": __version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": git_state(Path(__file__).resolve().parents[2]),
    }


def git_state(clone: Path) -> dict[str, object] | None:
    """Commit of ``clone`` and whether tracked files differ from it; None if it is no clone or git fails."""
    if not (clone / ".git").exists():  # site-packages inside another repository: its commit is not vitlab's
        return None
    commit = _output("git", "-C", str(clone), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(clone), "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": changes != ""}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    elif sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """The output of ``command``; None if it fails, is not installed or takes longer than 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
