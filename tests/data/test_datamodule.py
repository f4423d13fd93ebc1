"""What reaches the training: the same batches for any workers, ranks and interruptions."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils.data import get_worker_info

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.batch import Batch
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import Loader, LoaderOptions, default_workers
from vitlab.data.sampler import ShardSampler
from vitlab.data.sources import MapStyle, Source
from vitlab.data.views import FreshViews, StoredViews
from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.errors import UserError

MakeImages = Callable[..., Path]
AUGMENTATION = AugmentationConfig(crop_scale=[0.3, 1.0], flip=0.5, randaug="rand-m9-mstd0.5-inc1", erase=0.25)
MIXED = AugmentationConfig(crop_scale=[0.3, 1.0], mixup=0.8, cutmix=1.0)


def make(augmentation: AugmentationConfig = AUGMENTATION, **more: Any) -> VisionData:
    dataset = more.pop("dataset", None) or DatasetConfig(name="fake", length=50, num_classes=4, size=16)
    options = {"batch_size": 8, "workers": 0}
    options |= {item.name: more.pop(item.name) for item in fields(LoaderOptions) if item.name in more}
    return VisionData(dataset, augmentation, LoaderOptions(**options), mean=(0.5,) * 3, std=(0.2,) * 3, **more)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, n), getattr(second, n)) for n in ("image", "label", "index", "slot"))


def all_same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    return all(itertools.starmap(same, zip(first, second, strict=True)))


def test_what_it_knows_of_its_data() -> None:
    data = make(dataset=DatasetConfig(name="fake", length=50, num_classes=4, size=16, labels_per_class=10))
    assert data.sizes == {"train": 40, "val": 12, "test": 12}
    assert data.split_names == {"train": "train", "val": "test", "test": "test"}
    assert (data.num_classes, data.classes[1], data.steps_per_epoch) == (4, "class_1", 5)
    assert data.fingerprint != make().fingerprint
    assert make(max_images=20).sizes == {"train": 20, "val": 12, "test": 12}
    assert make(max_images=5, batch_size=4).sizes == {"train": 5, "val": 5, "test": 5}
    assert make(batch_size=4, accumulate=3).steps_per_epoch == 4


@pytest.mark.parametrize("augmentation", [AUGMENTATION, MIXED], ids=["plain", "mixed"])
def test_workers_and_interruptions_change_nothing(augmentation: AugmentationConfig) -> None:
    """Two epochs straight, against: loader processes, and a stop in mid-epoch with a new start from there."""
    straight = list(make(augmentation).train_loader(0, 12))
    assert [int(batch.slot[0]) for batch in straight] == [0] * 6 + [1] * 6
    assert not torch.equal(straight[0].image, straight[6].image)
    assert all_same(make(augmentation, workers=2).train_loader(0, 12), straight)
    for workers in (0, 2):
        resumed = make(augmentation, workers=workers).train_loader(4, 12)
        assert len(resumed) == 8
        assert all_same(resumed, straight[4:])


def test_epochs_by_position_with_persistent_workers() -> None:
    straight = list(make().train_loader(0, 18))
    data = make(workers=2)
    loader = data.train_dataloader()
    data.train_sampler.position = 3
    assert all_same(loader, straight[3:6])
    assert all_same(loader, straight[6:12])  # the same workers, which receive indices and slots only
    data.train_sampler.position = 7
    assert all_same(loader, straight[7:12])
    assert len(loader) == 6


class WhoReads:
    """Records which process reads."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, items: list[int]) -> int:
        return os.getpid() if get_worker_info() is not None else 0


def test_processes_are_kept_and_survive_signals() -> None:
    """Ctrl-C reaches every process of a terminal: a loader's must live on until the main process has saved, also where
    a library starts threads in every new process."""
    asleep, library = threading.Event(), [True]

    def start_a_thread() -> None:
        if library:
            threading.Thread(target=asleep.wait, daemon=True).start()

    os.register_at_fork(after_in_child=start_a_thread)
    loader: Any = Loader(WhoReads(), ShardSampler(8, 1), workers=2)  # type: ignore[arg-type]
    readers = set(loader)
    assert len(readers) == 2 and 0 not in readers and os.getpid() not in readers
    for name in ("-INT", "-TERM") if hasattr(signal, "sigwaitinfo") else ("-INT",):  # macOS does not give the sender
        subprocess.run(["kill", name, *map(str, readers)], check=True)  # from a process that is not their parent
    assert set(loader) == readers
    for worker in loader._iterator._workers:  # as multiprocessing does when the main process exits
        worker.terminate()
        worker.join(timeout=60)
        assert not worker.is_alive()
    library.clear()


@pytest.mark.parametrize("augmentation", [AUGMENTATION, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_change_nothing(augmentation: AugmentationConfig, world: int, accumulate: int) -> None:
    """Per optimiser step, the union of all parts is the batch that one device alone sees: images, labels, views."""
    size = 8 // (world * accumulate)
    ranks = [make(augmentation, batch_size=size, rank=r, world=world, accumulate=accumulate) for r in range(world)]
    parts = [list(rank.train_loader(0, 12 * accumulate)) for rank in ranks]
    for step, alone in enumerate(make(augmentation).train_loader(0, 12)):
        mine = [batch for part in parts for batch in part[step * accumulate : (step + 1) * accumulate]]
        index = torch.cat([batch.index for batch in mine])
        order, reference = index.argsort(), alone.index.argsort()
        assert torch.equal(index[order], alone.index[reference])
        for name in ("image", "label", "slot"):
            joined = torch.cat([getattr(batch, name) for batch in mine])
            assert torch.equal(joined[order], getattr(alone, name)[reference])


def test_evaluation_covers_every_image_once() -> None:
    data = make(eval_batch_size=5)
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(12))
    assert data.val_dataloader() is data.val_dataloader()
    ranks = [list(make(eval_batch_size=5, rank=r, world=2, batch_size=4).test_dataloader()) for r in range(2)]
    assert all_same([ranks[0][0], ranks[1][0], ranks[0][1]], batches)


@pytest.mark.parametrize("augmentation", [AUGMENTATION, MIXED], ids=["plain", "mixed"])
def test_labelling_shows_the_views_of_the_training(augmentation: AugmentationConfig) -> None:
    """Also after an interruption, with workers and on two ranks, and mixed with the same partners."""
    data = make(augmentation)
    full = list(data.label_dataloader(1, range(50), 6))
    assert sorted(torch.cat([batch.index for batch in full]).tolist()) == list(range(50))
    shown = {int(i): image for batch in full for i, image in zip(batch.index, batch.image, strict=True)}
    for batch in data.train_loader(6, 12):
        for index, slot, image in zip(batch.index, batch.slot, batch.image, strict=True):
            assert slot == 1 and torch.equal(image, shown[int(index)])
    missing = full[4].index[:1].tolist() + full[7].index[2:].tolist()
    assert all_same(make(augmentation, workers=2).label_dataloader(1, missing, 6), [full[4], full[7]])
    ranks = [list(make(augmentation, rank=r, world=2).label_dataloader(1, missing, 6)) for r in range(2)]
    assert all_same([*ranks[0], *ranks[1]], [full[4], full[7]])


def write_store(folder: Path, data: VisionData, slots: int = 2) -> None:
    spec = StoreSpec(
        images=len(data.train_source),
        slots=slots,
        k=2,
        classes=data.num_classes,
        keys_sha256=keys_digest(data.train_source.keys),
        data_fingerprint=data.fingerprint,
        augmentation=data.augmentation.to_dict(),
        augmentation_fingerprint=data.augmentation.fingerprint(),
        teacher={"name": "brightness"},
        mean=data.mean,
        std=data.std,
        base_seed=data.seed,
    )
    store = TargetStore.create(folder, spec, list(data.train_source.keys))
    for slot in range(slots):
        with store.writer(slot) as writer:
            for batch in data.label_dataloader(slot, store.missing(slot), 8):
                index = batch.index.numpy()
                writer.write(index, seeds_of(data.seed, slot, index), brightness(batch))
        store.seal(slot)


def brightness(batch: Batch) -> SparseTarget:
    """A teacher that looks at the pixels: its answer shows whether the view is the one that was labelled."""
    logits = batch.image.mean((2, 3))
    return sparsify(torch.cat([logits, logits[:, :1] * logits[:, 1:2]], 1).softmax(1), 2)


@pytest.mark.parametrize("augmentation", [AUGMENTATION, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_stored_targets_are_of_the_views_they_come_with(
    tmp_path: Path, augmentation: AugmentationConfig, workers: int
) -> None:
    write_store(tmp_path, make(augmentation))
    data = make(augmentation, views=StoredViews(tmp_path), workers=workers)
    slots = []
    for batch in data.train_loader(2, 24):
        assert batch.target is not None
        again = brightness(batch)
        assert torch.equal(batch.target.index, again.index)
        assert (batch.target.prob - again.prob).abs().max() < 5e-4  # stored with two bytes
        slots.append(int(batch.slot[0]))
    assert slots == [0] * 4 + [1] * 6 + [0] * 6 + [1] * 6
    with pytest.raises(UserError, match=r"Epoch 3 has no stored views"):
        list(make(augmentation, views=StoredViews(tmp_path, exact=True)).train_loader(12, 13))


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "plain", make())
    write_store(tmp_path / "mixed", make(MIXED))
    with pytest.raises(UserError, match="another augmentation"):
        make(MIXED, views=StoredViews(tmp_path / "plain"))
    with pytest.raises(UserError, match="another data set"):
        make(views=StoredViews(tmp_path / "plain"), max_images=40)
    make(views=StoredViews(tmp_path / "plain"), seed=1)  # another order of the same views
    with pytest.raises(UserError, match="another seed"):
        make(MIXED, views=StoredViews(tmp_path / "mixed"), seed=1)  # which would pair other images


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_without_a_stack_trace(make_images: MakeImages, workers: int) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    bad = next(path for path in root.rglob("*.png") if path.name == "3.png")
    bad.write_bytes(b"not a picture")
    data = make(
        dataset=DatasetConfig(name="folder", root=str(root), size=16, val_fraction=0.2), batch_size=4, workers=workers
    )
    with pytest.raises(UserError) as caught:
        for loader in (data.train_loader(0, 4), data.val_dataloader()):
            list(loader)
    assert str(bad) in str(caught.value) and "Traceback" not in str(caught.value)


def test_workers_are_started_where_images_must_be_decoded(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(workers=None).workers == 0
    root = make_images(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    files = make(dataset=DatasetConfig(name="folder", root=str(root), size=16, val_fraction=0.2)).train_source
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(files) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_workers(files) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(files) == 1


def test_a_data_set_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the module that a user writes has it (vitlab/data/sets)."""
    from types import SimpleNamespace

    from PIL import Image

    class Shells:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (20, 30), index * 10), index % 2

    def shells(cfg: DatasetConfig) -> dict[str, Source]:
        classes = ["cowrie", "limpet"]
        return {"train": MapStyle(Shells(), classes), "test": MapStyle(Shells(), classes, "test")}

    monkeypatch.setattr("vitlab.data.build.find_set", lambda name: SimpleNamespace(splits=shells))
    data = make(dataset=DatasetConfig(name="shells", size=16), batch_size=6)
    batches = list(data.train_loader(0, 2))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(12))
    assert all((batch.label == batch.index % 2).all() for batch in batches)
    assert data.split_names["val"] == "test"


def test_lightning_moves_a_batch() -> None:
    batch = next(iter(make().train_loader(0, 1)))
    batch.target = sparsify(torch.rand(8, 4), 2)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch) and moved.target is not None
    assert {t.device.type for t in (moved.image, moved.label, moved.index, moved.slot, moved.target.prob)} == {"meta"}


def test_too_few_images_are_answered() -> None:
    with pytest.raises(UserError, match=r"batch_size=64 is more than the 50 training images"):
        make(batch_size=64)


def test_repeats_and_balanced_epochs_exclude_each_other() -> None:
    with pytest.raises(UserError, match="repeated augmentation"):
        make(balanced=True, views=FreshViews(repeats=3))


def test_noise_of_the_main_process_changes_nothing() -> None:
    """No global generator is read: results do not depend on what else draws random numbers."""
    np.random.seed(1)
    torch.manual_seed(1)
    first = list(make(MIXED).train_loader(0, 3))
    np.random.seed(2)
    torch.manual_seed(2)
    assert all_same(make(MIXED).train_loader(0, 3), first)
