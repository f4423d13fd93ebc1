"""Contraction: budgets, verdicts, journal, other families; no network is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from vitlab.errors import UserError
from vitlab.measure.cost import count_macs, count_params
from vitlab.methods.tinyvit.contract import Journal, Limits, Row, check_target, contract, outline
from vitlab.methods.tinyvit.contraction_report import head_text, table, write
from vitlab.methods.tinyvit.families import Args, Family, family_of
from vitlab.methods.tinyvit.reach import budget, digest, fewest, reachable, varied

LIMITS = Limits(params=11e6, speed=1.5, steps=4, moves=3, tolerance=0.05, candidates=4)


@pytest.fixture(scope="module")
def family() -> Family:
    return family_of("tiny_vit_21m_224", {}, 224, 1000)


class Machine:
    """A device whose speed and a proxy whose score follow from the costs; it counts its calls."""

    def __init__(self, family: Family, patience: int = 10**9) -> None:
        self.family, self.calls, self.patience = family, 0, patience

    def throughput(self, args: Args) -> float:
        self._ask()
        return 1e12 / self.family.cost(args)[1]

    def score(self, args: Args) -> float:
        self._ask()
        return self.family.cost(args)[1] / 1e9 + sum(args["depths"]) / 10

    def _ask(self) -> None:
        self.calls += 1
        if self.calls > self.patience:
            raise KeyboardInterrupt


def search(family: Family, path: Path, machine: Machine, limits: Limits = LIMITS) -> list[Row]:
    return contract(family, limits, Journal(path, {"limits": str(limits)}), machine.throughput, machine.score)


def contract_rows(family: Family, limits: Limits, path: Path) -> list[Row]:
    search(family, path, Machine(family), limits)
    return Journal(path, {"limits": str(limits)}).rows


def test_budgets_are_geometric() -> None:
    assert [budget(16.0, 1.0, step, 4) for step in range(5)] == [16, 8, 4, 2, 1]


def test_the_start_is_the_networks_own(family: Family) -> None:
    assert family.cost(family.start) == (21_198_568, 4_250_329_536)
    assert family.start["embed_dims"] == [96, 192, 384, 576] and family.start["window_sizes"][1:] == [7, 14, 7]


def test_every_candidate_is_reached_once(family: Family) -> None:
    one, two = reachable(family, family.start, 1), reachable(family, family.start, 2)
    assert len(one) == 13 and set(one) < set(two)
    assert digest(family.start) not in two
    assert sum(path.count("+") == 1 for path, _ in two.values()) == len(two) - len(one)


def test_budgets_are_kept_and_the_best_is_taken(family: Family, tmp_path: Path) -> None:
    way = search(family, tmp_path / "journal.jsonl", Machine(family))
    assert [row.step for row in way] == [0, 1, 2, 3, 4]
    rows = Journal(tmp_path / "journal.jsonl", {"limits": str(LIMITS)}).rows
    start = rows[0]
    assert start.throughput is not None
    for step in range(1, 5):
        of_step = [row for row in rows if row.step == step]
        miss = 0.05 if step < 4 else 0.0  # the last budgets are the targets themselves
        most = budget(21_198_568, 11e6, step, 4) * (1 + miss)
        least = start.throughput * 1.5 ** (step / 4) * (1 - miss)
        scored = [row for row in of_step if row.score is not None]
        assert 1 <= len(scored) <= 4
        for row in of_step:
            assert (row.verdict == "over budget") == (row.params > most)
            assert row.verdict != "too slow" or (row.throughput is not None and row.throughput < least)
        assert all(row.throughput is not None and row.throughput >= least for row in scored)
        (best,) = [row for row in scored if row.verdict == "chosen"]
        assert best.score == max(row.score for row in scored if row.score is not None)
        assert len({row.key for row in of_step}) == len(of_step) > 100, "every candidate is kept"
    assert way[-1].params <= 11e6


def test_what_is_scored_is_of_many_kinds_and_fast(family: Family, tmp_path: Path) -> None:
    """Not the largest eight alone: of every kind of change one, and those with fewer multiply-adds for their size."""
    limits = Limits(params=11e6, speed=0, steps=4, moves=3, tolerance=0.05, candidates=8)
    rows = contract_rows(family, limits, tmp_path / "journal.jsonl")
    for step in range(1, 5):
        fits = [row for row in rows if row.step == step and row.verdict not in ("over budget", "dead end")]
        scored = [row for row in fits if row.score is not None]
        kinds = [frozenset(move.rstrip("1234") for move in row.moves.split("+")) for row in scored]
        assert len(scored) == 8 and len(set(kinds)) == 8
        largest = sorted(fits, key=lambda row: -row.params)[:8]
        assert largest[0] in scored and scored != largest
        assert min(row.macs / row.params for row in scored) == min(row.macs / row.params for row in fits)


def test_one_of_each_kind_before_a_second() -> None:
    words = ["aa", "ab", "ba", "a", "b", "ca"]
    order = list(varied(words, lambda word: word[0], lambda word: -len(word), lambda word: (len(word), word)))
    assert order == ["aa", "b", "ca", "a", "ba", "ab"]


def test_no_step_leads_into_a_dead_end(family: Family, tmp_path: Path) -> None:
    """A proxy that prefers few multiply-adds' loss kept cheap parameters for last, and found no way to 5.4M."""
    limits = Limits(params=5.4e6, speed=0, steps=4, moves=3, tolerance=0.05, candidates=8)
    journal = Journal(tmp_path / "journal.jsonl", {})
    way = contract(family, limits, journal, lambda _: 1.0, lambda args: float(family.cost(args)[1]))
    assert way[-1].step == 4 and way[-1].params <= 5.4e6


@pytest.mark.parametrize("patience", [0, 1, 5, 12])
def test_killed_and_continued_it_finds_the_same(family: Family, tmp_path: Path, patience: int) -> None:
    full, path = Machine(family), tmp_path / "journal.jsonl"
    wanted = search(family, tmp_path / "whole.jsonl", full)
    with pytest.raises(KeyboardInterrupt):
        search(family, path, Machine(family, patience))
    with open(path, "a") as file:
        file.write('{"measured": "sco')  # as a kill leaves it
    rest = Machine(family)
    assert search(family, path, rest) == wanted
    assert rest.calls == full.calls - patience, "nothing is measured twice"
    assert search(family, path, Machine(family, 0)) == wanted
    with pytest.raises(UserError, match="journal of another search"):
        Journal(path, {"limits": "others"})


def test_ties_go_to_the_faster_then_the_smaller(family: Family, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", {})
    limits = Limits(params=20e6, speed=1.0, steps=1, moves=1, tolerance=0.05, candidates=20)
    speed = {"N3": 9.0, "D3": 9.0}
    names = {digest(args): path for path, args in reachable(family, family.start, 1).values()}
    way = contract(family, limits, journal, lambda args: speed.get(names.get(digest(args), ""), 5.0), lambda _: 1.0)
    assert way[-1].moves == "N3", "19.42M parameters against 19.45M"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(params=20e6, speed=50, steps=1, moves=1, tolerance=0.0, candidates=1), "of which 4 too slow"),
        (
            Limits(params=11e6, speed=0, steps=1, moves=1, tolerance=0.0, candidates=1),
            r"Give method.contract.steps=4, ",
        ),
        (
            Limits(params=5.4e6, speed=0, steps=2, moves=3, tolerance=0.05, candidates=1),
            r"the smallest network 6 moves",
        ),
        (
            Limits(params=1e4, speed=0, steps=4, moves=3, tolerance=0.05, candidates=1),
            r"the smallest network that contr",
        ),
        (Limits(params=30e6, speed=0, steps=1, moves=1, tolerance=0.0, candidates=1), "not below the start's"),
    ],
)
def test_what_cannot_be_is_said(family: Family, tmp_path: Path, limits: Limits, message: str) -> None:
    machine = Machine(family)
    with pytest.raises(UserError, match=message):
        search(family, tmp_path / "journal.jsonl", machine, limits)
    assert machine.calls == 0 or limits.speed, "what is out of reach is refused before anything is measured"


def test_the_cure_that_is_named_is_one(family: Family) -> None:
    for limits in (
        Limits(params=11e6, speed=0, steps=1, moves=1, tolerance=0.0, candidates=1),
        Limits(params=5.4e6, speed=0, steps=2, moves=3, tolerance=0.05, candidates=1),
    ):
        with pytest.raises(UserError) as refused:
            check_target(family, limits)
        found = re.search(r"contract.steps=(\d+), or method.contract.moves=(\d+)", refused.value.cure or "")
        assert found is not None
        check_target(family, replace(limits, steps=int(found[1])))
        check_target(family, replace(limits, moves=int(found[2])))


def test_the_smallest_networks_are_found(family: Family) -> None:
    least = fewest(family, family.start, 3, family.params)
    assert least[1:] == [
        min(family.params(args) for _, args in reachable(family, family.start, moves).values()) for moves in (1, 2, 3)
    ]


def test_what_will_be_done_is_said_before(family: Family, tmp_path: Path) -> None:
    tight = replace(LIMITS, params=5.4e6, moves=3, speed=60.0)
    text = "\n".join(outline(family_of("tiny_vit_21m_224", {}, 224, 4), tight, 4))
    assert "the head of 4 classes (2,308 of the start's" in text
    assert "of these 12 are needed, which leaves little choice" in text
    assert "60 times its speed (method.contract.speed) is unlikely" in text
    lines: list[str] = []
    machine = Machine(family)
    journal = Journal(tmp_path / "journal.jsonl", {})
    contract(family, LIMITS, journal, machine.throughput, machine.score, lines.append, seconds=15.0)
    fits = re.search(r"(\d+) of 474 candidates have at most 18,", lines[0])
    assert fits is not None and "throughput takes 1 min 00 s if the first are fast enough, " in lines[0]
    assert int(fits[1]) > 100 and re.search(r"\d+ min \d\d s if none is", lines[0])
    assert head_text(1000, 1000, 10) == "the head of 1,000 classes is 10 of these parameters"
    assert head_text(10_052, 4, 52).endswith("with 1,000 classes they are 23,000")


def test_numbers_out_of_range() -> None:
    with pytest.raises(UserError, match=r"method\.contract\.steps=0"):
        Limits(params=1, speed=0, steps=0, moves=1, tolerance=0, candidates=1)


@pytest.mark.parametrize(
    ("name", "args", "moves"),
    [
        ("vit_tiny_patch16_224", {}, ["D", "N", "M"]),
        ("deit_small_patch16_224", {"depth": 1}, ["D", "M"]),
        ("convnext_atto", {}, ["D1", "D2", "D3", "D4", "N1", "N2", "N3", "N4"]),
        ("resnet18", {}, ["D1", "D2", "D3", "D4", "N1", "N2", "N3", "N4"]),
    ],
)
def test_other_families_are_counted(name: str, args: Args, moves: list[str]) -> None:
    family = family_of(name, args, 32 if "resnet" in name else 224, 10)
    near = dict(family.smaller(family.start))
    assert list(near) == moves
    cost = family.cost(family.start)
    assert family.params(family.start) == cost[0]
    model: Any = timm.create_model(name, num_classes=10, device="meta", **args)
    assert family.head(family.start) == count_params(model.get_classifier())
    assert cost == (count_params(model), count_macs(model, 32 if "resnet" in name else 224))
    for found in near.values():
        smaller = family.cost(found)
        assert smaller[0] < cost[0] and smaller[1] < cost[1]


def test_unknown_families_are_named() -> None:
    with pytest.raises(UserError, match="Supported are TinyVit, VisionTransformer, ConvNeXt, ResNet"):
        family_of("mobilenetv4_conv_small", {}, 224, 10)


def test_what_was_found_is_written(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    search(family, path, Machine(family))
    rows = Journal(path, {"limits": str(LIMITS)}).rows
    text = table(rows, "params")
    assert text.count("**chosen**") == 4 and text.count("| start |") == 1
    fixed = {"drop_path_rate": 0.1}
    files = write(tmp_path / "found", rows, "tiny_vit_21m_224", fixed, "params", 1000, family.head(rows[-1].args))
    assert [file.name for file in files] == ["contraction.md", "contraction.png", "contraction.json", "model.yaml"]
    assert (tmp_path / "found" / "contraction.png").stat().st_size > 5000
    import yaml

    model = yaml.safe_load((tmp_path / "found" / "model.yaml").read_text())
    last = next(row for row in reversed(rows) if row.verdict == "chosen")
    assert model == {"name": "tiny_vit_21m_224", "args": {"drop_path_rate": 0.1} | last.args}
    network = timm.create_model(model["name"], num_classes=1000, device="meta", **model["args"])
    assert count_params(network) == last.params
