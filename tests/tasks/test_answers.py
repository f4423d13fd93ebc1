"""Logits of a set: gathered in the order of its images, the network left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitlab.data.batch import Batch
from vitlab.tasks.parts.answers import gather_logits

CPU = torch.device("cpu")


def test_logits_are_in_the_order_of_the_images_and_the_network_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)).train()
    image, label, index = torch.randn(10, 3, 2, 2), torch.arange(10) % 4, torch.arange(10).flip(0)
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    loader = [Batch(image[part], label[part], index[part], torch.full_like(index[part], -1)) for part in parts]
    seen: list[int] = []
    found = gather_logits(model, loader, CPU, seen.append)
    assert seen == [4, 8, 10]
    assert model.training and model[1].training
    assert found.index.tolist() == list(range(10)) and found.label.tolist() == label.flip(0).tolist()
    with torch.no_grad():
        expected = model.eval()(image.flip(0))
    torch.testing.assert_close(torch.from_numpy(found.logits), expected)


def test_a_set_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        gather_logits(nn.Flatten(), [], CPU)
