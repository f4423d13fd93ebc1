"""compat=official: the augmentation, decay and recipes of ERM and KD in the published code of Dataset Reinforcement."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from vitlab.compose.load import load
from vitlab.config import Config
from vitlab.distill.draw import Augmentation, Draw, draw
from vitlab.distill.randaug_torchvision import OPS, SIGNED, magnitudes
from vitlab.distill.views import View
from vitlab.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUG = Augmentation(
    size=224,
    crop_scale=(0.08, 1.0),
    randaug="torchvision-m9-n2",
    erase=0.25,
    erase_mode="black",
    interpolation="bilinear",
)


def image() -> Image.Image:
    y, x = np.mgrid[:224, :224]
    return Image.fromarray(np.stack([(3 * x + y) % 256, (x * y // 97) % 256, (5 * y) % 256], 2).astype(np.uint8))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_op_is_torchvisions_with_its_filter(name: str, sign: int) -> None:
    """Bilinear where the recipe is, as in the published ERM; nearest in stored views, as in the published generator."""
    value = magnitudes(9)[OPS.index(name)] * (sign if OPS.index(name) in SIGNED else 1)
    space = RandAugment()._augmentation_space(31, (224, 224))
    assert abs(value) == (float(space[name][0][9]) if space[name][0].ndim else 0.0)
    for op_set, filter in (("torchvision_filtered", "BILINEAR"), ("torchvision", "NEAREST")):
        wanted = _apply_op(image(), name, value, InterpolationMode[filter], None)
        view = View(224, (0.0,) * 3, (1.0,) * 3, "bilinear")(image(), Draw(ops=((name, value),), op_set=op_set))
        assert np.array_equal((view * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(wanted)), filter


def test_what_is_drawn_is_what_torchvision_draws() -> None:
    draws = [draw(AUG, seed, 300, 200) for seed in range(3000)]
    ops = Counter(op for one in draws for op in one.ops)
    assert all(len(one.ops) == 2 and not one.flip and one.op_set == "torchvision_filtered" for one in draws)
    kinds = [(name, magnitudes(9)[i] * s) for i, name in enumerate(OPS) for s in ((1, -1) if i in SIGNED else (1,))]
    assert set(ops) == set(kinds)
    for name, value in kinds:
        wanted = 6000 / 14 / (2 if OPS.index(name) in SIGNED else 1)
        assert abs(ops[name, value] - wanted) < 5 * math.sqrt(wanted), name
    boxes = [one.erase for one in draws if one.erase is not None]
    assert abs(len(boxes) / 3000 - 0.25) < 0.04
    for box in boxes:
        assert box.mode == "black" and box.seed == 0
        assert 0.019 < box.height * box.width / 224**2 < 0.335 and 0.29 < box.height / box.width < 3.4
    view = View(224, MEAN, STD, "bilinear")
    erased = next(one for one in draws if one.erase is not None)
    assert erased.erase is not None
    part = view(image().resize((300, 200)), erased)[:, erased.erase.top, erased.erase.left]
    assert torch.allclose(part, -torch.tensor(MEAN) / torch.tensor(STD))


@pytest.mark.parametrize("text", ["torchvision", "torchvision-m31-n2", "torchvision-m9-n0", "torchvision-m9-n2-inc1"])
def test_other_notation_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"Write it as torchvision-m9-n2"):
        Augmentation(size=32, randaug=text)


def test_the_recipes_are_the_published_configurations(tmp_path: Path) -> None:
    def config(*words: str) -> Config:
        return load([f"dataset.root={tmp_path}", *words]).config

    found = config("experiment=reinforce_imagenet_official")
    erm, kd = found.recipe, found.method.kd_recipe
    assert found.method.kd and found.method.views.flip == 0.5
    for recipe, decay, mixup in ((erm, 1e-4, 0.2), (kd, 1e-5, 1.0)):
        aug = recipe.augmentation
        assert (recipe.weight_decay, recipe.decay_norms, recipe.lr, recipe.batch_size) == (decay, True, 0.4, 1024)
        assert (recipe.duration, recipe.warmup) == ("150ep", "5ep")
        assert recipe.optimizer_args == {"momentum": 0.9, "nesterov": True}
        assert (aug.mixup, aug.cutmix, aug.flip, aug.erase, aug.erase_mode) == (mixup, 1.0, 0.0, 0.25, "black")
        assert (aug.randaug, aug.interpolation, aug.crop_scale) == ("torchvision-m9-n2", "bilinear", [0.08, 1.0])
    small = config("experiment=reinforce_food101", "recipe=reinforce_small_official").recipe
    assert (small.decay_norms, small.weight_decay, small.augmentation.erase) == (True, 5e-4, 0.0)
    assert small.augmentation.randaug == "torchvision-m9-n2" and small.duration == "1000ep"
    ours = config("experiment=reinforce_imagenet")
    assert not ours.recipe.decay_norms and ours.method.kd_recipe is None
