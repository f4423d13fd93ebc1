"""What reinforced data cost: bytes a sample, reading them against plain training views, a step of training.

``PYTHONPATH=. python tests/bench/bench_reinforce.py [ROUNDS]`` prints

- CPU time of making the same batches of 224-pixel views from the same JPEG files in one process: plain views (random
  resized crop, flip, torchvision-like RandAugment of two ops, erasing) and stored ones replayed with their targets,
  NS = 50 and 400;
- CPU time of complete steps on views of 64 pixels of the same files: labels alone, reinforced data, and the teacher, of
  four times the student's size, run at every step (the networks and the loop of bench_epoch.py).

All alternate, in CPU time, so that a busy machine does not spoil the ratios. The pictures are synthetic and the stored
probabilities random numbers; nothing is learned here. Measured on one core of two, both busy, 9 rounds:

    bytes a sample, K=10: rrc 69  mixing 101  randaug 75  randaug_mixing 113
    plain views 1.000   NS=50 1.158   NS=400 1.106   (speed of reading, as a share of plain views')
    labels alone 227 ms a step   reinforced 215, 0.96 of it (0.94 to 0.99)   with the teacher 327, 1.43 (1.38 to 1.46)

Stored views are read faster than plain ones are made: nothing is drawn, and RandAugment takes the nearest pixel. An
epoch with the teacher costs 1.47 of a reinforced one, at 3.8 times the student's multiply-adds; published is 8.2 on
GPUs, for an ensemble of 71 times the student's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bench import bench_epoch
from vitlab.data.dataset import TrainViews
from vitlab.data.decode import Files
from vitlab.data.reinforced import ReplayedViews
from vitlab.data.sources import fingerprint
from vitlab.distill.draw import Augmentation
from vitlab.distill.reinforce_draw import PROTOCOL, VARIANTS, Reinforcement, sample
from vitlab.distill.reinforce_record import encode, record_fields
from vitlab.distill.sparse import SparseTarget, kl_divergence
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.teachers import OnlineTeacher
from vitlab.distill.views import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, K, SIZE = 1000, 10, 224
FLOOR = 0.97
"""Of the speed of plain views: the paper's "no extra cost", as the specification requires it."""


def source_of(folder: Path, images: int) -> Files:
    """JPEGs of 500x375 that decode about as slowly as photographs (40-80 KB)."""
    names = [f"{number}.jpg" for number in range(images)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / name, quality=85)
    return Files(folder, names, [0] * images, [f"c{number}" for number in range(CLASSES)], "train")


def make_store(folder: Path, source: Files, variant: str, samples: int) -> TargetStore:
    """A store of drawn views and random probabilities."""
    views, images = Reinforcement(variant), len(source)
    keys = list(source.keys)
    spec = StoreSpec(
        images=images, slots=samples, k=K, classes=CLASSES, keys_sha256=keys_digest(keys),
        data_fingerprint=fingerprint(source), augmentation=views.to_dict(),
        augmentation_fingerprint=views.fingerprint(), teacher={}, mean=MEAN, std=STD, base_seed=0, prob="f4",
        protocol=PROTOCOL, fields=record_fields(views),
    )  # fmt: skip
    store = TargetStore.create(folder, spec, keys)
    rng = np.random.default_rng(0)
    index = np.arange(images)
    for slot in range(samples):
        prob = torch.from_numpy(rng.dirichlet([0.2] * (K + 1), images)[:, :K].astype(np.float32))
        classes = torch.from_numpy(np.stack([rng.choice(CLASSES, K, replace=False) for _ in index]))
        draws = [sample(views, 0, image, slot, images, lambda _: (500, 375)) for image in range(images)]
        with store.writer(slot) as writer:
            writer.write(index, None, SparseTarget(prob, classes, CLASSES), **encode(views, draws))
        store.seal(slot)
    return store


def compare(images: int, counts: tuple[int, ...], rounds: int) -> dict[str, tuple[float, float]]:
    """For plain views and each count of samples: images per CPU second, and the speed as a share of plain views'."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = source_of(folder, images)
        augmentation = Augmentation(SIZE, (0.08, 1.0), flip=0.5, randaug="rand-m9-mstd0-p1-inc1", erase=0.25)
        view = View(SIZE, MEAN, STD, "bilinear")
        plain = TrainViews(source, augmentation, view, 0, CLASSES)
        readers: dict[str, TrainViews] = {"plain": plain}
        for samples in counts:
            make_store(folder / str(samples), source, "randaug", samples)
            readers[f"NS={samples}"] = ReplayedViews(plain, [folder / str(samples)], view)
        rng = np.random.default_rng(1)
        spent: dict[str, list[float]] = {key: [] for key in readers}
        for number in range(rounds + 1):  # the first opens files
            for title, reader in sorted(readers.items(), key=lambda _: rng.random()):
                slots = rng.integers(0, int(title[3:]) if title != "plain" else 400, images).tolist()
                begun = time.process_time()
                for first in range(0, images, 32):
                    reader.__getitems__([(i, slots[i]) for i in range(first, min(first + 32, images))])
                if number:
                    spent[title].append(time.process_time() - begun)
    return {
        title: (
            images / statistics.median(times),
            statistics.median(a / b for a, b in zip(spent["plain"], times, strict=True)),
        )
        for title, times in spent.items()
    }


def steps(folder: Path, images: int, samples: int) -> bench_epoch.Setup:
    """JPEG files, ``samples`` stored views of each, and a teacher, as :mod:`bench_epoch` wants them."""
    (folder / "images").mkdir()
    source = source_of(folder / "images", images)
    make_store(folder / "store", source, "randaug", samples)
    view = View(bench_epoch.SIZE, MEAN, STD, "bilinear")
    augmentation = Augmentation(bench_epoch.SIZE, (0.08, 1.0), flip=0.5, randaug="rand-m9-mstd0-p1-inc1", erase=0.25)
    plain = TrainViews(source, augmentation, view, 0, CLASSES)
    teacher = OnlineTeacher(bench_epoch.network(bench_epoch.TEACHER), MEAN, STD, bench_epoch.SIZE, MEAN, STD)
    stored = ReplayedViews(plain, [folder / "store"], view)
    return bench_epoch.Setup(plain, stored, teacher, images, samples, kl_divergence)


@pytest.mark.bench
def test_bench_a_step(tmp_path: Path) -> None:
    times = bench_epoch.epochs(steps(tmp_path, 8, 2), 2, 4)
    assert all(len(found) == 4 and (found > 0).all() for found in times.values())


@pytest.mark.bench
def test_bench_reinforce() -> None:
    found = compare(4, (2,), 1)
    assert list(found) == ["plain", "NS=2"] and min(rate for rate, _ in found.values()) > 0


def main() -> None:
    """Print the tables."""
    print("bytes a sample, K=10: ", end="")
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as name:
            (folder := Path(name) / "images").mkdir()
            store = make_store(Path(name) / "store", source_of(folder, 4), variant, 2)
            size = sum(path.stat().st_size for path in store.folder.rglob("records.bin"))
            print(f"{variant} {size / 8:.0f}", end="  ")
    print()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    found = compare(64, (50, 400), rounds)
    for title, (rate, ratio) in found.items():
        note = "" if title == "plain" or ratio >= FLOOR else f"   below {FLOOR}"
        print(f"{title:<8} {rate:7.1f} images per CPU second   {ratio:.3f} of plain{note}")
    with tempfile.TemporaryDirectory() as name:
        bench_epoch.report(steps(Path(name), 256, 50), rounds)


if __name__ == "__main__":
    main()
