"""Order, slots and shards: functions of (seed, epoch), the same for every way of running."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlab.data.sampler import (
    EpochSampler,
    Item,
    ShardSampler,
    SlotSampler,
    Span,
    part_slots,
    permutation,
    permuted_slots,
    uniform_slots,
)
from vitlab.errors import UserError


def indices(batches: list[list[Item]]) -> list[int]:
    return [index for batch in batches for index, _ in batch]


def pairs(batches: list[list[Item]]) -> set[tuple[int, int]]:
    flat = indices(batches)
    return set(zip(flat[::2], flat[1::2], strict=True))


# --- the order of TinyViT's official code ------------------------------------------------------------------------


def test_official_order_of_one_rank() -> None:
    sampler = EpochSampler(10, 10, padded=True)
    assert indices(list(sampler)) == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]


def test_official_order_of_two_ranks_with_pairs() -> None:
    ranks = [EpochSampler(10, 12, rank=r, world=2, paired=True, padded=True) for r in range(2)]
    assert [indices(list(rank)) for rank in ranks] == [[4, 1, 3, 9, 6, 2], [7, 5, 0, 8, 4, 1]]


def test_padding_repeats_the_head_even_more_than_once() -> None:
    ranks = [indices(list(EpochSampler(3, 8, rank=rank, world=8, padded=True))) for rank in range(8)]
    alone = indices(list(EpochSampler(3, 3)))
    assert ranks == [[i] for i in (alone * 3)[:8]]


# --- an epoch ----------------------------------------------------------------------------------------------------

settings_of_runs = st.fixed_dictionaries(
    {
        "length": st.integers(24, 100),
        "seed": st.integers(0, 5),
        "paired": st.booleans(),
        "padded": st.booleans(),
    }
)
repeated_runs = st.fixed_dictionaries(
    {"length": st.integers(24, 100), "seed": st.integers(0, 5), "paired": st.booleans(), "repeats": st.integers(2, 4)}
)


@given(settings_of_runs, st.integers(0, 7))
@settings(deadline=None)
def test_an_epoch_holds_no_image_twice(run: dict[str, Any], epoch: int) -> None:
    sampler = EpochSampler(batch_size=8, **run)
    sampler.position = epoch * len(sampler)
    batches = list(sampler)
    seen = indices(batches)
    assert len(batches) == len(sampler)
    assert {slot for batch in batches for _, slot in batch} == {epoch}
    if run["padded"]:
        assert set(seen) == set(range(run["length"])) and len(seen) - run["length"] <= 1
    else:
        assert len(set(seen)) == len(seen) == run["length"] // 8 * 8


@given(settings_of_runs | repeated_runs, st.sampled_from([(1, 2), (2, 1), (4, 1), (2, 2), (1, 4)]), st.integers(0, 3))
@settings(deadline=None)
def test_ranks_together_see_what_one_rank_sees(run: dict[str, Any], parts: tuple[int, int], epoch: int) -> None:
    """Step by step, in the same pairs, for any number of ranks and micro-batches."""
    run = run | {"padded": False}
    world, accumulate = parts
    alone = EpochSampler(batch_size=8, **run)
    ranks = [EpochSampler(batch_size=8, rank=r, world=world, accumulate=accumulate, **run) for r in range(world)]
    assert {len(rank) for rank in ranks} == {len(alone) * accumulate}
    for step in range(epoch * len(alone), (epoch + 1) * len(alone)):
        micro = range(step * accumulate, (step + 1) * accumulate)
        together = [rank.batch(number) for number in micro for rank in ranks]
        assert {len(batch) for batch in together} == {8 // (world * accumulate)}
        assert sorted(itertools.chain(*together)) == sorted(alone.batch(step))
        if run["paired"]:
            assert pairs(together) == pairs([alone.batch(step)])


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(EpochSampler(100, 10, seed=seed).order(epoch)[0]) for seed, epoch in ((0, 0), (0, 1), (5, 0))]
    assert len(set(orders)) == 3


# --- position ----------------------------------------------------------------------------------------------------


@given(settings_of_runs | repeated_runs, st.integers(0, 60))
@settings(deadline=None)
def test_position_is_all_there_is_to_resume(run: dict[str, Any], position: int) -> None:
    uninterrupted = EpochSampler(batch_size=8, **run)
    straight = list(itertools.chain(*(list(uninterrupted) for _ in range(position // len(uninterrupted) + 2))))
    resumed = EpochSampler(batch_size=8, **run)
    resumed.position = position
    rest = list(resumed) + list(resumed)
    assert rest == straight[position : position + len(rest)]
    assert len(rest) == 2 * len(resumed) - position % len(resumed)
    assert list(Span(resumed, position, position + 5)) == (straight + list(uninterrupted))[position : position + 5]


def test_position_is_read_when_the_iterator_is_made() -> None:
    sampler = EpochSampler(20, 5)
    iterator = iter(sampler)
    sampler.position = 2
    assert next(iterator) == EpochSampler(20, 5).batch(0)
    assert len(list(sampler)) == 2 and sampler.position == 4


def test_a_position_set_after_reading_ahead_wins() -> None:
    sampler = EpochSampler(20, 5)
    list(sampler)  # a loader has read all batches of the epoch
    sampler.position = 1  # but one batch was trained on
    assert list(sampler) == [EpochSampler(20, 5).batch(number) for number in (1, 2, 3)]


def test_span_checks_its_ends() -> None:
    assert len(Span(EpochSampler(20, 5), 3, 11)) == 8
    with pytest.raises(ValueError, match="batches 4 to 3"):
        Span(EpochSampler(20, 5), 4, 3)


# --- slots -------------------------------------------------------------------------------------------------------


def test_cycle_comes_round_with_new_order() -> None:
    sampler = EpochSampler(50, 10, slots="cycle", num_slots=3)
    epochs = [list(sampler) for _ in range(7)]
    assert [{slot for batch in epoch for _, slot in batch} for epoch in epochs] == [{s} for s in (0, 1, 2, 0, 1, 2, 0)]
    assert indices(epochs[0]) != indices(epochs[3])


@pytest.mark.parametrize("samples", [1, 2, 12, 50])
def test_permuted_slots_come_once_each_in_an_own_order(samples: int) -> None:
    sampler = EpochSampler(400, 400, slots="permuted", num_slots=samples, seed=3)
    seen = np.full((2 * samples, 400), -1)
    for epoch in range(2 * samples):
        index, slot = sampler.order(epoch)
        seen[epoch, index] = slot
    assert (np.sort(seen[:samples], axis=0) == np.arange(samples)[:, None]).all()
    assert np.array_equal(seen[:samples], seen[samples:])
    if samples > 2:
        assert len({tuple(column) for column in seen[:samples].T}) > samples
        assert np.bincount(seen[0], minlength=samples).max() < 400 / samples + 6 * (400 / samples) ** 0.5
    other = EpochSampler(400, 400, slots="permuted", num_slots=samples, seed=4)
    assert samples == 1 or not np.array_equal(other.order(0)[1], sampler.order(0)[1])


def test_pairs_belong_to_the_slot() -> None:
    """A stored label of a mixed view is of one pair: whenever its slot comes round, that pair must meet again."""
    sampler = EpochSampler(51, 10, slots="cycle", num_slots=2, paired=True, seed=3)
    stored = [SlotSampler(51, 10, slot, range(51), seed=3, paired=True) for slot in range(2)]
    labelled = [{frozenset(batch[i : i + 2]) for batch in one for i in range(0, len(batch), 2)} for one in stored]
    for epoch in range(6):
        batches = list(sampler)
        assert {frozenset(batch[i : i + 2]) for batch in batches for i in range(0, len(batch), 2)} < labelled[epoch % 2]
    assert labelled[0] != labelled[1]
    assert len({tuple(sampler.order(epoch)[0]) for epoch in range(6)}) == 6


def test_a_share_of_views_is_new_in_every_epoch() -> None:
    """``plain_share`` of the items get the slot after all stored ones, and another one in each epoch."""
    sampler = EpochSampler(4000, 100, slots="uniform", num_slots=4, plain_share=0.25, seed=3)
    stored = EpochSampler(4000, 100, slots="uniform", num_slots=4, seed=3)
    chosen = []
    for epoch in range(3):
        index, slot = sampler.order(epoch)
        new = slot >= 4
        assert set(slot[new].tolist()) == {4 + epoch}
        assert new.mean() == pytest.approx(0.25, abs=0.03)
        np.testing.assert_array_equal(index, stored.order(epoch)[0])
        np.testing.assert_array_equal(slot[~new], stored.order(epoch)[1][~new])
        chosen.append(set(index[new].tolist()))
    assert len(chosen[0] & chosen[1]) < 400, "the same images in every epoch"


def test_uniform_slots_are_uniform_and_pure() -> None:
    index = np.arange(20000)
    slots = np.stack([uniform_slots(index, 1, epoch, 5) for epoch in range(4)])
    assert (slots == np.stack([uniform_slots(index[::-1], 1, epoch, 5)[::-1] for epoch in range(4)])).all()
    for epoch in range(4):
        share = np.bincount(slots[epoch], minlength=5) / len(index)
        assert abs(share - 0.2).max() < 0.015  # five standard deviations
    agree = [(slots[a] == slots[b]).mean() for a, b in itertools.combinations(range(4), 2)]
    agree.append((slots[0] == uniform_slots(index, 2, 0, 5)).mean())
    agree.append((slots[0][1:] == slots[0][:-1]).mean())
    assert all(abs(share - 0.2) < 0.015 for share in agree)


def test_orders_never_change() -> None:
    """A run that an earlier release began goes on with the same images and slots."""
    assert EpochSampler(10, 10, seed=3).order(2)[0].tolist() == [1, 4, 9, 6, 3, 5, 0, 2, 8, 7]
    assert uniform_slots(np.arange(10), 3, 2, 100).tolist() == [7, 45, 47, 64, 11, 26, 20, 64, 28, 80]
    assert permuted_slots(np.arange(10), 3, 7, 12).tolist() == [4, 7, 4, 5, 3, 7, 4, 1, 11, 9]
    assert uniform_slots(np.arange(10), 0, 0, 100).tolist() == [50, 70, 88, 90, 65, 59, 56, 37, 54, 20]
    assert uniform_slots(np.arange(10), 7, 3, 1).tolist() == [0] * 10


def test_slots_of_unequal_parts_are_drawn_part_first() -> None:
    """As the official code reads several folders of reinforcements: a folder, then one of its samples."""
    index = np.arange(20_000)
    slots = part_slots(index, 1, 3, (400, 100))
    counts = np.bincount(slots, minlength=500)
    assert abs((slots < 400).mean() - 0.5) < 0.015, "of each folder equally many, not in proportion to its samples"
    assert counts[:400].mean() * 3.7 < counts[400:].mean() < counts[:400].mean() * 4.3 and counts.min() > 0
    assert np.array_equal(part_slots(index, 1, 3, (50, 50)), uniform_slots(index, 1, 3, 100)), "bits of equal ones stay"
    sampler = EpochSampler(600, 60, seed=1, slots="uniform", num_slots=500, parts=(400, 100))
    where, drawn = sampler.order(3)
    assert np.array_equal(drawn, part_slots(where, 1, 3, (400, 100)))
    with pytest.raises(ValueError, match="are not 499 slots"):
        EpochSampler(600, 60, slots="uniform", num_slots=499, parts=(400, 100))


def test_uniform_slots_do_not_depend_on_ranks() -> None:
    alone = dict(itertools.chain(*EpochSampler(64, 16, slots="uniform", num_slots=9)))
    ranks = [EpochSampler(64, 16, slots="uniform", num_slots=9, rank=r, world=4) for r in range(4)]
    assert dict(itertools.chain(*itertools.chain(*ranks))) == alone


def test_an_epoch_without_its_slot_is_answered() -> None:
    sampler = EpochSampler(20, 5, num_slots=2)
    assert len(list(sampler)) + len(list(sampler)) == 8
    with pytest.raises(UserError, match=r"Epoch 3 has no stored views: there are 2 slots"):
        list(sampler)


# --- repeated augmentation -----------------------------------------------------------------------------------------


def deit_indices(length: int, repeats: int, rank: int, world: int, order: list[int]) -> list[int]:
    """DeiT's samplers.RASampler, from facebookresearch/deit (Apache-2.0), for a permutation that is given."""
    num_samples = math.ceil(length * repeats / world)
    indices = [index for index in order for _ in range(repeats)]
    indices += indices[: num_samples * world - len(indices)]
    return indices[rank : num_samples * world : world][: length // world]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_are_those_of_deit(world: int, repeats: int) -> None:
    """The images of a rank, in order, up to the tail that does not fill a batch; their slots are new in every epoch."""
    seen: set[Item] = set()
    for epoch in range(3):
        order = permutation(50, 7, epoch).tolist()
        ranks = [EpochSampler(50, 12, seed=7, rank=r, world=world, repeats=repeats) for r in range(world)]
        found = [rank.order(epoch) for rank in ranks]
        for number, (index, slot) in enumerate(found):
            official = deit_indices(50, repeats, number, world, order)
            assert index.tolist() == official[: 48 // world]
            assert set(slot // repeats) == {epoch}
        items = {item for index, slot in found for item in zip(index.tolist(), slot.tolist(), strict=True)}
        assert len(items) == 48 and len({index for index, _ in items}) == 48 // repeats and not items & seen
        seen |= items
        if world >= repeats:  # each view of an image is on a rank of its own
            assert all(len(set(index.tolist())) == len(index) for index, _ in found)


def test_repeated_pairs_stay_together() -> None:
    index, slot = EpochSampler(51, 12, paired=True, repeats=3).order(1)
    assert len(index) == 48 and index[:6].tolist() == index[:2].tolist() * 3 and index[0] != index[1]
    assert slot[:8].tolist() == [3, 3, 4, 4, 5, 5, 3, 3]


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10, "world": 4}, r"batch_size=10 does not divide into 4 device.*multiple of 4"),
        ({"batch_size": 10, "world": 2, "accumulate": 2}, r"recipe\.accumulate=2.*multiple of 4"),
        ({"batch_size": 0}, r"batch_size=0 does not divide"),
        ({"batch_size": 6, "world": 2, "paired": True}, r"leaves 3 images.*odd number.*multiple of 4"),
        ({"batch_size": 102}, r"more than the 100 training images.*at most 100"),
        ({"batch_size": 104, "paired": True, "world": 4}, r"at most 96"),
        ({"batch_size": 10, "paired": True, "slots": "uniform", "num_slots": 3}, r"break the pairs"),
    ],
)
def test_batches_that_cannot_be_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EpochSampler(100, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"slots": "cycle"}, {"slots": "sometimes"}, {"rank": 1}, {"repeats": 0}, {"repeats": 3, "num_slots": 2}],
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EpochSampler(100, 10, **arguments)


# --- labelling a slot --------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.booleans(), st.sampled_from([1, 2, 4]), st.integers(0, 3), st.data())
@settings(deadline=None)
def test_what_is_left_to_label_comes_in_the_batches_of_an_uninterrupted_pass(
    length: int, paired: bool, world: int, slot: int, data: st.DataObject
) -> None:
    missing = data.draw(st.sets(st.integers(0, length - 1)))
    full = list(SlotSampler(length, 8, slot, range(length), paired=paired))
    assert sorted(itertools.chain(*full)) == [(i, slot) for i in range(length)]
    shards = [SlotSampler(length, 8, slot, sorted(missing), paired=paired, rank=r, world=world) for r in range(world)]
    left = list(itertools.chain(*shards))
    assert sum(len(shard) for shard in shards) == len(left)
    assert sorted(left) == sorted(batch for batch in full if missing & {i for i, _ in batch})


def test_pairs_need_even_batches_to_be_labelled() -> None:
    with pytest.raises(UserError, match="even batch size"):
        SlotSampler(10, 5, 0, [1], paired=True)


# --- evaluation --------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 5))
def test_shards_cover_everything_once_in_the_same_batches(length: int, batch_size: int, world: int) -> None:
    alone = list(ShardSampler(length, batch_size))
    assert list(itertools.chain(*alone)) == list(range(length))
    shards = [ShardSampler(length, batch_size, rank, world) for rank in range(world)]
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    assert sorted(itertools.chain(*shards)) == alone
