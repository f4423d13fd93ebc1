"""Peak memory against tensors counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitlab.measure.memory import LiveStorage, peak_memory

MB = 2**20


class Steps(nn.Module):
    """Three tensors one after the other; the second is the largest and lives beside the first and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        first = image * self.scale  # 1 of the input's size
        second = torch.cat([first, first, first])  # 3
        third = second.view(-1).add(1.0)  # 3; the view costs nothing
        del second
        out = third[:7] * 2
        return out


def test_peak_is_the_worst_moment() -> None:
    image = 2 * 3 * 64 * 64 * 4
    assert peak_memory(Steps(), 64, 2) == image * (1 + 1 + 3 + 3)


def test_a_longer_network_holds_no_more_than_its_worst_layer() -> None:
    layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(6))).eval()
    image = 3 * 32 * 32 * 4
    assert peak_memory(layers, 32, 1) == 3 * image, "the images, one input and one output"


def test_what_is_freed_is_counted_off() -> None:
    with LiveStorage() as live:
        held = torch.empty(MB, dtype=torch.uint8)
        for _ in range(5):
            torch.empty(3 * MB, dtype=torch.uint8)
        assert live.now == MB
    assert live.peak == 4 * MB
    del held
    assert live.now == 0


def test_weights_do_not_count() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 50_000))
    assert peak_memory(wide, 8, 1) == (3 * 8 * 8 + 50_000) * 4
