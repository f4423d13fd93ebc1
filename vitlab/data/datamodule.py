"""The data of one training as a LightningDataModule: sources, samplers, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import lightning as L
import numpy.typing as npt

from vitlab.config import AugmentationConfig, DatasetConfig
from vitlab.data.balanced_sampler import BalancedSampler
from vitlab.data.build import is_synthetic, open_splits
from vitlab.data.dataset import EvalViews, TrainViews
from vitlab.data.loader import Loader, LoaderOptions, default_workers
from vitlab.data.reinforced import ReinforcingViews
from vitlab.data.sampler import EpochSampler, ShardSampler, SlotSampler, Span
from vitlab.data.sources import fingerprint, labels_of
from vitlab.data.targets import Targets
from vitlab.data.views import FreshViews, Slots, Views
from vitlab.distill.draw import Augmentation
from vitlab.distill.reinforce_draw import Reinforcement
from vitlab.distill.views import EvalView, View
from vitlab.errors import UserError


class VisionData(L.LightningDataModule):
    """Training views, evaluation views, and views to be labelled.

    Args:
        options: batch sizes, loader processes and ranks; the tail of an epoch that does not fill ``batch_size * world *
            accumulate`` is dropped.
        mean, std: per channel, the student's normalisation.
        views: where training views come from; None: nothing is trained, and a set without training images is accepted.
        seed: of the order, of the views and of the choice of ``labels_per_class``.
        max_images: limit every split to so many images.
        balanced: epochs show every class equally often, see :class:`~vitlab.data.balanced_sampler.BalancedSampler`.
        targets: how targets become labels: the task; None: class numbers.

    Attributes:
        sizes: images in ``train``, ``val`` and ``test``.
        split_names: which split these really are.
        synthetic: the images are generated, and metrics on them mean nothing.
        fingerprint: of the training images (after ``labels_per_class``), with which stored targets must agree.

    Raises:
        UserError: the batch does not divide or exceeds the data; stored views of something else.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        augmentation: AugmentationConfig,
        options: LoaderOptions,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        views: Views | None = FreshViews(),  # noqa: B008  # frozen
        seed: int = 0,
        max_images: int | None = None,
        balanced: bool = False,
        targets: Targets | None = None,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.sources = open_splits(dataset, seed, max_images, views is None)
        self.train_source = self.sources["train"]
        self.classes = self.train_source.classes
        self.num_classes = len(self.classes)
        self.sizes = {split: len(source) for split, source in self.sources.items()}
        self.split_names = {split: source.split_name for split, source in self.sources.items()}
        self.fingerprint = fingerprint(self.train_source)
        self.synthetic = is_synthetic(dataset, self.train_source)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.options = options
        self.augmentation = Augmentation(size=dataset.size, **asdict(augmentation))
        self.view = View(dataset.size, mean, std, augmentation.interpolation)
        self.eval_view = EvalView(dataset.size, dataset.crop_pct, mean, std, augmentation.interpolation, dataset.crop)
        drawn = (self.train_source, self.augmentation, self.view, seed, self.num_classes)
        self.plain = TrainViews(*drawn, targets=targets)
        if views is not None:
            self.train_views, slots = views.open(self.plain, self.fingerprint, self.replay_view)
            self.train_sampler = self._make_sampler(slots, balanced)
        self._validation: Loader | None = None

    def _make_sampler(self, slots: Slots, balanced: bool) -> EpochSampler:
        options = self.options
        batch_size = options.batch_size * options.world * options.accumulate  # images of an optimiser step
        if balanced and slots.repeats > 1:
            raise UserError(
                "recipe.balance=sampler and repeated augmentation both decide how often an epoch shows an image.",
                "Choose recipe.balance=weight, logit_adjust or none.",
            )
        if balanced:
            if self.train_source.labels is not None and self.train_source.labels.ndim == 2:
                raise UserError(
                    "recipe.balance=sampler draws classes equally often, and these images have several labels each.",
                    "Leave it out; a task of several labels weights the rare ones in its loss.",
                )
            return BalancedSampler(
                labels_of(self.train_source),
                self.num_classes,
                batch_size,
                seed=self.seed,
                rank=options.rank,
                world=options.world,
                accumulate=options.accumulate,
                paired=self.augmentation.mixes,
                num_slots=slots.number,
                repeats=slots.repeats,
            )
        return EpochSampler(
            len(self.train_source),
            batch_size,
            seed=self.seed,
            rank=options.rank,
            world=options.world,
            accumulate=options.accumulate,
            paired=self.augmentation.mixes,
            slots=slots.policy,
            num_slots=slots.number,
            plain_share=slots.plain_share,
            repeats=slots.repeats,
            parts=slots.parts,
        )

    @property
    def workers(self) -> int:
        """Loader processes of training and evaluation."""
        return default_workers(self.train_source) if self.options.workers is None else self.options.workers

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        return len(self.train_sampler) // self.train_sampler.accumulate

    def train_loader(self, start: int, stop: int) -> Loader:
        """Batches ``start`` to ``stop`` of this rank, counted over all epochs: what remains of a training."""
        return Loader(self.train_views, Span(self.train_sampler, start, stop), self.workers)

    def train_dataloader(self) -> Loader:
        """One epoch each time it is iterated, from ``train_sampler.position`` on."""
        return Loader(self.train_views, self.train_sampler, self.workers)

    def val_dataloader(self) -> Loader:
        """The validation images, each once over all ranks."""
        if self._validation is None:  # used after every epoch: its workers are kept
            self._validation = self._eval_loader("val")
        return self._validation

    def test_dataloader(self) -> Loader:
        """The test images, each once over all ranks."""
        return self._eval_loader("test")

    def label_dataloader(self, slot: int, missing: npt.ArrayLike, batch_size: int) -> Loader:
        """This rank's part of the training views of ``slot`` that hold an index of ``missing``, to be labelled.

        Batches of a fixed partition: some of their images may be done already, and give the same again.
        """
        sampler = SlotSampler(
            len(self.train_source),
            batch_size,
            slot,
            missing,
            seed=self.seed,
            rank=self.options.rank,
            world=self.options.world,
            paired=self.augmentation.mixes,
        )
        return Loader(self.plain, sampler, self.workers)

    def fresh_dataloader(
        self, views: Reinforcement, samples: range, missing: npt.ArrayLike, at_once: int, backend: str = "pil"
    ) -> Loader:
        """This rank's part of the blocks of ``at_once`` images that hold one of ``missing``, to be reinforced.

        Blocks are a fixed partition of the data: a view is labelled in the same batch on any rank and at any time.
        """
        rank, world = self.options.rank, self.options.world
        sampler = SlotSampler(len(self.train_source), at_once, samples.start, missing, rank=rank, world=world)
        blocks = [[index for index, _ in items] for items in sampler]
        view = self.replay_view(backend, views.interpolation)
        fresh = ReinforcingViews(self.train_source, views, view, self.seed, samples)
        # Many augmented views of every image: worth worker processes also for data in memory.
        workers = self.options.workers
        return Loader(fresh, blocks, default_workers(self.train_source, costly=True) if workers is None else workers)

    def replay_view(self, backend: str, interpolation: str) -> View:
        """The transform of stored views, resized with the filter of the views that the teacher saw."""
        return View(self.view.size, self.mean, self.std, interpolation, backend=backend)

    def _eval_loader(self, split: str) -> Loader:
        source = self.sources[split]
        size = self.options.eval_batch_size or self.options.batch_size
        sampler = ShardSampler(len(source), size, self.options.rank, self.options.world)
        return Loader(EvalViews(source, self.eval_view, self.targets), sampler, self.workers)
