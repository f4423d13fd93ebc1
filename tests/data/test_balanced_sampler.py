"""Class-balanced epochs: equal counts, exact resume, ranks that together see what one sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.balanced_sampler import BalancedSampler
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import LoaderOptions
from vitlab.errors import UserError

LABELS = np.repeat([0, 1, 2], [40, 9, 3])
"""52 images of three unequal classes."""


def sampler(**more: int) -> BalancedSampler:
    return BalancedSampler(LABELS, 3, more.pop("batch_size", 4), seed=5, **more)  # type: ignore[arg-type]


def test_every_class_is_shown_equally_often_and_every_view_once() -> None:
    one = sampler()
    views: list[tuple[int, int]] = []
    for epoch in range(4):
        index, slot = one.order(epoch)
        counts = np.bincount(LABELS[index], minlength=3)
        assert counts.sum() == 52 and np.ptp(counts) <= 1
        for label in range(3):
            shown = np.bincount(index, minlength=52)[label == LABELS]
            assert np.ptp(shown) <= 1
        views += zip(index.tolist(), slot.tolist(), strict=True)
    assert len(set(views)) == len(views)
    assert set(one.order(0)[0][LABELS[one.order(0)[0]] == 0]) != set(one.order(1)[0][LABELS[one.order(1)[0]] == 0])


def test_resuming_in_mid_epoch_gives_the_batches_that_remain() -> None:
    full = [sampler().batch(number) for number in range(30)]
    resumed = sampler()
    resumed.position = 17
    rest = [batch for _ in range(2) for batch in resumed]
    assert rest[:13] == full[17:]
    assert sampler().batch(29) == full[29]


@pytest.mark.parametrize("paired", [False, True])
def test_ranks_and_micro_batches_see_together_what_one_rank_sees(paired: bool) -> None:
    one = sampler(batch_size=8, paired=paired)
    ranks = [sampler(batch_size=8, rank=rank, world=2, accumulate=2, paired=paired) for rank in range(2)]
    for step in range(12):
        together = [item for part in range(2) for rank in ranks for item in rank.batch(2 * step + part)]
        assert sorted(together) == sorted(one.batch(step))


def test_what_cannot_be_balanced() -> None:
    with pytest.raises(UserError, match="stored or repeated views"):
        BalancedSampler(LABELS, 3, 4, num_slots=2)
    with pytest.raises(UserError, match="stored or repeated views"):
        BalancedSampler(LABELS, 3, 4, repeats=2)
    with pytest.raises(UserError, match="a class has no training image"):
        BalancedSampler(LABELS, 4, 4)


def test_the_views_of_one_image_in_an_epoch_differ() -> None:
    data = VisionData(
        DatasetConfig(name="fake", length=40, num_classes=4, size=16, labels_per_class=None),
        AugmentationConfig(crop_scale=[0.3, 1.0]),
        LoaderOptions(8),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        balanced=True,
    )
    labels = data.train_source.labels
    assert labels is not None
    data.train_sampler = BalancedSampler(np.where(np.arange(40) == 1, 1, 0), 2, 8)
    batches = list(data.train_loader(0, 5))
    index = torch.cat([batch.index for batch in batches])
    image = torch.cat([batch.image for batch in batches])[index == 1]
    assert len(image) == 20 and len({one.numpy().tobytes() for one in image}) == 20
