"""Compare stored reinforcements with the teacher: random ones are replayed and labelled again (section 9.8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.config import Config
from vitlab.data.datamodule import VisionData
from vitlab.data.dataset import TrainViews
from vitlab.data.reinforced import ReplayedViews
from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import densify
from vitlab.distill.teachers import Ensemble, OnlineTeacher

AGREEMENT = 0.99
"""Share of views whose most probable class must be the stored one."""

TOLERANCE = {"f4": 1e-5, "f2": 1e-3, "bf16": 1e-2}
"""How far a probability of a teacher in fp32 may be from the stored one, made with the same views."""

LOOSE = 1.1e-2
"""The same for another precision, or views that RandAugment makes with another backend than the teacher's."""


@dataclass(frozen=True)
class Replayed:
    """``agreement``: views whose most probable class is the stored one. ``error``: the largest |p - stored| over stored
    classes. ``kl``: mean KL(stored || recomputed), nats, both over all classes."""

    records: int
    agreement: float
    error: float
    kl: float
    tolerance: float

    @property
    def sound(self) -> bool:
        """Whether the store is this teacher's."""
        return self.agreement >= AGREEMENT and self.error <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.records} views labelled again: top-1 agreement {self.agreement:.2%} (at least {AGREEMENT:.0%}), "
            f"largest |p - stored| {self.error:.1e} (at most {self.tolerance:.1e}), mean KL {self.kl:.2e}"
        )


def recheck(
    data: VisionData,
    folder: Path,
    teacher: OnlineTeacher | Ensemble,
    records: int,
    device: torch.device,
    backend: str = "auto",
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Label ``records`` random views of the store in ``folder`` with ``teacher`` again.

    Args:
        data: with the normalisation that the teacher's views had.
        backend: of the replay; auto: the store's own.
    """
    store = ReinforcedStore(folder)
    spec = store.spec
    own = str(spec.teacher.get("backend", "pil"))
    backend = own if backend == "auto" else backend
    members = teacher.members if isinstance(teacher, Ensemble) else [teacher]
    exact = backend == own and all(one.precision == "fp32" for one in members)
    plain = TrainViews(data.train_source, data.augmentation, data.view, data.seed, data.num_classes)
    views = ReplayedViews(plain, [folder], data.replay_view(backend, store.interpolation))
    rng = np.random.default_rng(seed)
    items = [(int(rng.integers(spec.images)), int(rng.integers(spec.slots))) for _ in range(records)]
    agreed, error, kl = 0, 0.0, 0.0
    for start in range(0, records, batch_size):
        batch = views.__getitems__(items[start : start + batch_size])
        assert batch.target is not None  # stored views carry it
        prob = teacher(batch.to(device)).cpu()
        stored = densify(batch.target, clamp_minor=True)
        agreed += int((batch.target.argmax() == prob.argmax(1)).sum())
        error = max(error, float((prob.gather(1, batch.target.index) - batch.target.prob).abs().max()))
        log = prob.double().clamp(min=1e-300).log()
        kl += float((torch.special.xlogy(stored, stored).double() - stored.double() * log).sum())
        if progress is not None:
            progress(min(records, start + batch_size), records)
    return Replayed(records, agreed / records, error, kl / records, TOLERANCE[spec.prob] if exact else LOOSE)


def recheck_run(
    config: Config,
    typed: Any,
    data: VisionData,
    store: Path,
    teacher: OnlineTeacher | Ensemble,
    records: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Replayed:
    """:func:`recheck` of a run's store at the run's precision, for ``mode=verify``; the prompt may name a backend."""
    for member in teacher.members if isinstance(teacher, Ensemble) else [teacher]:
        member.precision = config.method.precision
    backend = typed.backend if typed.name == config.method.name else config.method.backend
    batch_size = config.evaluation.batch_size
    return recheck(data, store, teacher, records, device, backend, config.seed, batch_size, progress)
