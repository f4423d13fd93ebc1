"""Reinforcements: views drawn to be labelled, and the same views replayed with their targets."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.config import DatasetConfig
from vitlab.data.dataset import TrainViews
from vitlab.data.reinforced import RecordBatch, ReinforcingViews, ReplayedViews
from vitlab.data.sampler import EpochSampler
from vitlab.data.sets.fake import splits as fake
from vitlab.data.sources import Arrays, Source, fingerprint, labels_of
from vitlab.data.views import ReinforcedViews
from vitlab.distill.draw import Augmentation, draw, seed_of
from vitlab.distill.formats import open_reinforcements
from vitlab.distill.reinforce_draw import PROTOCOL, VARIANTS, Reinforcement
from vitlab.distill.reinforce_record import record_fields
from vitlab.distill.sparse import sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.views import View
from vitlab.errors import UserError

SIZE, CLASSES, SEED, SAMPLES, K = 24, 4, 11, 3, 2
VIEW = View(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
PLAIN = Augmentation(size=SIZE, crop_scale=(0.3, 1.0), flip=0.5)


@pytest.fixture(scope="module")
def source() -> Source:
    return fake(DatasetConfig(name="fake", length=30, num_classes=CLASSES))["train"]


def fresh(source: Source, spec: Reinforcement, images: list[int], samples: range = range(SAMPLES)) -> RecordBatch:
    batch = ReinforcingViews(source, spec, VIEW, SEED, samples).__getitems__(images)
    assert isinstance(batch, RecordBatch)
    return batch


def say(index: np.ndarray, slot: np.ndarray) -> torch.Tensor:
    """A teacher that depends on (image, sample) alone."""
    rows = [np.random.default_rng([i, s]).normal(0, 2, CLASSES) for i, s in zip(index, slot, strict=True)]
    return torch.from_numpy(np.stack(rows)).float().softmax(1)


def make_store(folder: Path, source: Source, spec: Reinforcement) -> Path:
    store = TargetStore.create(
        folder,
        StoreSpec(
            images=len(source),
            slots=SAMPLES,
            k=K,
            classes=CLASSES,
            keys_sha256=keys_digest(source.keys),
            data_fingerprint=fingerprint(source),
            augmentation=spec.to_dict(),
            augmentation_fingerprint=spec.fingerprint(),
            teacher={},
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.4),
            base_seed=SEED,
            prob="f4",
            protocol=PROTOCOL,
            fields=record_fields(spec),
        ),
        list(source.keys),
    )
    for slot in range(SAMPLES):
        with store.writer(slot) as writer:
            batch = fresh(source, spec, list(range(len(source))), range(slot, slot + 1))
            target = sparsify(say(batch.index.numpy(), batch.slot.numpy()), K)
            writer.write(batch.index.numpy(), None, target, **batch.fields)
        store.seal(slot)
    assert store.verify() == []
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_teacher_saw_is_replayed_bit_for_bit(source: Source, tmp_path: Path, variant: str) -> None:
    spec = Reinforcement(variant)
    folder = make_store(tmp_path, source, spec)
    seen = fresh(source, spec, [4, 9, 21])
    views = ReplayedViews(TrainViews(source, PLAIN, VIEW, SEED, CLASSES), [folder], VIEW)
    items = [(i, s) for i in (4, 9, 21) for s in range(SAMPLES)]
    replayed = pickle.loads(pickle.dumps(views)).__getitems__(items)
    assert torch.equal(replayed.image, seen.image)
    assert replayed.index.tolist() == seen.index.tolist() and replayed.slot.tolist() == seen.slot.tolist()
    assert replayed.label.tolist() == seen.label.tolist() == [source[i][1] for i, _ in items]
    target = sparsify(say(seen.index.numpy(), seen.slot.numpy()), K)
    assert replayed.target is not None
    assert torch.equal(replayed.target.prob, target.prob) and torch.equal(replayed.target.index, target.index)


def test_stored_views_are_replayed_with_the_filter_that_they_were_made_with(source: Source, tmp_path: Path) -> None:
    """One filter for a comparison, whatever the recipe has by now; a store that states none is bilinear."""
    plain = TrainViews(source, PLAIN, VIEW, SEED, CLASSES)
    for filter in ("bilinear", "bicubic"):
        spec = Reinforcement("rrc", interpolation=filter)
        assert ("interpolation" in spec.to_dict()) == (filter != "bilinear") and Reinforcement.from_dict(
            spec.to_dict()
        ) == spec
        folder = make_store(tmp_path / filter, source, spec)
        views = ReinforcedViews((folder,))
        chosen: list[str] = []

        def replay(backend: str, interpolation: str, chosen: list[str] = chosen) -> View:
            chosen.append(interpolation)
            return View(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation, backend=backend)

        opened, _ = views.open(plain, fingerprint(source), replay)
        assert chosen == [filter]
        drawn, _ = open_reinforcements([folder], len(source), CLASSES).read([1], [4])
        wanted = View(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), filter)(source[4][0], drawn[0])
        assert torch.equal(opened.__getitems__([(4, 1)]).image[0], wanted)


def test_a_view_does_not_depend_on_its_company(source: Source) -> None:
    spec = Reinforcement("randaug_mixing")
    together = fresh(source, spec, [0, 5, 6])
    for row, (index, slot) in enumerate(zip(together.index.tolist(), together.slot.tolist(), strict=True)):
        alone = fresh(source, spec, [index], range(slot, slot + 1))
        assert torch.equal(alone.image[0], together.image[row])
        assert all(np.array_equal(alone.fields[name][0], values[row]) for name, values in together.fields.items())


def test_a_slot_past_the_stored_is_a_plain_view_with_its_label(source: Source, tmp_path: Path) -> None:
    folder = make_store(tmp_path, source, Reinforcement("rrc"))
    views = ReplayedViews(TrainViews(source, PLAIN, VIEW, SEED, CLASSES), [folder], VIEW)
    batch = views.__getitems__([(3, SAMPLES + 7), (3, 1)])
    picture, label = source[3]
    assert torch.equal(batch.image[0], VIEW(picture, draw(PLAIN, seed_of(SEED, SAMPLES + 7, 3), *picture.size)))
    assert batch.target is not None
    assert batch.target.prob[0].tolist() == [1, 0] and batch.target.index[0, 0] == label
    assert len(set(batch.target.index[0].tolist())) == K
    assert batch.target.prob[1].sum() < 1


def test_other_data_are_refused(source: Source, tmp_path: Path) -> None:
    folder = make_store(tmp_path, source, Reinforcement("rrc"))
    with pytest.raises(UserError, match="30 images, the data set has 31"):
        open_reinforcements([folder], 31, CLASSES)
    with pytest.raises(UserError, match="4 classes, the data set has 5"):
        open_reinforcements([folder], 30, 5)
    with pytest.raises(UserError, match="another data set"):
        open_reinforcements([folder], 30, CLASSES, {"data_fingerprint": "other"})


@pytest.mark.parametrize("policy", ["uniform", "cycle"])
def test_a_share_of_the_items_is_plain(policy: str) -> None:
    sampler = EpochSampler(4000, 40, slots=policy, num_slots=SAMPLES, plain_share=0.1)  # type: ignore[arg-type]
    stored = EpochSampler(4000, 40, slots=policy, num_slots=SAMPLES)  # type: ignore[arg-type]
    plain: list[set[int]] = []
    for epoch in (0, 5):
        index, slot = sampler.order(epoch)
        same_index, same_slot = stored.order(epoch)
        chosen = slot == SAMPLES + epoch
        assert np.array_equal(index, same_index) and np.array_equal(slot[~chosen], same_slot[~chosen])
        assert 320 < chosen.sum() < 480  # 400 +- 4 sigma
        plain.append(set(index[chosen].tolist()))
    assert len(plain[0] & plain[1]) < 80  # another choice each epoch: 40 in common by chance


def test_resized_copies_are_refused(source: Source, tmp_path: Path) -> None:
    """Their names are the same; only the crops reveal it."""
    folder = make_store(tmp_path, source, Reinforcement("rrc"))
    pixels = np.zeros((len(source), 6, 6, 3), np.uint8)
    small = Arrays(pixels, labels_of(source), source.classes, list(source.keys), "train")
    assert fingerprint(small) == fingerprint(source)
    views = ReplayedViews(TrainViews(small, PLAIN, VIEW, SEED, CLASSES), [folder], VIEW)
    with pytest.raises(UserError, match=r"train/\d+.* too small .*as downloaded"):
        views.__getitems__([(i, 0) for i in range(len(source))])
