"""Compare stored labels with the teacher: random records are replayed and labelled again (official check mode)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitlab.config import Config
from vitlab.data.batch import Batch
from vitlab.data.datamodule import VisionData
from vitlab.data.dataset import TrainViews
from vitlab.data.sampler import permutation
from vitlab.distill.formats import open_targets
from vitlab.distill.sparse import SparseTarget, sparsify
from vitlab.distill.teachers import Ensemble, OnlineTeacher

ALLOWED = 0.01
"""Share of stored values that may differ from a recomputed one by more than one unit of half precision."""


@dataclass(frozen=True)
class Recheck:
    """Differences between stored and recomputed labels; shares are of all stored positions.

    ``error``: mean |recomputed - stored| probability over the stored classes. ``diff_rate``: positions whose class
    differs, ties included. ``set_rate``: stored classes that are not among the K largest recomputed. ``off_rate``:
    stored values that differ by more than one unit in the last place of half precision. The first two are the official
    numbers; ties swap positions without an error, which the last two exclude.
    """

    records: int
    error: float
    diff_rate: float
    set_rate: float
    off_rate: float

    @property
    def sound(self) -> bool:
        """Whether the store is this teacher's, by :data:`ALLOWED`."""
        return self.off_rate <= ALLOWED

    def __str__(self) -> str:
        return (
            f"{self.records} records recomputed: mean |p - stored| {self.error:.2e}, classes at another place "
            f"{self.diff_rate:.2%}, classes not among the K largest {self.set_rate:.2%}, values off by more than one "
            f"half-precision unit {self.off_rate:.2%}"
        )


def compare(stored: SparseTarget, prob: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per position [B, K]: |recomputed - stored|, class differs, class is not among the K largest, value is off.

    ``prob`` [B, C]: the teacher's probabilities now.
    """
    now = sparsify(prob, stored.prob.shape[1])
    again = prob.float().gather(1, stored.index)
    error = (again - stored.prob).abs()
    absent = ~(stored.index[:, :, None] == now.index[:, None, :]).any(2)
    ulp = torch.from_numpy(np.spacing(stored.prob.half().abs().numpy()).astype(np.float32))
    # Half a unit is rounding; one unit is a value near the midpoint that was rounded the other way.
    return error, stored.index != now.index, absent, error > 1.5 * ulp


def recheck(
    data: VisionData,
    store: Path,
    teacher: OnlineTeacher | Ensemble,
    records: int,
    device: torch.device,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Recheck:
    """Label ``records`` random views of ``store`` with ``teacher`` again.

    Mixed views are drawn in their pairs, so an odd number is rounded up.

    Args:
        data: with the teacher's normalisation and the store's augmentation.
    """
    views = TrainViews(data.train_source, data.augmentation, data.view, data.seed, data.num_classes, store)
    slots = open_targets(store, data.train_source.keys, data.num_classes, data.augmentation.mixes).spec.slots
    rng = np.random.default_rng(seed)
    length, paired = len(data.train_source), data.augmentation.mixes
    items: list[tuple[int, int]] = []
    while len(items) < records:
        slot = int(rng.integers(slots))
        if not paired:
            items.append((int(rng.integers(length)), slot))
            continue
        row = 2 * int(rng.integers(length // 2))
        items += [(int(index), slot) for index in permutation(length, data.seed, slot)[row : row + 2]]
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(items), batch_size + batch_size % 2):
        batch: Batch = views.__getitems__(items[start : start + batch_size + batch_size % 2])
        assert batch.target is not None  # views of a store carry it
        found.append(compare(batch.target, teacher(batch.to(device)).cpu()))
        if progress is not None:
            progress(min(len(items), start + batch_size), len(items))
    error, differs, absent, off = (torch.cat(parts).float().mean().item() for parts in zip(*found, strict=True))
    return Recheck(len(items), error, differs, absent, off)


def recheck_run(
    config: Config,
    typed: object,
    data: VisionData,
    store: Path,
    teacher: OnlineTeacher | Ensemble,
    records: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Recheck:
    """:func:`recheck` of a run's store, for ``mode=verify``."""
    return recheck(data, store, teacher, records, device, config.seed, config.evaluation.batch_size, progress)
