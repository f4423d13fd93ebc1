"""Two processes give the result of one, for every method.

The same order and draws (the losses of every step), stored labels byte for byte, metrics over the exact set (the
validation batches do not divide by two), weights to 1e-6: what is left is the order in which gradients are added.
DeepMAD's networks have BatchNorm, whose statistics are those of a process's part of the batch: the result is that of
one process that forwards these parts one after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.story import run_command, the_run
from tests.contract.test_processes import learned
from tests.contract.together import run_ranks
from vitlab.training.learner import Learner

ARGS = "{patch_size:8,embed_dim:32,depth:1,num_heads:2}"
WORDS = (
    *("evaluation=quick", "model=vit_small", "model.name=vit_tiny_patch16_224", "recipe=digits"),
    *(f"model.args.{name}" for name in ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")),
    *(f"recipe.{name}" for name in ("optimizer=sgd", "lr=0.02", "warmup_lr=0", "min_lr=0", "accumulate=2")),
)
ONLINE = ("teacher.train=false", "teacher.members=[{name:vit_tiny_patch16_224,args:%s,checkpoint:%s}]")
METHODS = {
    "tinyvit": ("method=tinyvit", "recipe.augmentation.mixup=0.8", *ONLINE),
    "reinforce": ("method=reinforce", "method.kd=true", *ONLINE),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run of one process, whose model is also the teacher of the others."""
    output = tmp_path_factory.mktemp("one")
    assert run_command(output, "method=supervised", *WORDS) == 0
    return the_run(output)


def test_supervised(teacher: Path, tmp_path: Path) -> None:
    assert run_ranks(tmp_path, "method=supervised", *WORDS) == [0, 0]
    same(teacher, the_run(tmp_path))


@pytest.mark.parametrize("method", ["tinyvit", pytest.param("reinforce", marks=pytest.mark.slow)])
def test_method_with_a_teacher(method: str, teacher: Path, tmp_path: Path) -> None:
    overrides = [word % (ARGS, teacher / "train") if "%s" in word else word for word in METHODS[method]]
    assert run_command(tmp_path / "one", *overrides, *WORDS) == 0
    assert run_ranks(tmp_path / "two", *overrides, *WORDS) == [0, 0]
    one = the_run(tmp_path / "one")
    assert list(one.rglob("records.bin"))
    same(one, the_run(tmp_path / "two"))


def same(one: Path, two: Path) -> None:
    for path in one.rglob("records.bin"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    stages = [path.parent.name for path in one.glob("*/model.safetensors")]
    assert stages
    for stage in stages:
        first, second = (load_file(run / stage / "model.safetensors") for run in (one, two))
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6, msg=f"{stage} {name}")
    for a, b in zip(learned(one), learned(two), strict=True):
        assert (a.pop("stage"), list(a)) == (b.pop("stage"), list(b))
        assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-4, abs=1e-5)


def test_deepmad_gives_the_result_of_one_process_that_forwards_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same design, order and draws, and weights to 1e-6; running averages, which one process updates twice as
    often, are not the same, and what is measured with them is not either."""
    overrides = ["method=deepmad", "method.train=true", "method.budget.params=0.1M", "method.budget.flops=8M"]
    overrides += ["method.chains=32", "method.steps=60", "recipe=digits", "recipe.optimizer=sgd", "recipe.lr=0.02"]
    overrides += ["evaluation=quick"]
    assert run_ranks(tmp_path / "two", *overrides) == [0, 0]

    def build(self: Learner, student: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        learner(self, student, *args, **kwargs)

        def in_parts(image: torch.Tensor) -> torch.Tensor:
            return torch.stack([student(image[0::2]), student(image[1::2])], 1).flatten(0, 1)

        object.__setattr__(self, "forward_student", in_parts)

    learner = Learner.__init__
    monkeypatch.setattr(Learner, "__init__", build)
    assert run_command(tmp_path / "one", *overrides) == 0
    one, two = the_run(tmp_path / "one"), the_run(tmp_path / "two")
    assert (one / "solve" / "structure.json").read_bytes() == (two / "solve" / "structure.json").read_bytes()
    first, second = (load_file(run / "train" / "model.safetensors") for run in (one, two))
    weights = [name for name in first if not name.rpartition(".")[2].startswith(("running_", "num_batches_"))]
    assert len(weights) < len(first)
    for name in weights:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6, msg=name)
    rows = [[row for row in learned(run) if "loss" in row] for run in (one, two)]
    assert len(rows[0]) > 3
    for a, b in zip(*rows, strict=True):
        assert list(a.values())[1:] == pytest.approx(list(b.values())[1:], rel=1e-4, abs=1e-5)
