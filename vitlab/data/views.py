"""Where training views come from, as one value: drawn as they are needed, or stored before with a teacher's output.

Each class opens its data set, defines the slots that the sampler assigns, and checks what must agree with the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vitlab.data.dataset import TrainViews
from vitlab.data.reinforced import ReplayedViews
from vitlab.data.sampler import SlotPolicy
from vitlab.distill.formats import open_reinforcements, open_targets
from vitlab.distill.views import View
from vitlab.errors import UserError


@dataclass(frozen=True)
class Slots:
    """Which slot each item gets, see :class:`~vitlab.data.sampler.EpochSampler`."""

    policy: SlotPolicy = "epoch"
    number: int | None = None
    plain_share: float = 0.0
    repeats: int = 1
    parts: tuple[int, ...] = ()


class Views(ABC):
    """Where training views come from."""

    has_targets: ClassVar[bool] = True
    """Whether a teacher's stored output comes with each view."""

    @abstractmethod
    def open(self, plain: TrainViews, fingerprint: str, replay: Callable[[str, str], View]) -> tuple[TrainViews, Slots]:
        """The data set of these views, and the slots to read of it.

        Args:
            plain: views drawn from the recipe's augmentation: their source, augmentation, seed and classes.
            fingerprint: of the images of ``plain``.
            replay: makes the view that replays stored parameters, given a backend (pil, tensor) and the filter that
                resizes (nearest, bilinear, bicubic).

        Raises:
            UserError: what is stored belongs to other images, classes, augmentation or another seed.
        """


@dataclass(frozen=True)
class FreshViews(Views):
    """Views drawn from the recipe's augmentation as they are needed.

    Args:
        different: number of different views of each image, shown in turn; None: a new one in each epoch.
        repeats: repeated augmentation (Hoffer et al., arXiv 1901.09335; DeiT trains with 3): an epoch shows ``repeats``
            different views of one image in ``repeats`` of the images. Its number of batches stays.
    """

    has_targets: ClassVar[bool] = False
    different: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1 or (self.repeats > 1 and self.different):
            raise ValueError(f"{self}: repeats is 1 or more, and repeated views are different in every epoch")

    def open(self, plain: TrainViews, fingerprint: str, replay: Callable[[str, str], View]) -> tuple[TrainViews, Slots]:
        """Drawn views need no check."""
        policy: SlotPolicy = "cycle" if self.different else "epoch"
        return plain, Slots(policy, self.different, repeats=self.repeats)


@dataclass(frozen=True)
class StoredViews(Views):
    """The views that a store holds targets for, with these targets.

    Args:
        path: of a sealed :class:`~vitlab.distill.store.TargetStore`, or of TinyViT's official store (which does not
            record its augmentation).
        exact: epoch e reads stored view e and no other; else epochs beyond the stored views start again at the first.
    """

    path: Path
    exact: bool = False

    def open(self, plain: TrainViews, fingerprint: str, replay: Callable[[str, str], View]) -> tuple[TrainViews, Slots]:
        """Refuses a store of other images, classes or augmentation; where views are mixed, of other pairs."""
        mixes = plain.augmentation.mixes
        same: dict[str, object] = {
            "data_fingerprint": fingerprint,
            "augmentation_fingerprint": plain.augmentation.fingerprint(),
        }
        spec = open_targets(self.path, plain.source.keys, plain.num_classes, mixes, same).spec
        paired_by = spec.base_seed or 0  # TinyViT's official store: always 0
        if mixes and paired_by != plain.base_seed:
            raise UserError(
                f"The targets in {self.path} were stored for another seed: their views are mixed in the pairs of "
                f"seed={paired_by}, not of seed={plain.base_seed}.",
                f"Give seed={paired_by}, or store targets for this seed.",
            )
        return plain.with_store(self.path), Slots("epoch" if self.exact else "cycle", spec.slots)

    def check_epochs(self, epochs: int, slots: int | None) -> None:
        """An exact replay needs a stored view for each epoch.

        Args:
            slots: stored views of each image.

        Raises:
            UserError: there are fewer.
        """
        if self.exact and slots is not None and epochs > slots:
            raise UserError(
                f"method.replay=exact: a training of {epochs} epochs, and {slots} stored views of each image.",
                f"Store more, train for {slots}ep, or read them in turn: method.replay=cycle.",
            )


@dataclass(frozen=True)
class ReinforcedViews(Views):
    """Stored reinforcements: views replayed from their parameters, with the teacher's stored probabilities.

    Args:
        folders: of the reinforcements; several are read as one.
        in_turn: each sample of an image once before any is repeated; else drawn at random, of several folders as in the
            official code the folder first and then one of its samples.
        plain_share: share of views of the recipe's own augmentation, with their label, instead of stored ones; that
            augmentation must not mix.
        backend: of RandAugment at replay: pil, tensor (see :class:`~vitlab.distill.views.View`), or auto: the store's.
    """

    folders: tuple[Path, ...]
    in_turn: bool = False
    plain_share: float = 0.0
    backend: str = "auto"

    def open(self, plain: TrainViews, fingerprint: str, replay: Callable[[str, str], View]) -> tuple[TrainViews, Slots]:
        """Refuses reinforcements of other images or classes."""
        same: dict[str, object] = {"data_fingerprint": fingerprint}
        stored = open_reinforcements(self.folders, len(plain.source), plain.num_classes, same)
        backend = stored.backend if self.backend == "auto" else self.backend
        slots = Slots("permuted" if self.in_turn else "uniform", stored.samples, self.plain_share, parts=stored.parts)
        return ReplayedViews(plain, self.folders, replay(backend, stored.interpolation)), slots
