"""Views and labels: functions of (seed, slot, index), whatever batch they come in."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.config import DatasetConfig
from vitlab.data.dataset import EvalViews, TrainViews
from vitlab.data.sets.fake import splits as fake
from vitlab.data.sources import Source
from vitlab.distill.draw import Augmentation, draw, seed_of, seeds_of
from vitlab.distill.sparse import sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.views import EvalView, View

SIZE, CLASSES, SEED = 24, 4, 11
PLAIN = Augmentation(size=SIZE, crop_scale=(0.3, 1.0), flip=0.5, randaug="rand-m9-mstd0.5-inc1", erase=0.5)
MIXED = Augmentation(size=SIZE, crop_scale=(0.3, 1.0), mixup=0.8, cutmix=1.0)
VIEW = View(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def source() -> Source:
    return fake(DatasetConfig(name="fake", length=30, num_classes=CLASSES))["train"]


def views(source: Source, augmentation: Augmentation = PLAIN, store: Path | None = None) -> TrainViews:
    return TrainViews(source, augmentation, VIEW, SEED, CLASSES, store)


def test_a_view_is_what_its_seed_says(source: Source) -> None:
    batch = views(source).__getitems__([(3, 0), (7, 2), (3, 1)])
    assert batch.image.shape == (3, 3, SIZE, SIZE) and batch.image.dtype == torch.float32
    assert batch.index.tolist() == [3, 7, 3] and batch.slot.tolist() == [0, 2, 1]
    assert batch.label.tolist() == [3, 3, 3] and batch.label.dtype == torch.int64
    assert batch.target is None and len(batch) == 3
    for row, (index, slot) in enumerate([(3, 0), (7, 2), (3, 1)]):
        image, _ = source[index]
        assert torch.equal(batch.image[row], VIEW(image, draw(PLAIN, seed_of(SEED, slot, index), *image.size)))
    assert not torch.equal(batch.image[0], batch.image[2])


def test_a_view_does_not_depend_on_its_batch(source: Source) -> None:
    together = views(source).__getitems__([(i, 5) for i in range(10)])
    for i in range(10):
        assert torch.equal(views(source).__getitems__([(i, 5)]).image[0], together.image[i])


def test_pairs_are_mixed_and_an_odd_last_one_is_not(source: Source) -> None:
    items = [(i, 0) for i in range(9)]
    mixed = views(source, MIXED).__getitems__(items)
    plain = views(source, Augmentation(size=SIZE, crop_scale=(0.3, 1.0))).__getitems__(items)
    assert mixed.label.shape == (9, CLASSES) and mixed.label.dtype == torch.float32
    assert torch.allclose(mixed.label.sum(1), torch.ones(9))
    assert torch.equal(mixed.image[8], plain.image[8])
    assert mixed.label[8].tolist() == [1, 0, 0, 0]
    for a in range(0, 8, 2):
        b = a + 1
        # Both members together hold what both held before; each pixel's two values are only dealt out anew.
        assert torch.allclose(mixed.image[a] + mixed.image[b], plain.image[a] + plain.image[b], atol=1e-5)
        assert not torch.equal(mixed.image[a], plain.image[a])


def test_the_label_is_the_share_of_the_pixels(source: Source) -> None:
    cut = Augmentation(size=SIZE, cutmix=1.0)
    items = [(i, 1) for i in range(20)]  # neighbours differ in their class
    mixed = views(source, cut).__getitems__(items)
    plain = views(source, Augmentation(size=SIZE)).__getitems__(items)
    shares = []
    for row in range(20):
        partner = row ^ 1
        own = (mixed.image[row] == plain.image[row]).all(0) & (plain.image[row] != plain.image[partner]).any(0)
        foreign = (mixed.image[row] == plain.image[partner]).all(0) & ~own
        assert bool((own | foreign).all())
        share = own.sum().item() / SIZE**2
        assert mixed.label[row, plain.label[row]].item() == pytest.approx(share, abs=1e-6)
        assert mixed.label[row, plain.label[partner]].item() == pytest.approx(1 - share, abs=1e-6)
        shares.append(share)
    assert min(shares) < 0.5 < max(shares)


def test_mixup_label(source: Source) -> None:
    blend = Augmentation(size=SIZE, mixup=0.8)
    mixed = views(source, blend).__getitems__([(0, 0), (1, 0)])
    plain = views(source, Augmentation(size=SIZE)).__getitems__([(0, 0), (1, 0)])
    weight = mixed.label[0, 0].item()
    assert mixed.label[0].tolist() == pytest.approx([weight, 1 - weight, 0, 0], abs=1e-6)
    assert mixed.label[1].tolist() == pytest.approx([1 - weight, weight, 0, 0], abs=1e-6)
    assert torch.allclose(mixed.image[0], weight * plain.image[0] + (1 - weight) * plain.image[1], atol=1e-5)


def make_store(folder: Path, source: Source, augmentation: Augmentation, base_seed: int | None) -> torch.Tensor:
    """A sealed store of two slots of random targets [slots, images, classes]; foreign seeds if there is no base."""
    spec = StoreSpec(
        images=len(source),
        slots=2,
        k=CLASSES,
        classes=CLASSES,
        keys_sha256=keys_digest(source.keys),
        data_fingerprint="data",
        augmentation=augmentation.to_dict(),
        augmentation_fingerprint=augmentation.fingerprint(),
        teacher={"name": "random"},
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        base_seed=base_seed,
        prob="f4",
    )
    store = TargetStore.create(folder, spec, list(source.keys))
    prob = torch.randn(2, len(source), CLASSES, generator=torch.Generator().manual_seed(0)).softmax(2)
    index = np.arange(len(source))
    for slot in range(2):
        seeds = index * 1000 + slot if base_seed is None else seeds_of(base_seed, slot, index)
        with store.writer(slot) as writer:
            writer.write(index, seeds, sparsify(prob[slot], CLASSES))
        store.seal(slot)
    return prob


@pytest.mark.parametrize("augmentation", [PLAIN, MIXED])
def test_stored_targets_come_with_their_views(source: Source, tmp_path: Path, augmentation: Augmentation) -> None:
    prob = make_store(tmp_path, source, augmentation, SEED)
    items = [(4, 1), (9, 1), (2, 1), (4, 1)]
    batch = views(source, augmentation, tmp_path).__getitems__(items)
    online = views(source, augmentation).__getitems__(items)
    assert torch.equal(batch.image, online.image) and torch.equal(batch.label, online.label)
    assert batch.target is not None
    for row, (index, slot) in enumerate(items):
        expected = prob[slot, index].sort(descending=True)
        assert torch.equal(batch.target.prob[row], expected.values)
        assert torch.equal(batch.target.index[row], expected.indices)


def test_the_stored_seed_decides_the_view(source: Source, tmp_path: Path) -> None:
    make_store(tmp_path, source, PLAIN, None)
    batch = views(source, PLAIN, tmp_path).__getitems__([(5, 1)])
    image, _ = source[5]
    assert torch.equal(batch.image[0], VIEW(image, draw(PLAIN, 5001, *image.size)))


def test_an_open_store_is_not_sent_to_another_process(source: Source, tmp_path: Path) -> None:
    make_store(tmp_path, source, PLAIN, SEED)
    stored = views(source, PLAIN, tmp_path)
    batch = stored.__getitems__([(0, 0)])
    sent = pickle.loads(pickle.dumps(stored))
    assert sent._opened is None and stored._opened is not None
    assert torch.equal(sent.__getitems__([(0, 0)]).image, batch.image)


def test_evaluation_views(source: Source) -> None:
    view = EvalView(SIZE, 0.875, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    batch = EvalViews(source, view).__getitems__([2, 6])
    assert torch.equal(batch.image[1], view(source[6][0]))
    assert (batch.label.tolist(), batch.index.tolist(), batch.slot.tolist()) == ([2, 2], [2, 6], [-1, -1])
