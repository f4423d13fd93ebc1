"""Structure of the files of conf/: few repetitions, short chains, one place for every published number."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitlab.compose.load import load
from vitlab.config.catalogue import choices, conf_dir
from vitlab.config.composed import Composed
from vitlab.errors import UserError

CONF = conf_dir()
FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted(CONF.glob("*/*.yaml"))}
FILES = {name: path for name, path in FILES.items() if not name.startswith("local/")}
EXPERIMENTS, ROWS = choices(CONF, "experiment"), choices(CONF, "paper")
DEPTH = 2
SIZES = ("5m", "11m", "21m")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for the data sets that need one."""
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))


@functools.cache
def experiment(name: str) -> Composed:
    """The configuration of ``experiment=NAME``."""
    return load([f"experiment={name}"])


def bases(name: str) -> list[str]:
    """The files of the same group that a file extends: the entries of its defaults list without a group."""
    listed = (yaml.safe_load(FILES[name].read_text()) or {}).get("defaults", [])
    return [f"{name.partition('/')[0]}/{one}" for one in listed if isinstance(one, str) and one != "_self_"]


def chains(name: str) -> list[list[str]]:
    """Every chain of bases of a file, the file first."""
    return [[name, *rest] for base in bases(name) for rest in chains(base)] or [[name]]


def leaves(value: Any, prefix: str = "") -> set[str]:
    """The settings of a file as text, without its bases."""
    if isinstance(value, dict):
        return set().union(*(leaves(one, f"{prefix}{key}.") for key, one in value.items()))
    if prefix.startswith("defaults") and isinstance(value, list):
        return {str(one) for one in value if isinstance(one, dict)}
    return {f"{prefix}={value}"}


def test_sixty_lines_in_a_hundred_are_distinct() -> None:
    """Of all lines of ``conf/**/*.yaml`` that are neither blank nor comments, stripped of the space around them, the
    share that is left when each text is counted once. Section headings such as ``defaults:`` count, as all lines do.
    """
    lines = [line.strip() for path in CONF.rglob("*.yaml") if path in FILES.values() or path.parent == CONF
             for line in path.read_text().splitlines()]  # fmt: skip
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(set(lines)) / len(lines) >= 0.60


def test_no_file_repeats_more_than_half_of_another() -> None:
    found = {name: leaves(yaml.safe_load(path.read_text())) for name, path in FILES.items()}
    for name, mine in found.items():
        for other, its in found.items():
            if name.partition("/")[0] == other.partition("/")[0] and name != other and len(mine) > 3:
                assert len(mine & its) <= len(mine) / 2, f"{name} repeats {other}"


@pytest.mark.parametrize("name", [f"experiment/{name}" for name in EXPERIMENTS])
def test_an_experiment_has_a_short_chain_of_bases(name: str) -> None:
    """At most two deep, and none of another model size: a change of the 21M does not change the 11M."""
    for chain in chains(name):
        assert len(chain) - 1 <= DEPTH, " -> ".join(chain)
        sizes = {size for one in chain for size in SIZES if f"_{size}_" in f"{one}_"}
        assert len(sizes) <= 1, " -> ".join(chain)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_documents_paper_hardware_and_command(name: str) -> None:
    text = FILES[f"experiment/{name}"].read_text()
    for word in ("Paper:", "Hardware:", f"Command: python -m vitlab experiment={name}"):
        assert word in text
    paper = experiment(name).config.paper
    if paper.name is None:
        assert "Expected" in text or "top-1" in text
    assert paper.top1 is None or f"{paper.top1} top-1" in text
    assert paper.top5 is None or f"{paper.top5} top-5" in text


def test_published_numbers_are_in_one_place() -> None:
    """Only in conf/paper; an experiment refers to its row, and every row is used."""
    named = {experiment(name).choices["paper"] for name in EXPERIMENTS}
    assert named == set(ROWS)
    for name, path in FILES.items():
        assert name.startswith("paper/") or "paper" not in (yaml.safe_load(path.read_text()) or {}), name


@pytest.mark.parametrize("name", [name for name in ROWS if name != "none"])
def test_a_row_has_its_source_and_model(name: str) -> None:
    composed = load(["method=supervised", f"paper={name}"])
    row = composed.config.paper
    assert row.name and row.source and row.model
    assert row.top1 is not None and 50 < row.top1 < 100
    assert composed.identity() == load(["method=supervised"]).identity(), "a published row cannot change the result"


def test_a_base_is_not_a_choice() -> None:
    hidden = [name for name in FILES if "/_" in name]
    assert "experiment/_tinyvit_resolution" in hidden
    for name in hidden:
        group, _, choice = name.partition("/")
        assert choice not in choices(CONF, group)
        assert any(name in chain[1:] for other in FILES for chain in chains(other)), f"nothing extends {name}"
    with pytest.raises(UserError, match="_tinyvit_resolution"):
        load(["experiment=_tinyvit_resolution"])
