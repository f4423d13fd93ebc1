"""Names in the files of conf/ exist: networks with their arguments, pretrained weights, optimisers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlab.compose.load import load
from vitlab.config.catalogue import choices, conf_dir

CONF = conf_dir()


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))


NETWORKS = [(group, name) for group in ("model", "teacher") for name in choices(CONF, group)]


@pytest.mark.parametrize(("group", "name"), NETWORKS)
def test_a_network_can_be_built(group: str, name: str) -> None:
    timm = pytest.importorskip("timm")
    import torch

    import vitlab.models.build  # noqa: F401  (registers vitlab's own networks with timm)

    config = load([f"{group}={name}"]).config
    for network in config.teacher.members if group == "teacher" else [config.model]:
        with torch.device("meta"):  # shapes only: as strict, and fast for large networks
            model = timm.create_model(network.name, **network.args)
        assert sum(one.numel() for one in model.parameters()) > 1e5
        if network.pretrained:
            assert timm.is_model_pretrained(network.name)


@pytest.mark.parametrize("name", choices(CONF, "recipe"))
def test_an_optimiser_exists(name: str) -> None:
    optim = pytest.importorskip("timm.optim")
    assert load([f"recipe={name}"]).config.recipe.optimizer in optim.list_optimizers()


def test_the_recipes_of_the_paper() -> None:
    """TinyViT section 6.1, by column: epochs, warm-up, batch, lr, warm-up lr, minimum lr, decay, layer decay."""
    columns = {
        "tinyvit_scratch": ("300ep", "20ep", 1024, 1e-3, 1e-6, 1e-5, 0.05, 1.0),
        "tinyvit_distill": ("90ep", "5ep", 4096, 2e-3, 4e-6, 4e-5, 0.01, 1.0),
        "tinyvit_finetune": ("30ep", "5ep", 1024, 5e-4, 1e-6, 2e-5, 1e-8, 0.8),
        "tinyvit_resolution": ("30ep", "5ep", 1024, 4e-5, 4e-8, 4e-7, 1e-8, 1.0),
    }
    for name, column in columns.items():
        r = load([f"recipe={name}"]).config.recipe
        found = (r.duration, r.warmup, r.batch_size, r.lr, r.warmup_lr, r.min_lr, r.weight_decay, r.layer_decay)
        assert found == column, name
        a = r.augmentation
        mixes = name == "tinyvit_scratch"
        assert (a.mixup, a.cutmix) == ((0.8, 1.0) if mixes else (0.0, 0.0))
        assert (a.crop_scale, a.flip, a.randaug, a.erase) == ([0.08, 1.0], 0.5, "rand-m9-mstd0.5-inc1", 0.25)
        assert (r.optimizer, r.clip, r.schedule, r.ema) == ("adamw", 5.0, "cosine", None)
        assert r.optimizer_args == {"betas": [0.9, 0.999], "eps": 1e-8}
        assert r.label_smoothing == (0.0 if name == "tinyvit_distill" else 0.1)
    assert load(["recipe=tinyvit_resolution"]).config.recipe.accumulate == 4
