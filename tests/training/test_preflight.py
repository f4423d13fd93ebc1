"""What would stop a later stage stops the run before its first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.methods.base import find_method
from vitlab.training.preflight import preflight

RUN = Path(__file__).parents[1] / "fixtures/outputs/supervised/finished-717e3bd6"
"""Digits of 16 px."""

RESNET = ("method=supervised", "model=resnet18", "model.name=test_resnet", "model.pretrained=false")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=resnet5"], "no model 'resnet5' .* resnet50"),
        (["model.args={depthz:3}"], "no argument 'depthz'"),
        (["model.name=vit_tiny_patch16_224", "dataset.size=40"], "patches of 16 px, which do not tile 40 px"),
        (["model.args={in_chans:1}"], "does not take an RGB image of 32 px"),
        (["model.args={num_classes:7}"], "num_classes"),
        ([*RESNET, "model.args={features_only:true}"], "gives a list for one image|features_only"),
        ([*RESNET, "model.args={act_layer:nosuch}"], "cannot build .*act_layer.* KeyError"),
        ([*RESNET, "model.args={layers:[1]}"], "cannot build .*layers.* ZeroDivisionError"),
        ([*RESNET, "model.args={global_pool:''}"], "does not take an RGB image of 32 px"),
        (
            [*RESNET, "recipe.batch_size=1"],
            "recipe: 1 image.s. at once .* lower recipe.accumulate",
        ),
        ([*RESNET, "recipe.batch_size=16", "recipe.accumulate=16"], "recipe: 1 image"),
        (["recipe.optimizer=adamww"], "Did you mean adamw"),
        (["recipe.optimizer_args={foo:1}"], "recipe.optimizer_args"),
        (["recipe.optimizer_args={betas:[0.9]}"], "recipe.optimizer_args"),
        (["recipe.optimizer_args={capturable:true}"], r"capturable.* cannot take a step on cpu"),
        (["teacher.recipe.optimizer=lambb"], "Did you mean lamb"),
        (["model.name=pit_ti_224", "recipe.layer_decay=0.8"], "names its layers; "),
        (["recipe.batch_size=2048"], "recipe.batch_size=2048 is more than the 1347 training images"),
        (["teacher.recipe.batch_size=2048"], "teacher.recipe.batch_size=2048 is more"),
        (["teacher.members.0.args.channelz=[8]"], r"no argument 'channelz' \(key teacher.members.0.args.channelz"),
        (["teacher.members.0.name=resnet5"], r"no model 'resnet5' \(key teacher.members.0.name\)"),
        (["teacher.members.0.args.in_chans=1"], "with teacher.members.0.args="),
        (["teacher.train=false"], "network without weights.* teacher=RUN, teacher.members.0.checkpoint=FILE"),
        (["teacher=convnext_base"], "Teacher convnext_base.fb_in22k_ft_in1k was trained for other classes"),
        ([f"teacher={RUN}", "dataset=fake"], "finished-717e3bd6/train. was trained for other classes"),
        (
            [f"teacher={RUN}", "teacher.members.0.name=resnet34"],
            "not a resnet34.* teacher.members.0.name=",
        ),
        ([f"model={RUN}", "model.name=resnet34"], "holds a resnet18, not a resnet34.* Give model.name="),
        ([f"teacher={RUN}", "teacher.members.0.args.depthz=3"], r"\(key teacher.members.0.args.depthz\)"),
        (["method=deepmad", "experiment=deepmad_digits", "method.other.name=resnet5"], "no model 'resnet5'"),
    ],
)
def test_a_later_stage_would_fail(overrides: list[str], message: str) -> None:
    config = load(overrides).config
    with pytest.raises(UserError, match=message):
        preflight(config, find_method(config.method.name).reads(config))


@pytest.mark.parametrize(
    "overrides",
    [
        [*RESNET, "recipe.batch_size=1", "dataset.size=256"],
        [*RESNET, "recipe.batch_size=1", "recipe.freeze_batchnorm=true"],
        [],
        ["experiment=deepmad_design_29m"],
        ["method=reinforce"],
        [f"teacher={RUN}"],
        [f"model={RUN}", "dataset=fake"],
        ["model=vit_base", "recipe=finetune"],
    ],
)
def test_nothing_is_wrong(overrides: list[str]) -> None:
    config = load(overrides).config
    preflight(config, find_method(config.method.name).reads(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="hardware=auto takes the GPU")
def test_half_precision_where_auto_finds_no_gpu() -> None:
    """Lightning would warn and train in bfloat16, while the plan goes on naming 16-mixed."""
    config = load(["hardware=auto", "trainer.precision=16-mixed"]).config
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed needs a GPU.*bf16-mixed"):
        preflight(config, find_method(config.method.name).reads(config))
