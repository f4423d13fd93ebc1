"""The method from the command line: options, refusals, the stages of a design without data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from vitlab.compose.load import load
from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.methods.base import Context, find_method
from vitlab.methods.deepmad.options import DeepMADOptions, check, problem_of, start_of, strides_for
from vitlab.methods.deepmad.search import load_design
from vitlab.methods.deepmad.structure import Structure
from vitlab.run.recorder import Recorder

WORDS = [
    *("method=deepmad", "method.budget.params=0.1M", "method.budget.flops=8M", "method.train=false"),
    *("method.chains=64", "method.steps=150"),
]


def config(*words: str) -> Config:
    merged = {word.partition("=")[0]: word for word in (*WORDS, *words)}  # a key is given once
    return load(list(merged.values())).config


def run_stages(config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """Run every stage of a design; the records."""
    method = find_method("deepmad")(config)
    stages = method.stages(config)
    folders = {stage.name: folder / stage.name for stage in stages}
    recorder = Recorder(folder / "metrics.jsonl")
    records = {}
    for stage in stages:
        folders[stage.name].mkdir(exist_ok=True)
        records[stage.name] = getattr(method, stage.name)(Context(config, stage, folders, recorder))
    return records


def test_the_released_problems() -> None:
    """Section 7 of the specification: budgets, sides and starts of the seven searches, as experiments."""
    rows = {
        "r18": (224, 1.82e9, 11.69e6, 0.3, 32), "r34": (224, 3.68e9, 21.80e6, 0.3, 32),
        "r50": (224, 4.13e9, 25.55e6, 0.3, 32), "29m_224": (224, 4.5e9, 29e6, 0.5, 32),
        "29m": (288, 4.5e9, 29e6, 0.5, None), "50m": (224, 8.7e9, 50e6, 0.5, 48), "89m": (224, 15.4e9, 89e6, 0.5, 64),
    }  # fmt: skip
    for name, (side, flops, params, rho, stem) in rows.items():
        options = load([f"experiment=deepmad_design_{name}"]).config.method
        problem = problem_of(options, side)
        budget = problem.budget
        assert (problem.resolution, budget.flops, budget.params, budget.rho) == (side, flops, params, rho)
        start = start_of(options, problem)
        if stem is not None:
            assert start is not None and start.stem.out == stem and problem.excess(start) == []
    cifar = load(["experiment=deepmad_cifar100", "dataset.root=x", "dataset.download=true"]).config
    assert (cifar.recipe.duration, cifar.recipe.weight_decay, cifar.dataset.size) == ("1440ep", 5e-4, 32)


def test_the_spread_of_the_depths_is_a_choice() -> None:
    assert problem_of(config("method.spread=variance").method, 32).scoring.variance
    assert not problem_of(config().method, 32).scoring.variance
    with pytest.raises(UserError, match=r"method\.spread=var\b"):
        check(config("method.spread=var").method, 32)


def test_stages() -> None:
    method = find_method("deepmad")

    def names(*words: str) -> list[str]:
        return [stage.name for stage in method.stages(config(*words))]

    assert names() == ["solve", "build"]
    assert names("method.train=true") == ["solve", "build", "train"]
    assert names("method.train=true", "method.baseline=true") == ["solve", "build", "handmade", "train"]
    two = config("method.train=true", "method.baseline=true", "method.other.name=mobilenetv2_035", "model=resnet18")
    assert [stage.title for stage in method.stages(two)][2:4] == ["hand-made resnet18", "hand-made mobilenetv2_035"]
    assert names("method.sweep=[1,2]") == ["solve", "build", "sweep"]
    assert "dataset" not in method.reads(config("method.resolution=64"))
    assert "dataset" in method.reads(config())
    assert {"recipe", "task"} <= method.reads(config("method.train=true"))


@pytest.mark.parametrize("space", ["resnet", "se"])
def test_a_design_from_the_command_line(space: str, tmp_path: Path) -> None:
    more = ("method.space=se", "method.tail=64", "method.budget.rho=1.5", "method.strides=[1,2,2]")
    beside = ("method.beside.a.name=resnet10t", "method.other.name=resnet18")
    composed = config("method.sweep=[0.9,1.2]", "method.certify=200ms", *beside, *(more if space == "se" else ()))
    records = run_stages(composed, tmp_path)
    solved = tmp_path / "solve"
    structure = Structure.load(solved / "structure.json")
    assert load_design(solved / "design.json").structure == structure
    problem = problem_of(composed.method, 32)
    assert problem.violations(structure) == []
    assert records["solve"]["params"] <= 100_000
    # Built with the paper's 1000 classes, where the number of classes is not given.
    classifier = structure.units[-1].out * 1000 + 1000
    assert records["build"]["params"] == records["solve"]["params"] + classifier
    assert (solved / "design.png").exists()
    assert "it is no accuracy" in (solved / "design.txt").read_text()
    points = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["name"] for point in points] == ["x0.9", "x1.2", "a", "resnet18"]
    assert [point["designed"] for point in points] == [True, True, False, False]
    alone = timm.create_model("resnet10t", num_classes=0)
    assert points[2]["params"] == sum(one.numel() for one in alone.parameters())
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "designed x1.2" in table and "| resnet18" in table and "not an accuracy" in table
    assert points[0]["score"] < points[1]["score"]
    assert (tmp_path / "sweep" / "sweep.png").exists()
    notes = " ".join(records["solve"]["notes"])
    assert "it is no measured accuracy" in notes
    assert records["solve"]["bound"] >= records["solve"]["score"]
    assert "It is proven that no network" in notes
    # A structure from a file is taken instead; notes name the constraints that it violates.
    given = config(
        f"method.structure={solved / 'structure.json'}", "method.budget.params=0.05M", *more[: 4 * (space == "se")]
    )
    record = run_stages(given, tmp_path)["solve"]
    assert any("parameters of 50,000" in note for note in record["notes"])


def test_solving_imports_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from vitlab.methods.deepmad.options import DeepMADOptions, BudgetOptions, problem_of
from vitlab.methods.deepmad.solve import design_with
for solver in ("anneal", "evolution", "milp"):
    options = DeepMADOptions(solver=solver, space="resnet", scoring="corrected", alpha_last=8.0, beta=10.0, stem_max=32,
        time_limit="3s", chains=32, steps=60, evaluations=100, budget=BudgetOptions("0.1M", "8M", 0.5))
    print(design_with(options, problem_of(options, 32), 0).score)
assert not {"torch", "timm", "lightning"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.solver=aneal"], "Did you mean anneal"),
        (["method.space=resnext"], "resnet"),
        (["method.budget.params=0.3X"], "method.budget.params=0.3X is not an amount"),
        (["method.budget.params=500"], "smallest network of this space needs"),
        (["method.budget.params=null", "method.budget.flops=null"], "needs a budget"),
        (["method.budget.latency=2ms"], "measured costs"),
        (["method.time_limit=5"], None),
        (["method.strides=[2]"], "two superblocks"),
        (["method.strides=[2,3]"], "stride 1 or 2"),
        (["method.alphas=[1,8]"], "2 weights"),
        (["method.tail=64"], "depthwise"),
        (["method.resolution=48"], "multiple of 32"),
        (["method.sweep=[0]"], "larger than 0"),
        (["method.beside.a=resnet10t"], "method.beside.a is resnet10t"),
        (["method.structure=/nowhere/x.json"], "no file"),
        (["method.start=[[16],[32,8]]"], "superblocks"),
        (["method.count_head=true"], "method.classes"),
    ],
)
def test_mistakes(words: list[str], message: str | None) -> None:
    with pytest.raises(UserError, match=message):
        find_method("deepmad").check(config(*words))


def test_strides_leave_a_last_side_of_four() -> None:
    assert {size: strides_for(size) for size in (32, 64, 128, 224, 288)} == {
        32: (1, 2, 1, 1, 2),
        64: (1, 2, 2, 1, 2),
        128: (2, 2, 2, 1, 2),
        224: (2, 2, 2, 1, 2),
        288: (2, 2, 2, 1, 2),
    }


def test_the_head_is_counted_with_count_head() -> None:
    options: DeepMADOptions = config("method.classes=100").method
    plain = problem_of(options, 32)
    counted = problem_of(replace(options, count_head=True), 32)
    structure = plain.smallest()
    channels = structure.units[-1].out
    assert counted.evaluate(structure).params - plain.evaluate(structure).params == channels * 100 + 100
    assert counted.evaluate(structure).flops - plain.evaluate(structure).flops == channels * 100


def test_budgets_scale() -> None:
    options: DeepMADOptions = config().method
    assert problem_of(options, 32, times=2.0).budget.params == 200_000
    assert problem_of(options, 32, times=2.0).budget.rho == problem_of(options, 32).budget.rho
