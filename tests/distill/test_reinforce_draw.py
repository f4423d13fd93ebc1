"""Dataset Reinforcement's sampler and its packed records."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlab.distill.draw import Draw, Mix
from vitlab.distill.reinforce_draw import (
    OPS,
    VARIANTS,
    Reinforcement,
    centre_crop,
    cutmix_box,
    generator,
    magnitudes,
    sample,
)
from vitlab.distill.reinforce_record import OddMagnitude, decode, encode, record_fields
from vitlab.distill.store_spec import StoreSpec
from vitlab.errors import UserError

SIZES = [(500, 375), (32, 32), (97, 640), (1, 1), (224, 224)]


def size_of(image: int) -> tuple[int, int]:
    return SIZES[image % len(SIZES)]


def records(spec: Reinforcement, draws: list[Draw]) -> np.ndarray:
    kind = np.dtype([(name, t, (count,)) for name, t, count in record_fields(spec)])
    out = np.zeros(len(draws), kind)
    for name, values in encode(spec, draws).items():
        out[name] = values
    return out


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**31), st.integers(0, 9999), st.sampled_from([None, 16]))
def test_a_record_decodes_to_its_draw(variant: str, seed: int, image: int, number: int, pad: int | None) -> None:
    spec = Reinforcement(variant, pad=pad if variant != "center" else None)
    draws = [sample(spec, seed, image, number + i, image + 5, size_of) for i in range(3)]
    assert decode(spec, records(spec, draws)) == draws
    for draw in draws:
        inside(draw, image)
        if draw.mix is not None:
            assert draw.mix.partner is not None and draw.mix.draw is not None
            assert 0 <= draw.mix.partner < image + 5
            inside(draw.mix.draw, draw.mix.partner)


def inside(draw: Draw, image: int) -> None:
    if draw.crop is not None:
        top, left, height, width = draw.crop
        w, h = size_of(image)
        assert top >= 0 and left >= 0 and 0 < height <= h - top and 0 < width <= w - left
    if draw.erase is not None:
        box = draw.erase
        assert 0 <= box.top <= 224 - box.height and 0 <= box.left <= 224 - box.width


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_draw_is_a_function_of_its_place(variant: str) -> None:
    """Not of the order in which draws are made: samples drawn in reverse order, or alone, are the same."""
    spec = Reinforcement(variant)
    large = lambda image: (500, 375)  # noqa: E731
    forward = {(i, s): sample(spec, 3, i, s, 50, large) for i in range(4) for s in range(6)}
    assert {key: sample(spec, 3, *key, 50, large) for key in reversed(forward)} == forward
    if variant != "center":
        assert len(set(forward.values())) == len(forward)
        assert all(sample(spec, 4, *key, 50, large) != draw for key, draw in forward.items())


def test_the_stream_never_changes() -> None:
    """A store made yesterday is completed tomorrow with the same draws."""
    assert generator(7, 5, 3).random(2).tolist() == pytest.approx(GOLDEN, abs=0)


GOLDEN = [0.35085523274806774, 0.15998180387915162]


def test_magnitudes_are_those_of_the_official_records() -> None:
    shear, translate, rotate, colour = 0.09000000357627869, 30.45317268371582, 9.0, 0.26999998092651367
    wanted = (0.0, shear, shear, translate, translate, rotate, *[colour] * 4, 7.0, 178.5, 0.0, 0.0)
    assert magnitudes(9) == wanted


def test_magnitudes_are_torchvisions() -> None:
    from torchvision.transforms import RandAugment

    table = RandAugment()._augmentation_space(31, (224, 224))
    for index in (0, 9, 17, 30):
        found = dict(zip(OPS, magnitudes(index), strict=True))
        for name, (values, _) in table.items():
            assert found[name] == (float(values[index]) if values.ndim else float(values)), name


@pytest.mark.parametrize(
    ("ratio", "row", "column", "box"),
    [
        (0.3, 10, 200, (0, 107, 103, 224)),
        (0.75, 112, 112, (56, 56, 168, 168)),
        (0.5, 0, 223, (0, 144, 79, 224)),
    ],
)
def test_cutmix_boxes(ratio: float, row: int, column: int, box: tuple[int, int, int, int]) -> None:
    assert cutmix_box(ratio, row, column) == box


def test_an_empty_cutmix_box() -> None:
    r1, c1, r2, c2 = cutmix_box(1.0, 50, 50)
    assert (r2 - r1) * (c2 - c1) == 0


@pytest.mark.parametrize(
    ("variant", "k10f4", "k10f2", "k5f4"),
    [("rrc", 69, 49, 39), ("mixing", 101, 81, 71), ("randaug", 75, 55, 45), ("randaug_mixing", 113, 93, 83)],
)
def test_bytes_of_a_record(variant: str, k10f4: int, k10f2: int, k5f4: int) -> None:
    spec = Reinforcement(variant)
    for k, prob, wanted in ((10, "f4", k10f4), (10, "f2", k10f2), (5, "f4", k5f4)):
        store = StoreSpec(
            images=1,
            slots=1,
            k=k,
            classes=1000,
            keys_sha256="",
            data_fingerprint="",
            augmentation=spec.to_dict(),
            augmentation_fingerprint=spec.fingerprint(),
            teacher={},
            mean=(0.0,),
            std=(1.0,),
            base_seed=0,
            prob=prob,
            protocol="reinforce-1",
            fields=record_fields(spec),
        )
        assert store.record.itemsize == wanted


def test_frequencies() -> None:
    spec = Reinforcement("randaug_mixing")
    draws = [sample(spec, 1, i, 0, 1000, size_of) for i in range(4000)]
    mixes = [draw.mix for draw in draws]
    count = {
        "none": sum(mix is None for mix in mixes),
        "both": sum(mix is not None and mix.ratio is not None and mix.box is not None for mix in mixes),
        "flip": sum(draw.flip for draw in draws) / 2,
    }
    for name, found in count.items():
        assert abs(found - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75), name
    assert abs(sum(draw.erase is not None for draw in draws) - 1000) < 120
    boxes = [draw.erase for draw in draws if draw.erase is not None]
    assert all(0 <= box.top <= 224 - box.height and 0 <= box.left <= 224 - box.width for box in boxes)
    for places in ([box.top / (224 - box.height) for box in boxes], [box.left / (224 - box.width) for box in boxes]):
        assert np.mean(places) == pytest.approx(0.5, abs=0.05) and max(places) > 0.95, "anywhere in the view"
    ratios = [mix.ratio for mix in mixes if mix is not None and mix.ratio is not None]
    assert min(ratios) >= 0 and max(ratios) <= 0.5 and np.mean(ratios) == pytest.approx(0.25, abs=0.015)
    used = [op for draw in draws for op in draw.ops]
    counts = np.array([sum(name == op[0] for op in used) for name in OPS])
    assert len(used) == 8000 and abs(counts - 8000 / 14).max() < 5 * math.sqrt(8000 / 14)
    signed = [value for name, value in used if name == "Rotate"]
    assert 0.4 < np.mean([value < 0 for value in signed]) < 0.6
    assert len({mix.partner for mix in mixes if mix is not None}) > 900


def test_center_is_the_middle() -> None:
    assert centre_crop((500, 375), 0.875) == (23, 86, 328, 328)
    assert centre_crop((10, 20), 1.0) == (5, 0, 10, 10)
    spec = Reinforcement("center")
    assert sample(spec, 0, 0, 0, 9, size_of) == sample(spec, 1, 0, 5, 9, size_of)


def test_draws_outside_the_record_format_are_refused() -> None:
    spec = Reinforcement("rrc")
    draw = sample(spec, 0, 0, 0, 9, size_of)
    for change in (
        {"vertical_flip": True},
        {"crop": None},
        {"crop": (0, 0, 70000, 5)},
        {"ops": (("Rotate", 9.0), ("Rotate", 9.0))},
        {"mix": Mix(0.5, None, 224, 3, draw)},
    ):
        with pytest.raises(ValueError):
            encode(spec, [dataclasses.replace(draw, **change)])
    augmented = Reinforcement("randaug")
    odd = dataclasses.replace(sample(augmented, 0, 0, 0, 9, size_of), ops=(("Rotate", 9.0), ("Rotate", 8.0)))
    with pytest.raises(ValueError, match="Rotate by"):
        encode(augmented, [odd])


def test_skipped_randaugment_round_trips() -> None:
    spec = Reinforcement("randaug")
    draw = dataclasses.replace(sample(spec, 0, 0, 0, 9, size_of), ops=())
    assert decode(spec, records(spec, [draw])) == [draw]


def test_description_survives_json() -> None:
    spec = Reinforcement("mixing", crop_scale=None, pad=16, flip=0.0)
    again = Reinforcement.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and again.fingerprint() == spec.fingerprint()
    assert again.fingerprint() != Reinforcement("mixing").fingerprint()


@pytest.mark.parametrize(
    ("name", "value"),
    [("variant", "all"), ("crop_scale", (0.0, 1.0)), ("flip", 2.0), ("magnitude", 31), ("pad", 128), ("ops", 0)],
)
def test_bad_values_name_their_key(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"method.views.{name}"):
        Reinforcement.from_dict({name: value})


def test_a_partner_of_the_batch_is_a_neighbour() -> None:
    spec = Reinforcement("mixing", partner="batch", partner_batch=4)
    seen: dict[int, set[int]] = {image: set() for image in range(10)}
    for image in seen:
        for number in range(120):
            mix = sample(spec, 0, image, number, 10, size_of).mix
            if mix is not None and mix.partner is not None:
                seen[image].add(mix.partner)
    for image, partners in seen.items():
        assert partners == set(range(image // 4 * 4, min(image // 4 * 4 + 4, 10)))  # itself included
    assert spec.fingerprint() != Reinforcement("mixing").fingerprint()
    assert "partner" not in Reinforcement("mixing").to_dict()  # stores made before keep their description


def test_erasing_that_does_not_fit_is_none() -> None:
    """The official code erases the full view after ten tries."""
    spec = Reinforcement("randaug", erase=1.0, erase_scale=(1.0, 1.0))
    assert all(sample(spec, 0, image, 0, 9, size_of).erase is None for image in range(50))


def test_odd_magnitudes_use_the_side_table() -> None:
    plain = Reinforcement("randaug")
    odd = (("Rotate", 8.5), ("Solarize", 100.0), ("Rotate", -1.25))
    spec = dataclasses.replace(plain, odd=odd)
    draws = [
        dataclasses.replace(sample(plain, 0, image, 0, 9, size_of), ops=ops)
        for image, ops in enumerate([(odd[0], odd[1]), (odd[2], ("Rotate", -9.0)), (("Identity", 0.0), odd[2])])
    ]
    assert decode(spec, records(spec, draws)) == draws
    assert Reinforcement.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(OddMagnitude) as error:
        encode(plain, draws)
    assert error.value.op == odd[0]
