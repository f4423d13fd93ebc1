"""What is reinforced does not depend on who did it: shares of 1, 2 and 4 writers, loader processes, images at once."""

from __future__ import annotations

from pathlib import Path

import torch

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import LoaderOptions
from vitlab.data.reinforced import RecordBatch
from vitlab.distill.reinforce_draw import PROTOCOL, Reinforcement
from vitlab.distill.reinforce_record import record_fields
from vitlab.distill.sparse import sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest

IMAGES, SAMPLES, K = 21, 3, 3
VIEWS = Reinforcement("randaug_mixing")


def teacher(image: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, 10] that depend on each image alone, to the bit."""
    return (torch.stack([one.double().reshape(12, -1).sum(1)[:10] for one in image]) / 50).float().softmax(1)


def reinforced(folder: Path, world: int, workers: int, at_once: int) -> dict[str, bytes]:
    """The bytes of a sealed store that ``world`` writers filled."""
    for rank in range(world):
        data = VisionData(
            DatasetConfig(name="digits", size=16, mean=[0.3] * 3, std=[0.4] * 3), AugmentationConfig(),
            LoaderOptions(2, workers=workers, rank=rank, world=world),
            mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4), max_images=IMAGES,
        )  # fmt: skip
        keys = list(data.train_source.keys)
        spec = StoreSpec(
            images=IMAGES, slots=SAMPLES, k=K, classes=10, keys_sha256=keys_digest(keys),
            data_fingerprint=data.fingerprint, augmentation=VIEWS.to_dict(),
            augmentation_fingerprint=VIEWS.fingerprint(), teacher={}, mean=data.mean, std=data.std, base_seed=0,
            prob="f4", protocol=PROTOCOL, fields=record_fields(VIEWS),
        )  # fmt: skip
        store = TargetStore.create(folder, spec, keys)
        for batch in data.fresh_dataloader(VIEWS, range(SAMPLES), range(IMAGES), at_once):
            assert isinstance(batch, RecordBatch)
            target = sparsify(teacher(batch.image), K)
            for slot in range(SAMPLES):
                rows = batch.slot == slot
                part = type(target)(target.prob[rows], target.index[rows], 10)
                fields = {name: values[rows.numpy()] for name, values in batch.fields.items()}
                with store.writer(slot, rank) as writer:
                    writer.write(batch.index[rows].numpy(), None, part, **fields)
    for slot in range(SAMPLES):
        store.seal(slot)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.bin")}


def test_bytes_do_not_depend_on_ranks_workers_and_batches(tmp_path: Path) -> None:
    wanted = reinforced(tmp_path / "one", 1, 0, 4)
    assert len(wanted) == 2 * SAMPLES
    for world, workers, at_once in ((2, 0, 4), (4, 2, 8), (4, 0, 1)):
        assert reinforced(tmp_path / f"{world}-{workers}-{at_once}", world, workers, at_once) == wanted
