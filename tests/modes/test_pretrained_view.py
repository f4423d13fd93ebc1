"""timm's weights are measured in timm's own view; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import resolve_model_input_args

from vitlab.config import DatasetConfig
from vitlab.distill.views import EvalView
from vitlab.modes.pretrained_model import hint_of_tests, view_of_record

DATA = DatasetConfig(name="imagenet", size=224, crop_pct=0.875)


def record_of(name: str) -> dict[str, Any]:
    record: dict[str, Any] = resolve_model_input_args(name)["pretrained_cfg"]
    return record


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("dm_nfnet_f0.dm_in1k", False),  # squash with crop_pct 0.9
        ("dm_nfnet_f0.dm_in1k", True),
        ("vit_base_patch16_clip_384.openai_ft_in12k_in1k", False),  # squash with 0.95
        ("beit_large_patch16_512.in22k_ft_in22k_in1k", False),  # with 1
        ("convnext_base.fb_in1k", False),  # centre with 0.875, tests at 288 px with 1
        ("convnext_base.fb_in1k", True),
        ("convnext_atto.d2_in1k", True),
    ],
)
def test_the_view_is_timms(name: str, tests: bool) -> None:
    record = record_of(name)
    wanted = resolve_data_config(pretrained_cfg=record, use_test_size=tests)
    given = DatasetConfig(name="imagenet", size=wanted["input_size"][-1], crop_pct=0.875) if tests else DATA
    size, crop_pct, crop, interpolation = view_of_record(record, given, {"size"} if tests else ())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    ours = EvalView(size, crop_pct, wanted["mean"], wanted["std"], interpolation, crop)(image)
    transform: Any = create_transform(**wanted, is_training=False)
    torch.testing.assert_close(ours, transform(image), atol=1e-6, rtol=0)


def test_the_view_of_timms_tests_is_offered() -> None:
    assert hint_of_tests(record_of("convnext_base.fb_in1k"), ()).endswith("with dataset.size=288 (with crop_pct 1)")
    assert hint_of_tests(record_of("dm_nfnet_f0.dm_in1k"), ()).endswith("timm's own tests are with dataset.size=256")
    assert hint_of_tests(record_of("fasternet_l.in1k"), ()).endswith("with dataset.crop_pct=0.9")
    assert hint_of_tests(record_of("convnext_base.fb_in1k"), {"size"}) == ""
    assert hint_of_tests(record_of("deit_tiny_patch16_224.fb_in1k"), ()) == ""


def test_typed_keys_win() -> None:
    record = record_of("dm_nfnet_f0.dm_in1k")
    assert view_of_record(record, DATA, {"size", "crop_pct"})[:3] == (224, 0.875, "squash_crop")
    assert view_of_record(record, DATA, {"crop"})[1:3] == (0.9, "auto")
