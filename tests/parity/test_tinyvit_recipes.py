"""Every column of the paper's training table and every size: composed, and its network built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm

from vitlab.compose.load import load
from vitlab.config import Config, RecipeConfig
from vitlab.measure.cost import count_params
from vitlab.methods.base import find_method
from vitlab.models.build import resolve_architecture
from vitlab.models.param_groups import parameter_groups
from vitlab.training.schedule import Schedule

COLUMNS: dict[str, dict[str, Any]] = {
    "scratch": {
        "duration": "300ep", "warmup": "20ep", "batch_size": 1024, "lr": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5,
        "weight_decay": 0.05, "layer_decay": 1.0, "freeze_batchnorm": False, "label_smoothing": 0.1, "accumulate": 1,
    },
    "distill": {
        "duration": "90ep", "warmup": "5ep", "batch_size": 4096, "lr": 2e-3, "warmup_lr": 4e-6, "min_lr": 4e-5,
        "weight_decay": 0.01, "layer_decay": 1.0, "freeze_batchnorm": False, "label_smoothing": 0.0, "accumulate": 1,
    },
    "finetune": {
        "duration": "30ep", "warmup": "5ep", "batch_size": 1024, "lr": 5e-4, "warmup_lr": 1e-6, "min_lr": 2e-5,
        "weight_decay": 1e-8, "layer_decay": 0.8, "freeze_batchnorm": True, "label_smoothing": 0.1, "accumulate": 1,
    },
    "384": {
        "duration": "30ep", "warmup": "5ep", "batch_size": 1024, "lr": 4e-5, "warmup_lr": 4e-8, "min_lr": 4e-7,
        "weight_decay": 1e-8, "layer_decay": 1.0, "freeze_batchnorm": True, "label_smoothing": 0.1, "accumulate": 4,
    },
}  # fmt: skip
COLUMNS["512"] = COLUMNS["384"]
BASE_LR = {"scratch": 5e-4, "distill": 2.5e-4, "finetune": 2.5e-4, "384": 2e-5, "512": 2e-5}
PARAMS = {"5m": 5_392_764, "11m": 10_996_972, "21m": 21_198_568}
PARAMS_22K = {"5m": 12_082_725, "11m": 20_354_581, "21m": 33_223_825}
DROP_PATH = {"5m": (0.0, 0.0), "11m": (0.1, 0.0), "21m": (0.2, 0.1)}
"""From scratch, and everywhere else."""


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))


def recipe_of(config: Config) -> RecipeConfig:
    finetune: RecipeConfig | None = getattr(config.method, "finetune", None)
    return finetune if finetune is not None else config.recipe


@pytest.mark.parametrize("size", ["5m", "11m", "21m"])
@pytest.mark.parametrize("column", list(COLUMNS))
def test_column_and_size(column: str, size: str, tmp_path: Path) -> None:
    (tmp_path / "start.pth").touch()
    words = ["model.checkpoint=" + str(tmp_path / "start.pth")] if column in ("finetune", "384", "512") else []
    config = load([f"experiment=tinyvit_{size}_{column}", *words]).config
    find_method(config.method.name).check(config)
    recipe = recipe_of(config)
    wanted = dict(COLUMNS[column])
    if size == "5m" and column in ("384", "512"):
        wanted["layer_decay"] = 0.8  # its author's advice
    assert {name: getattr(recipe, name) for name in wanted} == wanted
    assert recipe.lr == pytest.approx(BASE_LR[column] * recipe.batch_size / 512)
    assert (recipe.optimizer, recipe.clip, recipe.schedule, recipe.ema) == ("adamw", 5.0, "cosine", None)
    assert recipe.optimizer_args == {"betas": [0.9, 0.999], "eps": 1e-8}
    aug = recipe.augmentation
    assert (aug.mixup, aug.cutmix) == ((0.8, 1.0) if column == "scratch" else (0.0, 0.0))
    assert (aug.crop_scale, aug.flip, aug.randaug, aug.erase) == ([0.08, 1.0], 0.5, "rand-m9-mstd0.5-inc1", 0.25)
    pixels = int(column) if column.isdigit() else 224
    assert (config.dataset.size, config.dataset.crop_pct) == (pixels, 0.875 if pixels == 224 else 1.0)
    stages = [stage.name for stage in find_method(config.method.name).stages(config)]
    assert stages == {"scratch": ["train"], "distill": ["teacher", "store", "pretrain"]}.get(column, ["finetune"])

    classes = 21_841 if column == "distill" else 1000
    name, args = resolve_architecture(config.model, config.dataset.size)
    model = timm.create_model(name, num_classes=classes, device="meta", **args)
    tables = {384: 144 * 1.0, 512: 256.0}.get(pixels, 49.0)
    assert model.state_dict()["stages.1.blocks.0.attn.attention_biases"].shape[1] == tables
    if pixels == 224:
        assert count_params(model) == (PARAMS_22K if classes > 1000 else PARAMS)[size]
    rates = [getattr(module, "drop_prob", 0.0) for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates, default=0.0) == pytest.approx(DROP_PATH[size][column != "scratch"])
    groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay)
    assert len(groups) == (24 if recipe.layer_decay < 1 else 2)
    Schedule.from_recipe(recipe, 100)


@pytest.mark.parametrize(("size", "params"), [(384, 21_230_488), (512, 21_268_120)])
def test_larger_views_have_the_published_sizes(size: int, params: int) -> None:
    model = load([f"experiment=tinyvit_21m_{size}"]).config.model
    name, args = resolve_architecture(model, size)
    assert count_params(timm.create_model(name, num_classes=1000, device="meta", **args)) == params


def test_a_finetuning_needs_something_to_start_from() -> None:
    from vitlab.errors import UserError

    config = load(["experiment=tinyvit_5m_finetune"]).config
    with pytest.raises(UserError, match=r"model\.checkpoint"):
        find_method("tinyvit").check(config)
    config = load(["method.distill=false"]).config
    with pytest.raises(UserError, match=r"recipe@method\.finetune=tinyvit_finetune"):
        find_method("tinyvit").check(config)
