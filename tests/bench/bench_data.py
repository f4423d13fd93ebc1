"""Images per second and core: our training views against torchvision's own pipelines for the same augmentation.

``python tests/bench/bench_data.py`` prints a table. Every pipeline reads the same JPEG files of 500x375 pixels in one
process on one thread and makes normalised 224-pixel views: random resized crop, flip, RandAugment (2 operations of
magnitude 9), normalisation, random erasing. The operations that RandAugment chooses from differ between timm (ours)
and torchvision, and timm runs each with probability 0.5; the last row of ours runs all of them, as torchvision does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from vitlab.data.dataset import TrainViews
from vitlab.data.decode import Files
from vitlab.distill.draw import Augmentation
from vitlab.distill.views import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Callable[[list[int]], torch.Tensor]


def write_photos(folder: Path, count: int) -> list[str]:
    """JPEGs of 500x375 with edges and gradients, so that they decode about as slowly as photographs (40-80 KB)."""
    names = []
    for number in range(count):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + rng.normal(0, 6, (375, 500, 3))).clip(0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(pixels).save(folder / names[-1], quality=85)
    return names


def ours(folder: Path, names: list[str], randaug: str) -> Batches:
    augmentation = Augmentation(size=224, crop_scale=(0.08, 1.0), flip=0.5, randaug=randaug, erase=0.25)
    source = Files(folder, names, [0] * len(names), ["photo"], "train")
    views = TrainViews(source, augmentation, View(224, MEAN, STD), 0, 1)
    return lambda items: views.__getitems__([(i, 0) for i in items]).image


def torchvision_pil(folder: Path, names: list[str]) -> Batches:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25),
        ]
    )
    return lambda items: torch.stack([transform(Image.open(folder / names[i]).convert("RGB")) for i in items])


def torchvision_tensor(folder: Path, names: list[str]) -> Batches:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR),  # there is no bicubic for tensors
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25),
        ]
    )
    return lambda items: torch.stack(
        [transform(decode_image(str(folder / names[i]), mode=ImageReadMode.RGB)) for i in items]
    )


def measure(images: int, repeats: int) -> dict[str, float]:
    """Images per second of CPU time (other work on the machine does not count): the best of some passes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            names = write_photos(folder, images)
            pipelines = {
                "vitlab": ours(folder, names, "rand-m9-mstd0.5-inc1"),
                "vitlab, every operation run": ours(folder, names, "rand-m9-mstd0.5-p1-inc1"),
                "torchvision v2, PIL": torchvision_pil(folder, names),
                "torchvision v2, tensors": torchvision_tensor(folder, names),
            }
            best = dict.fromkeys(pipelines, 0.0)
            for _ in range(repeats):  # in turn, so that a slow moment of the machine falls on all
                for title, batches in pipelines.items():
                    start = time.process_time()
                    for first in range(0, images, 32):
                        assert batches(list(range(first, min(first + 32, images)))).shape[1:] == (3, 224, 224)
                    best[title] = max(best[title], images / (time.process_time() - start))
            return best
    finally:
        torch.set_num_threads(threads)


def report(rates: dict[str, float]) -> None:
    """Print the table."""
    reference = rates["torchvision v2, PIL"]
    print(f"\n{'pipeline':<30}{'images/s/core':>15}{'ratio':>8}")
    for title, rate in rates.items():
        print(f"{title:<30}{rate:>15.0f}{rate / reference:>8.2f}")


@pytest.mark.bench
def test_bench_data() -> None:
    rates = measure(images=8, repeats=1)
    report(rates)
    assert len(rates) == 4 and min(rates.values()) > 0


def main() -> None:
    report(measure(images=128, repeats=4))


if __name__ == "__main__":
    main()
