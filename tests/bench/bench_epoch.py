"""What labels cost an epoch: none, stored ones, and a teacher of four times the student's size asked at every step.

The same student, views and order in all three; rounds alternate, so that a machine whose speed drifts slows all. Run as
a script for the table; the test holds that all three see the same views and that stored labels are the teacher's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from vitlab.data.dataset import TrainViews
from vitlab.data.sampler import EpochSampler
from vitlab.data.sources import Arrays
from vitlab.distill.draw import Augmentation, seeds_of
from vitlab.distill.sparse import SparseTarget, soft_cross_entropy, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.teachers import OnlineTeacher
from vitlab.distill.views import View
from vitlab.measure.cost import count_macs
from vitlab.methods.tinyvit.shape import Shape

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, SIZE = 1000, 64
STUDENT = Shape((32, 64, 96, 128), (1, 1, 2, 1), (4, 4, 2))
TEACHER = Shape((64, 128, 192, 256), (1, 1, 2, 1), (4, 4, 2))
KINDS = ("labels", "stored", "online")


def network(shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("tiny_vit_5m_224", num_classes=CLASSES, **shape.args())
    return model


@dataclass
class Setup:
    """The data, with and without stored labels, and the teacher."""

    plain: TrainViews
    stored: TrainViews
    teacher: OnlineTeacher
    images: int


def prepare(folder: Path, images: int, side: int, k: int = 100) -> Setup:
    """Pictures of smoothed noise in memory, and the teacher's answers for one view of each."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (images, side // 8, side // 8, 3), dtype=np.uint8)
    pixels = small.repeat(8, 1).repeat(8, 2)
    keys = [str(i) for i in range(images)]
    source = Arrays(pixels, np.arange(images) % CLASSES, [str(c) for c in range(CLASSES)], keys, "train")
    augmentation = Augmentation(SIZE, (0.08, 1.0), flip=0.5, randaug="rand-m9-mstd0.5-inc1", erase=0.25)
    view = View(SIZE, MEAN, STD)
    teacher = OnlineTeacher(network(TEACHER), MEAN, STD, SIZE, MEAN, STD)
    plain = TrainViews(source, augmentation, view, 0, CLASSES)
    spec = StoreSpec(
        images,
        1,
        k,
        CLASSES,
        keys_digest(keys),
        "",
        augmentation.to_dict(),
        augmentation.fingerprint(),
        {},
        MEAN,
        STD,
        0,
    )
    store = TargetStore.create(folder, spec, keys)
    with store.writer(0) as writer:
        for start in range(0, images, 32):
            index = np.arange(start, min(start + 32, images))
            batch = plain.__getitems__([(int(i), 0) for i in index])
            writer.write(index, seeds_of(0, 0, index), sparsify(teacher(batch), k))
    store.seal(0)
    return Setup(plain, TrainViews(source, augmentation, view, 0, CLASSES, folder), teacher, images)


def epoch(setup: Setup, kind: str, batch_size: int = 32) -> float:
    """CPU seconds of one epoch: views, labels, forward, backward and optimiser step, in this process."""
    student = network(STUDENT).train()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    sampler = EpochSampler(setup.images, batch_size, slots="cycle", num_slots=1)
    views = setup.stored if kind == "stored" else setup.plain
    start = time.process_time()
    for items in sampler:
        batch = views.__getitems__(items)
        target: SparseTarget | torch.Tensor | None = batch.target
        if kind == "online":
            target = setup.teacher(batch)
        logits = student(batch.image)
        if target is None:
            loss = nn.functional.cross_entropy(logits, batch.label)
        else:
            loss = soft_cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - start


def test_all_three_see_the_same_views(tmp_path: Path) -> None:
    setup = prepare(tmp_path, 12, 48, k=CLASSES)
    items = [(i, 0) for i in (3, 1, 4, 7)]
    plain, stored = setup.plain.__getitems__(items), setup.stored.__getitems__(items)
    assert plain.image.equal(stored.image) and stored.target is not None
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    online = soft_cross_entropy(logits, setup.teacher(plain))
    torch.testing.assert_close(soft_cross_entropy(logits, stored.target), online, rtol=1e-3, atol=0)
    assert epoch(setup, "stored", 4) > 0


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as name:
        setup = prepare(Path(name) / "store", 512, 256)
        macs = [count_macs(network(shape), SIZE) for shape in (STUDENT, TEACHER)]
        print(f"student {macs[0] / 1e6:.1f} M multiply-adds a view, teacher {macs[1] / macs[0]:.2f} times that; K=100")
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            epoch(setup, kind)
        for number in range(rounds):
            for place in range(3):
                kind = KINDS[(number + place) % 3]
                times[kind].append(epoch(setup, kind))
    for kind in KINDS:
        ratio = statistics.median(a / b for a, b in zip(times[kind], times["labels"], strict=True))
        middle = statistics.median(times[kind])
        print(f"{kind:<8} {middle:7.3f} CPU s an epoch   {ratio:6.3f} x labels (median of {rounds} rounds)")
    print(f"online over stored: {statistics.median(times['online']) / statistics.median(times['stored']):.2f}")


if __name__ == "__main__":
    main()
