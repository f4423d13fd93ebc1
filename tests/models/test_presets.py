from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vitlab.config import ModelConfig
from vitlab.measure.cost import count_params
from vitlab.models.build import build_model, parameter_groups

CONF = Path(__file__).parents[2] / "conf"


def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / path).read_text())
    return content


@pytest.mark.parametrize(
    ("preset", "params"),
    [
        (_read("model/tiny_vit_digits.yaml"), 258_773),
        (_read("teacher/digits.yaml")["members"][0], 1_244_794),
    ],
    ids=["student", "teacher"],
)
def test_the_presets_of_the_digits_are_small_and_learn(preset: dict[str, Any], params: int) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**preset), 10, 32)
    assert count_params(model) == params
    image, label = torch.randn(10, 3, 32, 32), torch.arange(10)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=3e-3)  # type: ignore[arg-type]
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # ten images are learned by heart
