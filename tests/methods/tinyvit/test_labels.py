"""What is stored does not depend on who stored it, and learning from it is learning from the teacher."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.contract.story import TEACHER, run_command, the_run
from vitlab.compose.load import load
from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import LoaderOptions
from vitlab.data.views import FreshViews
from vitlab.distill.draw import seeds_of
from vitlab.distill.sparse import sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.methods.tinyvit.method import TinyViT
from vitlab.methods.tinyvit.options import views_of
from vitlab.run.recorder import read_rows
from vitlab.stage import Context

AUGMENTATION = AugmentationConfig(
    crop_scale=[0.3, 1.0], flip=0.5, randaug="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0
)
IMAGES = 49  # odd: the last one has no partner


def teacher(image: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, 10] that depend on each image alone, to the bit: no arithmetic goes over the batch."""
    features = torch.stack([one.double().reshape(12, -1).sum(1)[:10] for one in image])
    return (features / 50).float().softmax(1)


def labelled(folder: Path, world: int, workers: int, batch_size: int) -> dict[str, bytes]:
    """Two slots of 49 views, stored by ``world`` writers; the bytes of the sealed store."""
    store = None
    for rank in range(world):
        data = VisionData(
            DatasetConfig(name="digits", size=16, mean=[0.3] * 3, std=[0.4] * 3),
            AUGMENTATION,
            LoaderOptions(2, workers=workers, rank=rank, world=world),
            mean=(0.3, 0.3, 0.3),
            std=(0.4, 0.4, 0.4),
            max_images=IMAGES,
        )
        spec = StoreSpec(
            images=IMAGES, slots=2, k=3, classes=10, keys_sha256=keys_digest(data.train_source.keys),
            data_fingerprint=data.fingerprint, augmentation=data.augmentation.to_dict(),
            augmentation_fingerprint=data.augmentation.fingerprint(), teacher={}, mean=data.mean, std=data.std,
            base_seed=0,
        )  # fmt: skip
        store = TargetStore.create(folder, spec, list(data.train_source.keys))
        for slot in range(2):
            everything = range(IMAGES)  # what this rank has to do does not depend on what others have done
            with store.writer(slot, rank) as writer:
                for batch in data.label_dataloader(slot, list(everything), batch_size):
                    index = batch.index.numpy()
                    writer.write(index, seeds_of(0, batch.slot.numpy(), index), sparsify(teacher(batch.image), 3))
    assert store is not None
    for slot in range(2):
        store.seal(slot)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".json"}


def test_bytes_are_the_same_for_any_ranks_workers_and_batches(tmp_path: Path) -> None:
    """Section 9.3: 1, 2 and 4 ranks, 0 and 3 workers, batches of 8 and 6, and views mixed in pairs."""
    wanted = labelled(tmp_path / "one", 1, 0, 8)
    assert len(wanted["slot_00001/records.bin"]) == IMAGES * (4 + 4 * 3)
    for world, workers, batch_size in ((1, 3, 6), (2, 0, 6), (4, 0, 8), (4, 3, 6)):
        assert labelled(tmp_path / f"{world}-{workers}-{batch_size}", world, workers, batch_size) == wanted


@pytest.mark.parametrize("mixup", [0.0, 0.8], ids=["plain", "mixed"])
def test_stored_is_online_to_rounding(tmp_path: Path, mixup: float) -> None:
    """Section 9.7: all classes kept in single precision, the same seeds: the same losses; two views in three epochs.

    The student stands still, since an optimiser of normalised steps makes large differences of the smallest ones.
    """
    words = (
        "method=tinyvit", "method.topk=10", "method.prob_dtype=f4", "debug.max_slots=2", "method.baseline=false",
        f"recipe.augmentation.mixup={mixup}", "recipe.lr=1e-12", "recipe.warmup_lr=0", "recipe.min_lr=0",
        *TEACHER,
    )  # fmt: skip
    runs = []
    for name, online in (("stored", "false"), ("online", "true")):
        assert run_command(tmp_path / name, *words, f"method.online={online}") == 0
        runs.append(the_run(tmp_path / name))
    stored, online_run = (
        [row for row in read_rows(run / "metrics.jsonl") if row["stage"] == "pretrain" and "loss" in row]
        for run in runs
    )
    assert len(stored) == len(online_run) >= 3
    for a, b in zip(stored, online_run, strict=True):
        assert float(str(a["loss"])) == pytest.approx(float(str(b["loss"])), rel=1e-6)
        assert a["teacher_accuracy"] == b["teacher_accuracy"]


def test_stages_hand_over_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finetuning starts from the pretrained student; the comparison on labels sees its views; rounding is clamped."""
    words = [
        "method=tinyvit",
        "dataset=digits",
        "recipe@method.finetune=digits",
        "method.clamp_minor=true",
        "method.epochs=3",
    ]
    config = load(words).config
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    for name in ("train", "train_on_labels"):
        monkeypatch.setattr(f"vitlab.training.train.{name}", lambda *a, _=name, **k: calls.update({_: (a, k)}) or {})
    method, context = TinyViT(config), cast(Context, SimpleNamespace(artifact=Path))
    method.pretrain(context)
    assert calls["train"][0][3].keywords == {"clamp_minor": True}
    method.finetune(context)
    assert calls["train_on_labels"][1]["start"] == Path("pretrain")
    method.labels(context)
    assert calls["train_on_labels"][0][3] == FreshViews(views_of(config))
