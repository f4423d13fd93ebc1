"""The files for contributors beside the code: contributor page, workflow, hooks, changelog."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_code import TOOLS
from tests.test_layers import MODULES, ORDER, imports, room_of
from vitlab import __version__

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
CHANGELOG = ROOT / ".github" / "CHANGELOG.md"
MAKEFILE = (ROOT / "Makefile").read_text()


def commands(page: Path) -> list[list[str]]:
    """The words of every line of the page's bash blocks, without the comment behind it."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def table(page: Path) -> list[list[str]]:
    """Rows of the page's one table, head and rule left out."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


@pytest.mark.parametrize("page", [README, PAGE, CHANGELOG], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [README, PAGE], ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    """Of ``vitlab/methods/<method>/method.py`` there is at least one; the README also names files that it has typed."""
    text = page.read_text()
    named = set(re.findall(r"`((?:vitlab|conf|tests)/[\w./<>]*)`", text))
    typed = set(re.findall(r"`([\w./]+)`:\n\n```(?:python|yaml)\n", text))
    assert named
    for path in named - typed:
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/"))), path


def test_commands_of_the_page_exist() -> None:
    lines = commands(PAGE)
    targets = set(re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[0].split())
    assert {words[0] for words in lines} == {"make", ".venv/bin/python"}
    for words in lines:
        if words[0] == "make":
            assert words[1] in targets
            continue
        assert words[1:3] == ["-m", "pytest"]
        files = [ROOT / word for word in words if word.startswith("tests/")]
        assert files and all(file.exists() for file in files)
        if "-k" in words:
            text = " ".join(re.findall(r"def (test_\w+)", files[0].read_text()))
            assert words[words.index("-k") + 1] in text


def test_the_page_names_the_rooms_in_their_order() -> None:
    assert [name for row in table(PAGE) for name in re.findall(r"`([\w.]+)`", row[0])] == list(ORDER)[:-2]


def test_what_a_room_never_imports_it_does_not_import() -> None:
    wrong = [
        f"{module} imports {package}"
        for rooms, _, never in table(PAGE)
        for package in ("torch", "hydra", "lightning")
        if re.search(rf"\b{package}\b", never, re.IGNORECASE)
        for module, path in MODULES.items()
        if f"`{room_of(module)}`" in rooms
        if any(name.split(".")[0] == package for name in imports(path, typing=False))
    ]
    assert not wrong


def test_the_workflow_runs_the_tests_as_the_readme_says() -> None:
    workflow = read_yaml(".github/workflows/test.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    assert ["make", "test"] in commands(README)
    matrix = job["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f">={matrix['python'][0]}" == project["requires-python"] and len(matrix["python"]) == 2
    assert all(isinstance(version, str) for version in matrix["python"]), "3.10 without quotes is 3.1"
    assert job["timeout-minutes"] and workflow["concurrency"]["cancel-in-progress"]
    assert workflow[True]["pull_request"] is None  # YAML 1.1 reads the key "on" as true


def test_the_hooks_run_what_the_tests_run() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"].split() for hook in repository["hooks"]]
    assert hooks == [[".venv/bin/python", "-m", *tool] for tool in TOOLS]
    lint = re.findall(r"^\t\$\(BIN\) -m ((?:ruff|mypy).*)", MAKEFILE, re.MULTILINE)
    assert [line.split() for line in lint] == [list(tool) for tool in TOOLS]
    assert all(not hook["pass_filenames"] and hook["language"] == "system" for hook in repository["hooks"])


def test_the_changelog_is_kept() -> None:
    first, *released = re.findall(r"^## (.+)", CHANGELOG.read_text(), re.MULTILINE)
    assert first == "Unreleased"
    assert released[0].split()[0] == __version__
