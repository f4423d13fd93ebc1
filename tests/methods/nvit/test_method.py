"""The method at the prompt: contradictions, compat=official, ReViT, 2:4 sparsity, a smaller network cut further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vitlab
from tests.contract.story import run_command, the_run
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.methods.nvit.method import NViT
from vitlab.methods.nvit.options import OFFICIAL, resolved
from vitlab.models.pruning.sparsity import is_eligible, linear_weights

SHORT = (
    *("method=nvit", "model.args.embed_dim=32", "model.args.depth=2", "method.target.latency=null"),
    *("method.target.macs=0.7", "method.prune.interval=2", "method.prune.units_per_event=64"),
    *("method.dense.batch_size=16", "method.finetune.batch_size=16", "debug.max_steps=8", "evaluation=quick"),
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.target.macs=0.5"], "there is method.target.latency and method.target.macs"),
        (["method.target.latency=null"], "there is no method.target"),
        (["method.target.latency=1"], "is the dense network itself"),
        (["method.dense=null"], "'vit_tiny_patch16_224' has no weights"),
        (["recipe.ema=0.99"], "would keep those of pruned units"),
        (["method.prune.units_per_event=8"], "an event would prune no group"),
        (["method.finetune=null", "method.sparsity=2:4"], "part of finetuning"),
        (["method.prune.norm_stats=lively"], "Did you mean live?"),
        (["task=multilabel", "dataset=digits_multi", "model=vit_digits"], "has none of"),
    ],
)
def test_contradictions_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        NViT.check(load(["method=nvit", "dataset=digits", *words]).config)


def test_compat_decides_the_keys_that_are_open() -> None:
    ours, official = (resolved(load(["method=nvit", f"method.compat={name}"]).config.method)
                      for name in ("vitlab", "official"))  # fmt: skip
    assert (ours.norm_stats, ours.schedule, ours.eta_scale) == ("live", "exact", "relative")
    assert (ours.score.weights, ours.score.correct_bias, ours.score.reset_after_first) == ("pre", True, False)
    assert (official.norm_stats, official.schedule, official.eta_scale) == ("full", "official", "absolute")
    assert (official.score.weights, official.score.correct_bias, official.score.reset_after_first) == (
        "post",
        False,
        True,
    )
    mixed = resolved(load(["method=nvit", "method.compat=official", "method.prune.norm_stats=live"]).config.method)
    assert mixed.norm_stats == "live" and mixed.schedule == "official"
    assert len(OFFICIAL) == 6


def test_the_arithmetic_of_the_released_code_runs_to_an_export(tmp_path: Path) -> None:
    assert run_command(tmp_path, *SHORT, "method.compat=official", "recipe.clip=1.0") == 0
    run = the_run(tmp_path)
    assert read_json(run / "cut" / "model.json")["args"]["norm_width"] == 32  # statistics of the dense width
    assert read_json(run / "cut" / "export.json")["difference"] < 1e-5
    assert read_json(run / "prune" / "pruning.json")["events"][0]["step"] == 3  # the first interval has a step more


def test_sparse_finetuning_keeps_its_masks_and_the_result_is_cut_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = tuple(f"method.prune.groups.{kind}={size}" for kind, size in (("embedding", 16), ("qk", 8), ("v", 8)))
    more = (*groups, "method.prune.groups.mlp=16", "method.sparsity=2:4", "method.target.macs=0.9")
    assert run_command(tmp_path, *SHORT, *more) == 0
    run = the_run(tmp_path)
    eligible = [
        weight for weight in linear_weights(vitlab.load_model(run / "finetune")).values() if is_eligible(weight)
    ]
    assert len(eligible) > 4
    assert all(int(weight.flatten(1).unflatten(1, (-1, 4)).count_nonzero(-1).max()) <= 2 for weight in eligible)
    assert "2:4 sparsity leaves" in json.dumps(read_json(run / "finetune" / "done.json"))
    before = read_json(run / "finetune" / "model.json")["args"]["structure"]
    capsys.readouterr()
    again = tmp_path / "again"
    assert run_command(again, "method=nvit", f"model={run}", *SHORT[3:]) == 0
    after = read_json(the_run(again) / "finetune" / "model.json")["args"]["structure"]
    assert "loaded" in capsys.readouterr().out
    assert sum(after["mlp"]) + after["embed"] < sum(before["mlp"]) + before["embed"]


def test_a_redistributed_network_is_trained_with_a_cnn(tmp_path: Path) -> None:
    words = ("method=nvit", "method.revit=101", "teacher=digits", "teacher.recipe.batch_size=16", "evaluation=quick")
    shape = ("model=deit_tiny", "model.args.patch_size=16", "debug.max_steps=2")
    assert run_command(tmp_path, *words, *shape, "method.loss.kl_weight=0", "recipe.batch_size=16") == 0
    run = the_run(tmp_path)
    meta = read_json(run / "revit" / "model.json")
    assert meta["name"] == "revit" and meta["args"]["embed_dim"] == 101
    with torch.inference_mode():
        assert vitlab.load_model(run / "revit")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert {path.parent.name for path in run.glob("*/model.json")} == {"teacher", "revit"}


def test_a_network_that_cannot_be_pruned_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tmp_path, "method=nvit", "model=tiny_vit_digits", "method.dense.batch_size=16") == 2
    assert "TinyVit cannot be pruned" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("nvit/*/dense"))
