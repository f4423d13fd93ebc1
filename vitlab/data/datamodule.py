"""The data of one training, as Lightning wants them: sources, samplers, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import numpy.typing as npt

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.build import open_splits
from vitlab.data.dataset import EvalViews, TrainViews
from vitlab.data.loader import Loader, default_workers
from vitlab.data.reinforced import ReinforcedViews, ReinforcingViews
from vitlab.data.sampler import EpochSampler, ShardSampler, SlotPolicy, SlotSampler, Span
from vitlab.data.sources import fingerprint
from vitlab.data.targets import Targets
from vitlab.distill.draw import Augmentation
from vitlab.distill.formats import open_reinforcements, open_targets
from vitlab.distill.reinforce_draw import Reinforcement
from vitlab.distill.views import EvalView, View
from vitlab.errors import UserError


class VisionData(L.LightningDataModule):
    """Training views, evaluation views, and views to be labelled.

    Args:
        batch_size: of one rank and one micro-batch; the tail of an epoch that does not fill ``batch_size * world *
            accumulate`` is dropped.
        mean, std: per channel, the student's normalisation.
        seed: of the order, of the views and of the choice of ``labels_per_class``.
        workers: loader processes; None: :func:`~vitlab.data.loader.default_workers`.
        store: folder of a sealed store whose targets go with the training views; it must be of the same data and
            augmentation. TinyViT's official store is served too (it does not say its augmentation).
        reinforcements: folders of stored reinforcements, whose views and targets replace the augmentation's; but a
            share ``plain_share`` of the views is the augmentation's, with the label for its target.
            ``replay_backend``: pil, tensor (see :class:`~vitlab.distill.views.View`), or auto: the store's own.
        slots, num_slots: as in :class:`~vitlab.data.sampler.EpochSampler`; ``num_slots`` defaults to the store's.
        max_images: cut every split to so many images.
        measuring: nothing is trained, so that a set without training images will do.
        targets: how targets become labels: the task; None: class numbers.

    Attributes:
        sizes: images in ``train``, ``val`` and ``test``.
        split_names: which split these really are.
        fingerprint: of the training images (after ``labels_per_class``); stored targets belong to it.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        augmentation: AugmentationConfig,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        eval_batch_size: int | None = None,
        store: Path | None = None,
        slots: SlotPolicy = "epoch",
        num_slots: int | None = None,
        max_images: int | None = None,
        reinforcements: Sequence[Path] | None = None,
        plain_share: float = 0.0,
        replay_backend: str = "auto",
        measuring: bool = False,
        targets: Targets | None = None,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.sources = open_splits(dataset, seed, max_images, measuring)
        self.train_source = self.sources["train"]
        self.classes = self.train_source.classes
        self.num_classes = len(self.classes)
        self.sizes = {split: len(source) for split, source in self.sources.items()}
        self.split_names = {split: source.split_name for split, source in self.sources.items()}
        self.fingerprint = fingerprint(self.train_source)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.rank = rank
        self.world = world
        self.workers = default_workers(self.train_source) if workers is None else workers
        # Many views of every image, with everything that augments them: worth a process also for data in memory.
        self._fresh_workers = default_workers(self.train_source, costly=True) if workers is None else workers
        self.eval_batch_size = eval_batch_size or batch_size
        self.augmentation = Augmentation(size=dataset.size, **asdict(augmentation))
        self.mean, self.std = tuple(mean), tuple(std)
        self.view = View(dataset.size, mean, std, augmentation.interpolation)
        self.eval_view = EvalView(dataset.size, dataset.crop_pct, mean, std, augmentation.interpolation, dataset.crop)
        if store is not None:
            same: dict[str, object] = {
                "data_fingerprint": self.fingerprint,
                "augmentation_fingerprint": self.augmentation.fingerprint(),
            }
            mixes = self.augmentation.mixes
            spec = open_targets(store, self.train_source.keys, self.num_classes, mixes, same).spec
            paired_by = spec.base_seed or 0  # TinyViT's official store: always 0
            if mixes and paired_by != seed:
                raise UserError(
                    f"The targets in {store} were stored for another seed: their views are mixed in the pairs of "
                    f"seed={paired_by}, not of seed={seed}.",
                    f"Give seed={paired_by}, or store targets for this seed.",
                )
            num_slots = spec.slots if num_slots is None else num_slots
        self.store = store
        self.reinforcements = reinforcements
        if reinforcements is not None:
            same = {"data_fingerprint": self.fingerprint}
            found = open_reinforcements(reinforcements, len(self.train_source), self.num_classes, same)
            num_slots = found.samples
            replay_backend = found.backend if replay_backend == "auto" else replay_backend
        self._backend = replay_backend
        if not measuring:
            self.train_sampler = EpochSampler(
                len(self.train_source),
                batch_size * world * accumulate,
                seed=seed,
                rank=rank,
                world=world,
                accumulate=accumulate,
                paired=self.augmentation.mixes,
                slots=slots,
                num_slots=num_slots,
                plain_share=plain_share,
            )
        self._validation: Loader | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        return len(self.train_sampler) // self.train_sampler.accumulate

    def train_loader(self, start: int, stop: int) -> Loader:
        """Batches ``start`` to ``stop`` of this rank, counted over all epochs: what remains of a training."""
        return Loader(self._train_views(self.store), Span(self.train_sampler, start, stop), self.workers)

    def train_dataloader(self) -> Loader:
        """One epoch each time it is iterated, from ``train_sampler.position`` on."""
        return Loader(self._train_views(self.store), self.train_sampler, self.workers)

    def val_dataloader(self) -> Loader:
        """The validation images, each once over all ranks."""
        if self._validation is None:  # validated again and again: its processes are kept
            self._validation = self._eval_loader("val")
        return self._validation

    def test_dataloader(self) -> Loader:
        """The test images, each once over all ranks."""
        return self._eval_loader("test")

    def label_dataloader(self, slot: int, missing: npt.ArrayLike, batch_size: int) -> Loader:
        """This rank's part of the training views of ``slot`` that hold an index of ``missing``, to be labelled.

        Whole batches of a fixed partition: some of their images may be done already, and give the same again.
        """
        sampler = SlotSampler(
            len(self.train_source),
            batch_size,
            slot,
            missing,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
            paired=self.augmentation.mixes,
        )
        return Loader(self._train_views(None), sampler, self.workers)

    def fresh_dataloader(
        self, views: Reinforcement, samples: range, missing: npt.ArrayLike, at_once: int, backend: str = "pil"
    ) -> Loader:
        """This rank's part of the blocks of ``at_once`` images that hold one of ``missing``, to be reinforced.

        Blocks are a fixed partition of the data: a view is labelled in the same company whoever does it, and when.
        """
        sampler = SlotSampler(len(self.train_source), at_once, samples.start, missing, rank=self.rank, world=self.world)
        blocks = [[index for index, _ in items] for items in sampler]
        fresh = ReinforcingViews(self.train_source, views, self.replay_view(backend), self.seed, samples)
        return Loader(fresh, blocks, self._fresh_workers)

    def replay_view(self, backend: str) -> View:
        """What makes stored views: they are resized bilinearly, as the teacher saw them."""
        return View(self.view.size, self.mean, self.std, "bilinear", backend=backend)

    def _train_views(self, store: Path | None) -> TrainViews:
        views = TrainViews(
            self.train_source, self.augmentation, self.view, self.seed, self.num_classes, store, self.targets
        )
        if self.reinforcements is None:
            return views
        return ReinforcedViews(views, self.reinforcements, self.replay_view(self._backend))

    def _eval_loader(self, split: str) -> Loader:
        source = self.sources[split]
        sampler = ShardSampler(len(source), self.eval_batch_size, self.rank, self.world)
        return Loader(EvalViews(source, self.eval_view, self.targets), sampler, self.workers)
