"""Weights shared out over two processes: the same training, the same checkpoint, the same artifact."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tests.contract.story import assert_same, at, run_command, the_run
from tests.contract.together import run_ranks
from vitlab.run.recorder import read_rows
from vitlab.training.learner import Learner
from vitlab.training.sharding import units

WORDS = (
    *(
        "method=supervised",
        "debug.max_steps=7",
        "recipe.validate_every=4st",
        "model=vit_small",
        "model.name=vit_tiny_patch16_224",
        "recipe=digits",
    ),
    *(f"model.args.{name}" for name in ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")),
    *("recipe.ema=0.9", "recipe.clip=1", "recipe.accumulate=2", "recipe.layer_decay=0.8"),
)
ARGS = "{patch_size:8,embed_dim:32,depth:1,num_heads:2}"
SHARED = (*WORDS, "trainer.strategy=fsdp")
"""Of the five validation batches the second process has two, the first three."""


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(the_run(output) / "train" / "model.safetensors")


def same(output: Path, other: Path) -> None:
    one, two = weights(output), weights(other)
    assert list(one) == list(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5, msg=name)  # AdamW divides by small numbers
    for a, b in zip(*(read_rows(the_run(run) / "metrics.jsonl") for run in (output, other)), strict=True):
        for name in ("val_nll", "gradient_norm", "loss"):
            if name in a:
                assert float(str(a[name])) == pytest.approx(float(str(b[name])), rel=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    assert run_command(output, *WORDS) == 0
    return output


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("together")
    assert run_ranks(output, *SHARED, setup=expect_shares) == [0, 0]
    return output


def local(value: torch.Tensor) -> int:
    """Numbers of ``value`` that this process keeps."""
    assert isinstance(value, DTensor)
    return value.to_local().numel()


def expect_shares(rank: int) -> None:
    """Fail unless the training really keeps half of every weight, gradient and moment in each process."""
    original = Learner.after_step

    def looked_at(learner: Learner) -> None:
        optimizer = learner.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        kept = sum(local(weight) for weight in learner.student.parameters())
        moments = sum(local(state["exp_avg"]) for state in optimizer.optimizer.state.values())
        average = sum(local(weight) for weight in learner.result.parameters())
        full = sum(weight.numel() for weight in learner.student.parameters())
        assert kept == moments == average and kept < 0.6 * full
        original(learner)

    Learner.after_step = looked_at  # type: ignore[method-assign, assignment]


def test_shared_out_is_one_process(alone: Path, together: Path) -> None:
    same(alone, together)


def test_stopped_in_mid_epoch_continues_bit_for_bit(together: Path, tmp_path: Path) -> None:
    with_stop = at(Learner, "after_step", lambda one: one.step + 1 == 3, signal.SIGTERM)
    assert run_ranks(tmp_path, *SHARED, setup=lambda rank: with_stop.__enter__()) == [130, 130]
    assert (the_run(tmp_path) / "train" / "checkpoint.ckpt").exists()
    assert run_ranks(tmp_path, *SHARED) == [0, 0]
    assert_same(the_run(together), the_run(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["together", "alone"])
def test_other_hardware_continues(alone: Path, tmp_path: Path, first: str) -> None:
    """A run that was begun by two processes goes on with one, and the other way round."""
    with_stop = at(Learner, "after_step", lambda one: one.step + 1 == 3, signal.SIGTERM)
    if first == "together":
        assert run_ranks(tmp_path, *SHARED, setup=lambda rank: with_stop.__enter__()) == [130, 130]
        assert run_command(tmp_path, *WORDS) == 0
    else:
        with with_stop:
            assert run_command(tmp_path, *WORDS) == 130
        assert run_ranks(tmp_path, *SHARED) == [0, 0]
    same(alone, tmp_path)


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("vit_large_patch16_224", "blocks.0"),
        ("swin_base_patch4_window7_224", "layers.2.blocks.3"),
        ("resnet50", "layer3.1"),
    ],
)
def test_units_are_the_blocks_inner_ones_first(name: str, several: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    found = units(network)
    names = {id(module): name for name, module in network.named_modules()}
    unit_names = [names[id(unit)] for unit in found]
    assert several in unit_names and len(unit_names) == len(set(unit_names))
    for place, one in enumerate(unit_names):
        assert not any(later.startswith(f"{one}.") for later in unit_names[place:])


@pytest.mark.slow
def test_a_teacher_that_is_asked_at_every_step_is_shared_out_too(alone: Path, tmp_path: Path) -> None:
    member = f"{{name:vit_tiny_patch16_224,args:{ARGS},checkpoint:{the_run(alone) / 'train'}}}"
    requested = tuple(word for word in WORDS if not word.startswith(("method=", "recipe.layer_decay")))
    words = (*requested, "method=tinyvit", "method.online=true", "method.baseline=false", "teacher.train=false")
    words = (*words, f"teacher.members=[{member}]")
    assert run_command(tmp_path / "one", *words) == 0
    assert run_ranks(tmp_path / "two", *words, "trainer.strategy=fsdp") == [0, 0]
    for name, value in load_file(the_run(tmp_path / "one") / "pretrain" / "model.safetensors").items():
        other = load_file(the_run(tmp_path / "two") / "pretrain" / "model.safetensors")[name]
        torch.testing.assert_close(other, value, rtol=0, atol=2e-5, msg=name)
