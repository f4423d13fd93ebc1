"""Class-balanced epochs for data whose classes have unequal numbers of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitlab.data.sampler import EpochSampler, Indices, permutation
from vitlab.errors import UserError


class BalancedSampler(EpochSampler):
    """An :class:`~vitlab.data.sampler.EpochSampler` whose epochs show every class equally often.

    An epoch has as many items as the source has images, N / K of each of the K classes (the rest of the division is
    one more for some of them, others each epoch). Within a class the images are taken in a random order, and in another
    one when all have been taken: in an epoch the counts of a class's images differ by at most one.
    The order is a function of (seed, epoch) alone and is distributed over the ranks as in the parent class: resuming
    within an epoch, the number of ranks and accumulation change nothing.

    Every item is a new view: the r-th item of one image in an epoch has slot ``epoch * copies + r``, where
    ``copies`` is the largest number of times that an image can occur in an epoch.

    Args:
        labels: [N] class of each image.

    Raises:
        UserError: a class without images, slots that are stored, repeated augmentation, or as the parent class.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.int64],
        num_classes: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        paired: bool = False,
        num_slots: int | None = None,
        repeats: int = 1,
    ) -> None:
        if num_slots is not None or repeats != 1:
            raise UserError(
                "recipe.balance=sampler shows images of small classes several times an epoch, each time in a new view; "
                "stored or repeated views are a fixed number of each image.",
                "Choose recipe.balance=weight or logit_adjust where the training is on labels, or none.",
            )
        super().__init__(
            len(labels), batch_size, seed=seed, rank=rank, world=world, accumulate=accumulate, paired=paired
        )
        self.members = [np.flatnonzero(labels == c) for c in range(num_classes)]
        smallest = min(map(len, self.members))
        if not smallest:
            raise UserError("recipe.balance=sampler: a class has no training image.", "Choose balance=none.")
        most = -(-len(labels) // num_classes)
        self.copies = -(-most // smallest)

    def order(self, epoch: int) -> tuple[Indices, Indices]:
        """Index and slot, ``[M]`` each, of everything that this rank sees in ``epoch``."""
        classes = len(self.members)
        share, rest = divmod(self.length, classes)
        # One seed for each class: its draws do not shift when another class gains or loses an image.
        seeds = np.random.SeedSequence([self.seed, epoch]).generate_state(classes + 1, np.uint64)
        more = np.random.default_rng(seeds[classes]).permutation(classes) < rest
        index = np.empty(self.length, np.int64)
        repeat = np.empty(self.length, np.int64)
        start = 0
        for number, members in enumerate(self.members):
            count = share + int(more[number])
            rng = np.random.default_rng(seeds[number])
            rounds = -(-count // len(members))  # complete passes over the class, the last one cut off
            index[start : start + count] = np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count]
            repeat[start : start + count] = np.arange(count) // len(members)
            start += count
        # So far the items lie class by class; the permutation of the parent class mixes them.
        shuffled = permutation(self.length, self.seed, epoch)[: self.length // self.batch_size * self.batch_size]
        own = shuffled.reshape(-1, 2 if self.paired else 1)[self.rank :: self.world].ravel()
        return index[own], epoch * self.copies + repeat[own]
