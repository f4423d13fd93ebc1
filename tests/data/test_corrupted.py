"""A corrupted image is a function of seed, corruption, severity and the image's name, and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tests.data.conftest import MakeImages
from vitlab.data.corrupted import STRIDE, CorruptedViews, image_seed
from vitlab.data.decode import Files
from vitlab.data.loader import Loader
from vitlab.data.sources import Subset
from vitlab.distill.views import EvalView
from vitlab.measure.corruptions import corrupt

VIEW = EvalView(16, 0.875, [0.5] * 3, [0.25] * 3)
NAMES = ["gaussian_noise", "fog", "glass_blur"]
LEVELS = [[1, 5], [3], [2, 4]]


def source(make_images: MakeImages) -> Files:
    names = [f"{i}.png" for i in range(6)]
    return Files(make_images(*names), names, [0, 1, 0, 1, 0, 1], ["a", "b"], "test")


def test_the_pixels_are_those_of_the_view_corrupted(make_images: MakeImages) -> None:
    files = source(make_images)
    batch = CorruptedViews(files, VIEW, NAMES, LEVELS, 7).__getitems__([(4, 0), (2, 1)])
    assert batch.slot.tolist() == [1, 5, STRIDE + 3]
    assert batch.index.tolist() == [4, 4, 2] and batch.label.tolist() == [0, 0, 0]
    image = VIEW.cut(files[2][0])
    assert image.size == (16, 16)
    by_hand = corrupt(image, "fog", 3, image_seed(7, "2.png"))
    assert torch.equal(batch.image[2], VIEW.normalise(by_hand))
    plain = np.asarray(image)
    assert isinstance(image, Image.Image) and not np.array_equal(plain, np.asarray(by_hand))


def test_batch_order_workers_and_company_do_not_matter(make_images: MakeImages) -> None:
    files = source(make_images)
    views = CorruptedViews(files, VIEW, NAMES, LEVELS, 7)
    every = [(i, c) for c in range(3) for i in range(6)]

    def pixels(loader: Loader, order: dict[int, int] | None = None) -> dict[tuple[int, int], bytes]:
        return {
            (order[int(i)] if order else int(i), int(s)): image.numpy().tobytes()
            for batch in loader
            for image, i, s in zip(batch.image, batch.index, batch.slot, strict=True)
        }

    alone = pixels(Loader(views, [[one] for one in every], 0))
    assert len(alone) == 6 * 5 and len(set(alone.values())) == 6 * 5
    assert pixels(Loader(views, [every[::-1][:7], every[::-1][7:]], 2)) == alone
    part = CorruptedViews(Subset(files, np.array([5, 1])), VIEW, NAMES, LEVELS, 7)
    subset = pixels(Loader(part, [[(0, 1), (1, 1)]], 0), {0: 5, 1: 1})
    assert subset == {key: value for key, value in alone.items() if key in subset} and len(subset) == 2
    other = pixels(Loader(CorruptedViews(files, VIEW, NAMES, LEVELS, 8), [every], 0))
    assert all(other[key] != alone[key] for key in alone)
