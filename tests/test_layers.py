"""Who may import whom, read from the source: the frame knows the methods, the layers below them do not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitlab"
BELOW = ("data", "distill", "measure", "models", "report", "tasks", "training")
METHODS = sorted(path.parent.name for path in (PACKAGE / "methods").glob("*/method.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file names, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{one.name}" for one in node.names}
    return found


def offenders(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in sorted(imports(path))
        if any(name == one or name.startswith(one + ".") for one in forbidden)
    ]


def test_imports_are_found() -> None:
    assert "vitlab.stage.Context" in imports(PACKAGE / "training" / "train.py")


@pytest.mark.parametrize("folder", BELOW)
def test_nothing_below_knows_the_methods_or_the_frame(folder: str) -> None:
    frame = ("cli", "closing", "compose", "launch", "modes", "prompt", "work", "worker")
    assert not offenders(folder, "vitlab.methods", *(f"vitlab.{one}" for one in frame))


@pytest.mark.parametrize("folder", ["distill", "measure", "models"])
def test_these_know_neither_hydra_nor_lightning(folder: str) -> None:
    assert not offenders(folder, "hydra", "omegaconf", "lightning", "pytorch_lightning")


@pytest.mark.parametrize("method", METHODS)
def test_no_paper_imports_another(method: str) -> None:
    others = [f"vitlab.methods.{one}" for one in METHODS if one != method]
    assert not offenders(f"methods/{method}", *others)
