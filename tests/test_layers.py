"""Which room may import which, read from the source; lazy imports count like those at the top of a file."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitlab"

ORDER = (
    *("_version", "errors", "signals", "locks", "files"),  # ground, no torch
    *("config", "stage", "run", "methods.base"),
    *("distill", "models", "measure", "data"),  # neither Hydra nor Lightning
    *("report", "tasks", "training"),
    *("compose", "modes"),
    "methods",  # the papers, with their own modes
    *("launch", "sweep", "cli"),
    *("", "__main__"),  # the package itself, whose one heavy name is imported on demand
)
"""A room imports only rooms that stand before it."""

METHODS = sorted(path.parent.name for path in (PACKAGE / "methods").glob("*/method.py"))


def name_of(path: Path) -> str:
    """vitlab/models/build.py → models.build; the package's own __init__ → ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


@functools.cache
def imports(path: Path, typing: bool = True) -> frozenset[str]:
    """Modules that a file names, wherever in it; ``typing``: those under ``if TYPE_CHECKING`` too."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING" and not typing:
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{one.name}" for one in node.names}
        pending += ast.iter_child_nodes(node)
    return frozenset(found)


def own_imports(module: str, typing: bool = True) -> set[str]:
    """vitlab's modules that a module imports; of ``from vitlab.a import b`` the module b where there is one, else a."""
    named = {
        one.removeprefix("vitlab").lstrip(".")
        for one in imports(MODULES[module], typing)
        if one.split(".")[0] == "vitlab"
    }
    found = {
        one
        for one in named
        if one in MODULES and not any(other.startswith(f"{one}.") for other in named & set(MODULES))
    }
    return found - {module}


def room_of(module: str) -> str:
    return "methods.base" if module == "methods.base" else module.partition(".")[0]


def offenders(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in sorted(imports(path))
        if any(name == one or name.startswith(one + ".") for one in forbidden)
    ]


def test_imports_are_found() -> None:
    assert "vitlab.stage.Context" in imports(PACKAGE / "training" / "train.py")
    assert "modes.predictor" in own_imports("")
    assert "run.recorder" in own_imports("stage")
    assert "run.recorder" not in own_imports("stage", typing=False)


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in MODULES} == set(ORDER) - (
        {"tasks"} if not (PACKAGE / "tasks").exists() else set()
    )


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    allowed = {*ORDER[: ORDER.index(room)], room}
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if room_of(module) == room
        for other in own_imports(module, typing=False)
        if room_of(other) not in allowed
    ]
    assert not wrong


def test_there_is_no_import_circle() -> None:
    """Of modules, types and lazy imports counted: whatever imports nothing, or is imported by nothing, is taken away
    until nothing is left."""
    graph = {module: own_imports(module) for module in MODULES}
    while True:
        imported = set().union(*graph.values())
        ends = [module for module, others in graph.items() if not others & set(graph) or module not in imported]
        if not ends:
            break
        for module in ends:
            del graph[module]
    cores = {module: sorted(others & set(graph)) for module, others in graph.items()}
    assert not cores


def test_few_modules_lie_loose() -> None:
    loose = [path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(loose) <= 8, loose


@pytest.mark.parametrize("folder", ["distill", "measure", "models"])
def test_these_know_neither_hydra_nor_lightning(folder: str) -> None:
    assert not offenders(folder, "hydra", "omegaconf", "lightning", "pytorch_lightning")


@pytest.mark.parametrize("folder", ["cli", "compose", "config", "run"])
def test_the_front_is_free_of_torch(folder: str) -> None:
    assert not offenders(folder, "torch", "torchvision", "timm", "lightning")


@pytest.mark.parametrize("method", METHODS)
def test_no_paper_imports_another(method: str) -> None:
    others = [f"vitlab.methods.{one}" for one in METHODS if one != method]
    assert not offenders(f"methods/{method}", *others)


def test_nobody_but_hydras_own_file_uses_its_private_modules() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if any("hydra._internal" in one for one in imports(path))}
    assert users <= {"hydra_private.py"}
