"""Structures: strict reading, exact writing, the official files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vitlab.errors import UserError
from vitlab.methods.deepmad.figures import picture, text_table
from vitlab.methods.deepmad.structure import Conv, Structure, Superblock, format_official, parse_official

R18_TEXT = """{ 'best_structures':[ [
    {'class': 'ConvKXBNRELU', 'in': 3, 'k': 3, 'out': 32, 's': 2},
    { 'L': 1, 'btn': 40, 'class': 'SuperResK1KXK1', 'in': 32, 'inner_class': 'ResK1KXK1', 'k': 5, 'out': 96, 's': 2},
    { 'L': 6, 'btn': 40, 'class': 'SuperResK1KXK1', 'in': 96, 'inner_class': 'ResK1KXK1', 'k': 5, 'out': 384, 's': 2}]],
'space_arch': 'CnnNet'}  \n"""
SMALL = Structure(
    (Conv(16, 3, 2), Superblock("K1KXK1", 32, 8, 3, 2, 2), Superblock("K1DWSEK1", 40, 96, 5, 1, 1), Conv(64, 1, 1))
)


def test_official_text() -> None:
    found = parse_official(R18_TEXT)
    assert found.units == (
        Conv(32, 3, 2),
        Superblock("K1KXK1", 96, 40, 5, 2, 1),
        Superblock("K1KXK1", 384, 40, 5, 2, 6),
    )
    assert parse_official(R18_TEXT.strip().removeprefix("{ 'best_structures':[").split("],\n")[0]) == found  # bare list


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("'in': 96", "'in': 95", "takes 95 channels and gets 96"),
        ("'btn'", "'bottle'", "bottle"),
        ("SuperResK1KXK1', 'in': 32", "SuperResKXKX', 'in': 32", "KXKX"),
        ("'k': 3", "'k': __import__('os').getcwd()", "literal"),
        ("'s': 2}", "'s': 4}", "1 or 2"),
        ("]],", "], [1]],", "2 structures"),
    ],
)
def test_official_text_is_checked_and_never_run(before: str, after: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_official(R18_TEXT.replace(before, after, 1))


def test_round_trips(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(20):
        blocks = [
            Superblock(
                rng.choice(("K1KXK1", "K1DWK1", "K1DWSEK1")),
                *(rng.randrange(1, 99), rng.randrange(1, 99), rng.choice((1, 3, 5, 7))),
                *(rng.choice((1, 2)), rng.randrange(1, 9)),
            )
            for _ in range(rng.randrange(1, 6))
        ]
        one = Structure((Conv(rng.randrange(1, 99), 3, 2), *blocks, *([Conv(64, 1, 1)] if number % 2 else [])))
        assert Structure.from_list(json.loads(json.dumps(one.to_list()))) == one
        assert parse_official(format_official(one)) == one
        one.save(tmp_path / "one.json")
        (tmp_path / "one.yaml").write_text(one.to_yaml())
        (tmp_path / "one.txt").write_text(format_official(one))
        assert all(Structure.load(tmp_path / f"one.{kind}") == one for kind in ("json", "yaml", "txt"))


@pytest.mark.parametrize(
    ("unit", "change", "message"),
    [
        (1, {"block": "K1KXK2"}, "Did you mean K1KXK1"),
        (1, {"bottlneck": 8}, "key 'bottlneck'"),
        (1, {"depth": None}, "depth of unit 1 of the structure is missing"),
        (1, {"depth": True}, "an integer"),
        (1, {"out": 32.0}, "an integer"),
        (1, {"out": 0}, "an integer"),
        (0, {"kernel": 4}, "odd"),
        (0, {"stride": 3}, "1 or 2"),
        (0, {"depth": 1}, "key 'depth'"),
    ],
)
def test_mistakes_are_named(unit: int, change: dict[str, object], message: str) -> None:
    units = SMALL.to_list()
    units[unit].update(change)
    with pytest.raises(UserError, match=message):
        Structure.from_list(units)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        Structure.load(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Structure.load(tmp_path / "a.json")
    (tmp_path / "b.yaml").write_text("format: 7\nunits: []\n")
    with pytest.raises(UserError, match="format 7"):
        Structure.load(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="starts with a K1KXK1"):
        Structure.from_list(SMALL.to_list()[1:])
    with pytest.raises(UserError, match="list of units"):
        Structure.from_list([])


def test_parts() -> None:
    assert SMALL.stem == Conv(16, 3, 2)
    assert [block.out for block in SMALL.blocks] == [32, 40]
    assert SMALL.tail == Conv(64, 1, 1)
    assert SMALL.stride == 4
    assert Structure(SMALL.units[:2]).tail is None


def test_shown(tmp_path: Path) -> None:
    table = text_table(SMALL, 64)
    assert table.splitlines()[0].split() == [
        "unit",
        "in",
        "out",
        "bottleneck",
        "kernel",
        "stride",
        "units",
        "side",
        "params",
    ]
    assert table.splitlines()[2].split() == ["K1KXK1", "16", "32", "8", "3", "2", "2", "16", "2,816"]
    picture(SMALL, 64, "a small one", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
