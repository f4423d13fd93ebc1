"""Which images, in which view, in which batch: pure functions of (seed, epoch).

Batches are numbered through all epochs of a training. Batch k of a rank is a function of k and the constructor's
arguments alone, so resuming anywhere is starting at another k, and nothing about the past needs to be stored. A batch
is a list of ``(index, slot)``: the slot is passed with the index, so that loader processes do not need the epoch.

The order is that of TinyViT's official code (papers: arXiv 2207.10666): ``torch.randperm`` from a generator seeded
with ``seed + epoch``, cut into rows of two where views are mixed in pairs; row t belongs to rank t mod world. All ranks
together therefore see in a step what a single rank would see in that step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from vitlab.errors import UserError

Indices = npt.NDArray[np.int64]
Item = tuple[int, int]
SlotPolicy = Literal["epoch", "cycle", "uniform", "permuted"]


def permutation(length: int, seed: int, epoch: int) -> Indices:
    """``[length]`` order of an epoch."""
    # A generator of its own: torch's global one is also drawn from by initialisation and dropout, and its state would
    # then decide the order of the data.
    generator = torch.Generator().manual_seed(seed + epoch)
    order: Indices = torch.randperm(length, generator=generator).numpy()
    return order


def uniform_slots(index: Indices, seed: int, epoch: int, num_slots: int | Indices) -> Indices:
    """``[B]`` a slot in [0, num_slots) for each index, from a counter-based hash (splitmix64) of (seed, epoch, index);
    ``num_slots`` is one number, or ``[B]``.

    Over the epochs an image sees its slots independently and uniformly, as a draw with replacement.
    """
    # The two odd factors keep (seed, epoch) and (seed + 1, epoch - 1) apart, which a sum of the two would not.
    mask = (1 << 64) - 1
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) & mask)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        for _ in range(2):  # two rounds: keys of neighbouring epochs differ by a constant
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    # The high 32 bits, which are mixed best, as a fraction of 2^32, scaled to [0, num_slots).
    slots: Indices = ((x >> np.uint64(32)) * np.asarray(num_slots, np.uint64) >> np.uint64(32)).astype(np.int64)
    return slots


def part_slots(index: Indices, seed: int, epoch: int, parts: Sequence[int]) -> Indices:
    """``[B]`` a slot in [0, sum(parts)) for each index: a part first, each equally often, then one of its slots.

    Slots are numbered through the parts. Parts of one length give :func:`uniform_slots`, the same distribution.
    """
    if len(set(parts)) <= 1:
        return uniform_slots(index, seed, epoch, sum(parts))
    lengths = np.asarray(parts, dtype=np.int64)
    # Seeds beyond 32 bits, as in permuted_slots.
    part = uniform_slots(index, seed + (4 << 32), epoch, len(parts))
    return (np.cumsum(lengths) - lengths)[part] + uniform_slots(index, seed, epoch, lengths[part])


def permuted_slots(index: Indices, seed: int, epoch: int, num_slots: int) -> Indices:
    """``[B]`` a slot in [0, num_slots) for each index: place ``epoch mod num_slots`` of a permutation of its own.

    The permutation is p -> (a p + b) mod num_slots, a among the numbers prime to num_slots and b drawn by a hash of
    (seed, index): in ``num_slots`` epochs an image sees each of its slots once, and no state is kept.
    """
    # An affine map with a factor prime to num_slots is a permutation, so two hashes replace a stored order for each
    # image.
    units = np.array([a for a in range(num_slots) if math.gcd(a, num_slots) == 1] or [0])
    # Seeds beyond 32 bits, so that no other seed that a user gives has the same draws.
    step = units[uniform_slots(index, seed + (2 << 32), 0, len(units))]
    slots: Indices = (uniform_slots(index, seed + (3 << 32), 0, num_slots) + step * (epoch % num_slots)) % num_slots
    return slots


class EpochSampler:
    """Training batches of one rank, as a batch sampler.

    Iterating yields the rest of the epoch in which :attr:`position` lies, then moves on to the next; ``len`` is always
    that of a full epoch. With ``position = k`` the next batch is batch k, whatever came before.

    Args:
        length: images in the source.
        batch_size: of all ranks and all accumulated micro-batches together; the tail of an epoch that does not fill it
            is dropped (other images the next time).
        accumulate: micro-batches of one optimiser step. A rank's batch has ``batch_size / (world * accumulate)`` items.
        paired: keep the pairs (2t, 2t+1) that are mixed together; pairs are then a function of the slot, as stored
            labels of mixed views are of one pair only.
        slots: ``epoch``: slot = epoch; ``cycle``: epoch mod ``num_slots``; ``uniform``: a hash of
            (seed, epoch, index); ``permuted``: all in turn, each image in an order of its own.
        num_slots: number of views of each image; None: as many as epochs.
        plain_share: this share of the items, chosen by a hash of (seed, epoch, index), gets slot ``num_slots + epoch``
            instead: a view that is not among the stored ones.
        repeats: repeated augmentation (arXiv 1901.09335), as DeiT's RASampler: an image comes ``repeats`` times in
            a row of the order, each time in another slot (``epoch * repeats + k``). The number of batches stays, so an
            epoch shows one image in ``repeats``. The views of an image go to different ranks as far as there are ranks.
        parts: numbers of slots of the parts that ``uniform`` draws first (:func:`part_slots`); empty: one part.
        padded: instead of dropping the tail, repeat the head of the order until the ranks are even, as the official
            code does; the last batch may then be short.

    Raises:
        UserError: if the batch does not divide, exceeds the data, or pairs cannot be kept.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        paired: bool = False,
        slots: SlotPolicy = "epoch",
        num_slots: int | None = None,
        padded: bool = False,
        plain_share: float = 0.0,
        repeats: int = 1,
        parts: Sequence[int] = (),
    ) -> None:
        if parts and sum(parts) != num_slots:
            raise ValueError(f"parts of {list(parts)} slots are not {num_slots} slots")
        if repeats < 1 or (repeats > 1 and (slots != "epoch" or num_slots or padded)):
            raise ValueError("repeats is 1 or more, of views that are new in every epoch")
        if plain_share and (not num_slots or paired or not 0 <= plain_share <= 1):
            raise ValueError("plain_share is a share in [0, 1], of unpaired views with num_slots")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if slots not in (known := get_args(SlotPolicy)):
            raise ValueError(f"slots='{slots}' is not one of {', '.join(known)}")
        if slots != "epoch" and not num_slots:
            raise ValueError(f"slots='{slots}' needs num_slots")
        shares = world * accumulate
        if batch_size < 1 or batch_size % shares:
            raise UserError(
                f"recipe.batch_size={batch_size} does not divide into {world} device(s) x recipe.accumulate="
                f"{accumulate}.",
                f"Take a multiple of {shares}.",
            )
        if paired and batch_size // shares % 2:
            raise UserError(
                f"Mixing (mixup, cutmix) works on pairs, and recipe.batch_size={batch_size} leaves "
                f"{batch_size // shares} images for each of {shares} parts, an odd number.",
                f"Take a multiple of {2 * shares}.",
            )
        if paired and slots in ("uniform", "permuted"):
            raise UserError(
                "Mixed views (mixup, cutmix) are stored for one pair in one slot; slots drawn for each image alone "
                "would break the pairs.",
                "Read the slots in turn, or store unmixed views.",
            )
        if not padded and length < batch_size:
            raise UserError(
                f"recipe.batch_size={batch_size} is more than the {length} training images.",
                f"Take at most {length // (shares * (2 if paired else 1)) * shares * (2 if paired else 1)}.",
            )
        self.length = length
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world = world
        self.paired = paired
        self.slots = slots
        self.num_slots = num_slots
        self.padded = padded
        self.plain_share = plain_share
        self.repeats = repeats
        self.parts = tuple(parts)
        self.position = 0
        """The next batch, counted over all epochs. Set it to resume. While a loader runs it is not what
        was consumed, since loaders read ahead."""
        self._cached: tuple[int, Indices, Indices] | None = None

    @property
    def per_rank(self) -> int:
        """Items of one batch of one rank."""
        return self.batch_size // (self.world * self.accumulate)

    def __len__(self) -> int:
        """Batches of one rank in one full epoch."""
        if self.padded:
            rows = self.world * (2 if self.paired else 1)
            return -(-(-(-self.length // rows) * rows // self.world) // self.per_rank)
        return self.length // self.batch_size * self.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        # Read here, not at the first next(): a loader that reads ahead creates the iterator before it takes a batch.
        return self._rest(self.position)

    def _rest(self, start: int) -> Iterator[list[Item]]:
        stop = (start // len(self) + 1) * len(self)  # the end of the epoch in which start lies
        for number in range(start, stop):
            yield self.batch(number)
        self.position = stop

    def batch(self, number: int) -> list[Item]:
        """Batch ``number`` of this rank, counted from 0 over all epochs."""
        epoch, within = divmod(number, len(self))
        # The order is kept for the epoch: a batch would otherwise cost a permutation of all images.
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, *self.order(epoch))
        _, index, slot = self._cached
        rows = slice(within * self.per_rank, (within + 1) * self.per_rank)
        return list(zip(index[rows].tolist(), slot[rows].tolist(), strict=True))

    def order(self, epoch: int) -> tuple[Indices, Indices]:
        """Index and slot, ``[M]`` each, of everything that this rank sees in ``epoch``.

        Raises:
            UserError: if ``slots`` is ``epoch`` and there is no slot for this one.
        """
        slot = self.slot(epoch)
        width = 2 if self.paired else 1
        rows = self._rows(epoch, slot).reshape(-1, width)
        if self.repeats > 1:
            return self._repeated(rows, epoch)
        # Row t goes to rank t mod world, and a batch takes the next rows of its rank. The rows of all ranks in step s
        # are then those of step s on a single rank, for any number of ranks and micro-batches.
        index = rows[self.rank :: self.world].ravel()
        if self.slots in ("uniform", "permuted"):
            assert self.num_slots is not None  # checked in the constructor
            if self.slots == "uniform":
                slots = part_slots(index, self.seed, epoch, self.parts or (self.num_slots,))
            else:
                slots = permuted_slots(index, self.seed, epoch, self.num_slots)
            return index, self._with_plain(index, slots, epoch)
        return index, self._with_plain(index, np.full(len(index), slot, dtype=np.int64), epoch)

    def _repeated(self, rows: Indices, epoch: int) -> tuple[Indices, Indices]:
        """Index and slot of this rank where each row of the order comes ``repeats`` times; as many rows as before."""
        # The strided slice again: neighbouring rows, which are the views of one image, go to different ranks.
        numbers = np.arange(len(rows))[self.rank :: self.world]
        index, again = rows[numbers // self.repeats], numbers % self.repeats
        return index.ravel(), np.repeat(epoch * self.repeats + again, rows.shape[1])

    def _with_plain(self, index: Indices, slots: Indices, epoch: int) -> Indices:
        if self.plain_share and self.num_slots:
            parts = 1 << 24  # the hash of another seed, in fine steps
            plain = uniform_slots(index, self.seed + (1 << 32), epoch, parts) < self.plain_share * parts
            slots[plain] = self.num_slots + epoch
        return slots

    def slot(self, epoch: int) -> int:
        """Slot of an epoch (of its pairs only, where slots are uniform)."""
        if self.slots == "epoch" and self.num_slots is not None and epoch >= self.num_slots:
            raise UserError(
                f"Epoch {epoch + 1} has no stored views: there are {self.num_slots} slots, one an epoch.",
                "Store more slots, train for fewer epochs, or read the slots in turn.",
            )
        return epoch % self.num_slots if self.slots == "cycle" and self.num_slots else epoch

    def _rows(self, epoch: int, slot: int) -> Indices:
        """Order of all ranks, the same number of rows for each."""
        if not self.paired:
            order = permutation(self.length, self.seed, epoch)
        else:
            # Pairs depend on the slot (stored labels belong to one pair); only their order depends on the epoch.
            order = permutation(self.length, self.seed, slot)
            if epoch != slot:
                pairs = order[: self.length // 2 * 2].reshape(-1, 2)
                shuffled = pairs[permutation(len(pairs), self.seed, epoch)].ravel()
                order = np.concatenate((shuffled, order[len(shuffled) :]))
        if not self.padded:
            # Full batches of all ranks only, so that every rank makes the same number of steps and no collective call
            # hangs.
            return order[: self.length // self.batch_size * self.batch_size]
        rows = self.world * (2 if self.paired else 1)
        return np.resize(order, -(-self.length // rows) * rows)


class Span:
    """Batches ``start`` to ``stop`` of a sampler, over the ends of epochs: what remains of a training.

    One iterator for all epochs keeps loader processes and their read-ahead alive from one epoch to the next.
    """

    def __init__(self, sampler: EpochSampler, start: int, stop: int) -> None:
        if not 0 <= start <= stop:
            raise ValueError(f"batches {start} to {stop}")
        self.sampler = sampler
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Item]]:
        return map(self.sampler.batch, range(self.start, self.stop))


class SlotSampler:
    """Batches that visit every image once in one slot, leaving out what is already done.

    Batches are a fixed partition of the data (pairs of the slot kept together): a batch is visited in full if any image
    of it is missing, else left out. A view is therefore always computed in the same batch, and an interrupted pass that
    is resumed gives the same bits, also where arithmetic depends on the batch. Batch b belongs to rank b mod world.
    With an odd number of images the last one has no partner.

    Args:
        missing: ``[M]`` indices not done yet.
        paired, seed: as of the :class:`EpochSampler` that will read the slot.

    Raises:
        UserError: if ``paired`` and ``batch_size`` is odd.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        slot: int,
        missing: npt.ArrayLike,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        paired: bool = False,
    ) -> None:
        if paired and batch_size % 2:
            raise UserError(
                f"Mixing (mixup, cutmix) works on pairs; {batch_size} images at a time split one.",
                "Take an even batch size.",
            )
        self.batch_size = batch_size
        self.slot = slot
        self._order = permutation(length, seed, slot) if paired else np.arange(length, dtype=np.int64)
        absent = np.zeros(length, dtype=bool)
        absent[np.asarray(missing, dtype=np.int64)] = True
        starts = np.arange(0, length, batch_size)
        needed = np.logical_or.reduceat(absent[self._order], starts) if length else np.zeros(0, dtype=bool)
        mine = np.arange(len(starts)) % world == rank
        self._starts: Indices = starts[needed & mine]

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[Item]]:
        for start in self._starts:
            yield [(index, self.slot) for index in self._order[start : start + self.batch_size].tolist()]


class ShardSampler:
    """Each image exactly once over all ranks, in the source's order; batch b belongs to rank b mod world.

    The batches are the same for any number of ranks; a rank may have one batch less than another.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch size {batch_size}, rank {rank} of {world}")
        self._starts = range(rank * batch_size, length, world * batch_size)
        self.length = length
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, min(start + self.batch_size, self.length)))
