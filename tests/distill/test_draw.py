"""Seeds, augmentation descriptions and the draws that the papers' worked numbers leave open."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vitlab.distill.draw import (
    Augmentation,
    Draw,
    draw,
    draw_mix,
    seed_of,
    seeds_of,
)
from vitlab.distill.randaug import RANDAUG_OPS, RandAugment, parse_randaug
from vitlab.distill.views import mix_weight
from vitlab.errors import UserError


def test_seeds_never_change() -> None:
    """Golden values: a store made yesterday must replay tomorrow."""
    assert [seed_of(*key) for key in GOLDEN] == list(GOLDEN.values())


GOLDEN = {
    (0, 0, 0): 297876190,
    (0, 0, 1): 554620824,
    (0, 1, 0): 1246311959,
    (1, 0, 0): 1489305978,
    (0, 89, 14_197_121): 1704773758,
    (2**63, 300, 1_281_166): 315150930,
}


def test_seeds_of_is_seed_of() -> None:
    slot, index = np.array([0, 1, 299, 3]), np.array([5, 0, 14_197_121, 2**33])
    wanted = [seed_of(42, s, i) for s, i in zip(slot.tolist(), index.tolist(), strict=True)]
    assert seeds_of(42, slot, index).tolist() == wanted
    assert seeds_of(42, slot, index).dtype == np.int32
    assert seeds_of(42, 3, index).tolist() == [seed_of(42, 3, i) for i in index.tolist()]
    assert seeds_of(42, 3, 7).shape == () and int(seeds_of(42, 3, 7)) == seed_of(42, 3, 7)


def test_seeds_are_spread() -> None:
    """A million seeds look uniform and collide as often as chance would have it (2^31 values: about 233 times)."""
    slot, index = np.repeat(np.arange(10), 100_000), np.tile(np.arange(100_000), 10)
    seeds = seeds_of(0, slot, index)
    assert seeds.min() >= 0
    assert 170 < len(seeds) - len(np.unique(seeds)) < 300
    counts = np.bincount(seeds >> 21, minlength=1024)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 850 < chi_square < 1210  # 1023 degrees of freedom, +- 4 sigma
    assert (seeds_of(1, slot, index) == seeds).sum() < 10  # another base seed is another stream


@pytest.mark.parametrize("bad", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_negative_is_no_seed(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        seed_of(*bad)
    with pytest.raises(ValueError):
        seeds_of(bad[0], np.array([bad[1]]), np.array([bad[2]]))


def test_augmentation_survives_json() -> None:
    aug = Augmentation(size=32, crop_scale=(0.5, 1.0), color_jitter=(0.4, 0.4, 0.4), erase=0.25, mixup=0.8)
    again = Augmentation.from_dict(json.loads(json.dumps(aug.to_dict())))
    assert again == aug and again.fingerprint() == aug.fingerprint()
    others = [Augmentation.from_dict({**aug.to_dict(), **change}) for change in ({"size": 33}, {"erase": 0.26})]
    assert len({aug.fingerprint(), *(other.fingerprint() for other in others)}) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip", 1.5),
        ("erase", -0.1),
        ("mixup", -1.0),
        ("erase_mode", "noise"),
        ("interpolation", "random"),
        ("color_jitter", (0.4,)),
        ("color_jitter", (0.4, 0.4, 0.4, 0.6)),
        ("randaug", "rand-m9-mstd0.5"),
        ("randaug", "rand-m9-w0-inc1"),
        ("randaug", "augmix-m9"),
        ("randaug", "rand-m9-inc1-n0"),
    ],
)
def test_bad_values_name_their_key(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"recipe.augmentation.{field}"):
        Augmentation.from_dict({"size": 32, field: value})


def test_jitter_beside_randaug_is_refused() -> None:
    with pytest.raises(UserError, match="beside"):
        Augmentation(size=32, randaug="rand-m9-inc1", color_jitter=(0.4, 0.4, 0.4))


def test_randaug_notation() -> None:
    assert parse_randaug("rand-m9-mstd0.5-inc1") == RandAugment(9, 0.5)
    assert parse_randaug("rand-m7-n3-p1-mmax8-inc1") == RandAugment(7, 0, 3, 1, 8)


def test_randaug_covers_its_op_set() -> None:
    aug = Augmentation(size=224, randaug="rand-m9-mstd0.5-inc1")
    draws = [draw(aug, seed, 50, 40) for seed in range(3000)]
    ops = [op for one in draws for op in one.ops]
    counts = {name: sum(op[0] == name for op in ops) for name in RANDAUG_OPS}
    assert sum(counts.values()) == len(ops) == pytest.approx(3000, rel=0.05)  # two ops, each kept in half of the cases
    assert all(150 < count < 250 for count in counts.values()), counts
    values = {name: [value for other, value in ops if other == name] for name in RANDAUG_OPS}
    assert 0 in values["PosterizeIncreasing"] and max(values["PosterizeIncreasing"]) <= 2
    assert min(values["ColorIncreasing"]) == pytest.approx(0.1, abs=0.2) and max(values["ColorIncreasing"]) > 1.7
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        assert min(values[name]) < 0 < max(values[name])
    assert set(values["AutoContrast"]) == {0.0}


def test_nothing_asked_nothing_drawn() -> None:
    assert draw(Augmentation(size=32), 7, 40, 30) == Draw()
    assert draw_mix(Augmentation(size=32), 1, 2, 32, 32) is None


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 8), (2000, 20), (20, 2000), (320, 256)])
def test_crops_lie_inside(width: int, height: int) -> None:
    aug = Augmentation(size=32, crop_scale=(0.08, 1.0))
    for seed in range(300):
        crop = draw(aug, seed, width, height).crop
        assert crop is not None
        top, left, h, w = crop
        assert h > 0 and w > 0 and top >= 0 and left >= 0 and top + h <= height and left + w <= width


def test_crop_fallback_is_centred() -> None:
    """A 100:1 strip never takes a legal crop of its full area; the fallback is the widest legal one, centred."""
    aug = Augmentation(size=32, crop_scale=(1.0, 1.0))
    assert draw(aug, 3, 2000, 20).crop == (0, (2000 - 27) // 2, 20, 27)
    assert draw(aug, 3, 20, 2000).crop == ((2000 - 27) // 2, 0, 27, 20)


def test_jitter_is_a_permutation_of_its_factors() -> None:
    aug = Augmentation(size=32, color_jitter=(0.4, 0.3, 0.2, 0.1))
    orders = set()
    for seed in range(200):
        factors = dict(draw(aug, seed, 32, 32).jitter)
        orders.add(tuple(factors))
        assert abs(factors["brightness"] - 1) <= 0.4 and abs(factors["contrast"] - 1) <= 0.3
        assert abs(factors["saturation"] - 1) <= 0.2 and abs(factors["hue"]) <= 0.1
    assert len(orders) == 24


def test_erase_frequency_and_modes() -> None:
    draws = [draw(Augmentation(size=32, erase=0.25), seed, 32, 32).erase for seed in range(2000)]
    assert sum(e is not None for e in draws) == pytest.approx(500, rel=0.15)
    assert all(e.top + e.height <= 224 and e.left + e.width <= 224 for e in draws if e is not None)
    const = [draw(Augmentation(size=32, erase=1.0, erase_mode="const"), seed, 32, 32).erase for seed in range(20)]
    assert all(e is not None and (e.mode, e.seed) == ("const", 0) for e in const)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixing_is_symmetric_and_whole(mixup: float, cutmix: float) -> None:
    aug = Augmentation(size=32, mixup=mixup, cutmix=cutmix)
    cuts = 0
    for seed in range(200):
        mix = draw_mix(aug, seed, 5 * seed + 1, 32, 32)
        assert mix is not None and mix == draw_mix(aug, 5 * seed + 1, seed, 32, 32)
        assert (mix.box is None) != (mix.ratio is None)
        assert 0 <= mix_weight(mix, 32) <= 1
        if mix.box is not None:
            cuts += 1
            r1, c1, r2, c2 = mix.box
            assert 0 <= r1 <= r2 <= 32 and 0 <= c1 <= c2 <= 32
    assert cuts == {(0.8, 0.0): 0, (0.0, 1.0): 200}.get((mixup, cutmix), cuts)
    assert (mixup, cutmix) != (0.8, 1.0) or 60 < cuts < 140


def test_mix_probability() -> None:
    aug = Augmentation(size=32, mixup=0.8, mix_prob=0.3)
    mixed = sum(draw_mix(aug, seed, seed + 1000, 32, 32) is not None for seed in range(1000))
    assert 240 < mixed < 360
    wide, square = (draw_mix(Augmentation(32, mixup=0.8), 0, 1, 32, width) for width in (31, 32))
    assert wide is not None and square is not None and wide.ratio == square.ratio
    assert (wide.grid, square.grid) == ((32, 31), 32)
