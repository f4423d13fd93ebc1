"""What labels cost an epoch: none, stored ones, and a teacher of four times the student's size run at every step.

The same student, views and order in all three, step by step in turn. Run as a script for the table; the test holds that
all three see the same views and that stored labels are the teacher's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
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
    """The data, with and without stored labels, and the teacher; stored views of each image, and what is minimised."""

    plain: TrainViews
    stored: TrainViews
    teacher: OnlineTeacher
    images: int
    slots: int = 1
    loss: Callable[[torch.Tensor, SparseTarget | torch.Tensor], torch.Tensor] = soft_cross_entropy


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


class Lane:
    """A student, its optimiser and its views: one of the three ways to have labels."""

    def __init__(self, setup: Setup, kind: str) -> None:
        self.kind, self.teacher, self.loss = kind, setup.teacher, setup.loss
        self.views = setup.stored if kind == "stored" else setup.plain
        self.student = network(STUDENT).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), 1e-3)

    def step(self, items: list[tuple[int, int]]) -> tuple[float, float]:
        """CPU seconds of the complete step and of what comes before the student: views and labels."""
        start = time.process_time()
        batch = self.views.__getitems__(items)
        target: SparseTarget | torch.Tensor | None = batch.target
        if self.kind == "online":
            target = self.teacher(batch)
        given = time.process_time()
        logits = self.student(batch.image)
        loss = nn.functional.cross_entropy(logits, batch.label) if target is None else self.loss(logits, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.process_time() - start, given - start


def epochs(setup: Setup, rounds: int, batch_size: int = 32) -> dict[str, np.ndarray]:
    """CPU seconds [steps, 2] of each kind.

    The three take every step in turn, in changing order, on the same views: whatever else the machine does falls on
    neighbours of a few milliseconds, and a median over steps forgets it.
    """
    lanes = [Lane(setup, kind) for kind in KINDS]
    sampler = EpochSampler(setup.images, batch_size, slots="cycle", num_slots=setup.slots)
    batches = [list(items) for _ in range(rounds) for items in sampler]
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number, items in enumerate(batches):
        for place in range(len(lanes)):
            lane = lanes[(number + place) % len(lanes)]
            times[lane.kind].append(lane.step(items))
    warm = len(batches) // rounds // 4
    return {kind: np.array(found[warm:]) for kind, found in times.items()}


def test_all_three_see_the_same_views(tmp_path: Path) -> None:
    setup = prepare(tmp_path, 12, 48, k=CLASSES)
    items = [(i, 0) for i in (3, 1, 4, 7)]
    plain, stored = setup.plain.__getitems__(items), setup.stored.__getitems__(items)
    assert plain.image.equal(stored.image) and stored.target is not None
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    online = soft_cross_entropy(logits, setup.teacher(plain))
    torch.testing.assert_close(soft_cross_entropy(logits, stored.target), online, rtol=1e-3, atol=0)
    times = epochs(setup, 2, 4)
    assert {len(found) for found in times.values()} == {6} and all((found > 0).all() for found in times.values())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with tempfile.TemporaryDirectory() as name:
        setup = prepare(Path(name) / "store", 512, 256)
        print("K=100", end="; ")
        report(setup, rounds)


def report(setup: Setup, rounds: int) -> None:
    """Print what a step of each kind costs, and as a share of a step on labels alone."""
    macs = [count_macs(network(shape), SIZE) for shape in (STUDENT, TEACHER)]
    print(f"student {macs[0] / 1e6:.1f} M multiply-adds a view, teacher {macs[1] / macs[0]:.2f} times that")
    times = epochs(setup, rounds)
    plain = times["labels"][:, 0]
    rng = np.random.default_rng(0)
    for kind, found in times.items():
        ratios = found[:, 0] / plain
        spread = [np.median(rng.choice(ratios, len(ratios))) for _ in range(1000)]
        low, high = np.percentile(spread, [2.5, 97.5])
        step, before = 1e3 * np.median(found, 0)
        print(
            f"{kind:<8} {step:7.2f} ms of CPU a step, {before:6.2f} of them views and labels   "
            f"{np.median(ratios):.3f} x labels ({low:.3f} to {high:.3f}; median of {len(ratios)} steps)"
        )
    print(f"online over stored: {np.median(times['online'][:, 0] / times['stored'][:, 0]):.2f}")


if __name__ == "__main__":
    main()
