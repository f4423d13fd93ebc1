"""Dataset Reinforcement's stored parameters, replayed: the golden pixels of the official code's PIL backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.distill.draw import Draw, Erase, Mix
from vitlab.distill.ops import torchvision_op, torchvision_tensor_op
from vitlab.distill.views import View, scale_box, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEW = View(224, MEAN, STD, interpolation="bilinear")
ANCHOR = ((4, 30.45317268371582), (7, -0.26999998092651367))
PARTNER = ((5, -9.0), (11, 178.5))
NAMES = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
]


@pytest.fixture(scope="module")
def images() -> tuple[Image.Image, Image.Image]:
    r, c, k = np.ogrid[:300, :400, :3]
    anchor = (3 * r + 5 * c + 7 * k + r * c // 97) % 256
    r, c, k = np.ogrid[:260, :320, :3]
    partner = (11 * r + 2 * c + 31 * k + (r * r + c) // 53) % 256
    assert (anchor.sum(), partner.sum()) == (45_928_872, 31_826_248)
    return Image.fromarray(anchor.astype(np.uint8)), Image.fromarray(partner.astype(np.uint8))


def one(
    crop: tuple[int, int, int, int],
    flip: bool,
    ops: tuple[tuple[int, float], ...] = (),
    erase: tuple[int, int, int, int] | None = None,
) -> Draw:
    """A Draw from the stored parameters of one image."""
    named = tuple((NAMES[number], magnitude) for number, magnitude in ops)
    box = None if erase is None else Erase(*erase, mode="black")
    return Draw(crop=crop, flip=flip, ops=named, erase=box, op_set="torchvision")


def check(view: torch.Tensor, *wanted: float) -> None:
    """mean, std (unbiased), and where given the values at [0,10,20], [1,100,100], [2,200,50]."""
    found = [view.double().mean().item(), view.double().std().item()]
    found += [view[0, 10, 20].item(), view[1, 100, 100].item(), view[2, 200, 50].item()]
    assert found[: len(wanted)] == pytest.approx(wanted, abs=2e-6)


def test_crop_and_flip(images: tuple[Image.Image, Image.Image]) -> None:
    cropped = images[0].crop((35, 20, 275, 200)).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.asarray(cropped).sum(dtype=np.int64) == 19_176_607 and cropped.getpixel((100, 50)) == (210, 217, 224)
    check(VIEW(images[0], one((20, 35, 180, 240), True)), 0.224767, 1.240159, 0.262437, -1.440476, -1.455861)


def test_randaugment_and_erase(images: tuple[Image.Image, Image.Image]) -> None:
    draw = one((20, 35, 180, 240), True, ANCHOR, (50, 60, 40, 80))
    check(VIEW(images[0], draw), -0.221410, 1.401908, -2.117904, 1.028011, 0.740218)
    check(VIEW(images[0], one((20, 35, 180, 240), True, ANCHOR)), -0.077305, 1.361494)


def test_mixing(images: tuple[Image.Image, Image.Image]) -> None:
    other = one((5, 10, 200, 150), False)
    both = Mix(ratio=0.3, box=(30, 40, 150, 200), grid=224, partner=7, draw=other)
    anchor, partner = VIEW(images[0], one((20, 35, 180, 240), True)), VIEW(images[1], other)
    check(VIEW.mix(anchor, partner, both), 0.230755, 1.048449, 1.029626, -0.109944, 1.264837)
    check(VIEW.mix(anchor, partner, Mix(0.3, None, 224)), 0.228954, 0.931682)
    check(VIEW.mix(anchor, partner, Mix(None, both.box, 224)), 0.230771, 1.229027)


def test_everything(images: tuple[Image.Image, Image.Image]) -> None:
    """Anchor with RandAugment, partner with its own RandAugment and erasing, mixup and then CutMix."""
    other = one((5, 10, 200, 150), False, PARTNER, (10, 20, 100, 90))
    draw = Draw(
        crop=(20, 35, 180, 240),
        flip=True,
        ops=tuple((NAMES[number], magnitude) for number, magnitude in ANCHOR),
        op_set="torchvision",
        mix=Mix(ratio=0.3, box=(30, 40, 150, 200), grid=224, partner=7, draw=other),
    )
    assert draw.mix is not None and draw.mix.draw is not None
    view = VIEW.mix(VIEW(images[0], draw), VIEW(images[1], draw.mix.draw), draw.mix)
    check(view, -0.841171, 0.894516, -2.117904, -2.035714, 0.825621)


@pytest.mark.parametrize(
    ("name", "magnitude", "total"),
    [
        ("TranslateY", 30.45317268371582, 16_638_634),
        ("Color", -0.26999998092651367, 19_081_155),
        ("Rotate", 9.0, 17_919_555),
        ("Solarize", 178.5, 11_520_847),
        ("Posterize", 7.0, 19_101_348),
        ("Equalize", 0.0, 19_190_173),
        ("AutoContrast", 0.0, 19_126_357),
        ("Contrast", 0.26999998092651367, 19_095_888),
        ("Sharpness", -0.26999998092651367, 19_165_818),
        ("ShearX", 0.09000000357627869, 18_330_076),
        ("Brightness", 0.26999998092651367, 23_340_478),
        ("Identity", 0.0, 19_176_607),
    ],
)
def test_ops(images: tuple[Image.Image, Image.Image], name: str, magnitude: float, total: int) -> None:
    flipped = images[0].crop((35, 20, 275, 200)).resize((224, 224), Image.Resampling.BILINEAR)
    flipped = flipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.asarray(torchvision_op(flipped, name, magnitude, 224)).sum(dtype=np.int64) == total


@pytest.mark.parametrize(
    ("name", "magnitude", "total"),
    [
        ("TranslateY", 30.45317268371582, 16_638_634),
        ("Color", -0.26999998092651367, 19_079_124),
        ("Rotate", 9.0, 17_919_533),
        ("Solarize", 178.5, 11_520_847),
        ("Posterize", 7.0, 19_101_348),
        ("Equalize", 0.0, 19_190_173),
        ("AutoContrast", 0.0, 19_126_357),
        ("Contrast", 0.26999998092651367, 19_138_055),
        ("Sharpness", -0.26999998092651367, 19_165_818),
        ("ShearX", 0.09000000357627869, 18_330_076),
        ("Brightness", 0.26999998092651367, 23_340_478),
        ("Identity", 0.0, 19_176_607),
    ],
)
def test_ops_on_tensors(images: tuple[Image.Image, Image.Image], name: str, magnitude: float, total: int) -> None:
    flipped = images[0].crop((35, 20, 275, 200)).resize((224, 224), Image.Resampling.BILINEAR)
    pixels = to_tensor(flipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    made = torchvision_tensor_op(pixels, name, magnitude, 224)
    assert made.dtype == torch.uint8 and int(made.long().sum()) == total


@pytest.mark.parametrize("name", NAMES)
def test_tensor_ops_are_torchvisions_own(images: tuple[Image.Image, Image.Image], name: str) -> None:
    from torchvision.transforms import InterpolationMode, autoaugment

    pixels = to_tensor(images[1].resize((224, 224)))
    for magnitude in {"Posterize": (7.0, 4.0), "Solarize": (178.5, 10.0)}.get(name, (0.25, -0.25)):
        scale = 60 if name.startswith(("Trans", "Rotate")) else 1
        wanted = autoaugment._apply_op(pixels, name, magnitude * scale, InterpolationMode.NEAREST, None)
        assert torch.equal(torchvision_tensor_op(pixels, name, magnitude * scale, 224), wanted)


def test_backends_differ_by_little_and_only_in_randaugment(images: tuple[Image.Image, Image.Image]) -> None:
    tensors = View(224, (0, 0, 0), (1, 1, 1), interpolation="bilinear", backend="tensor")
    pil = View(224, (0, 0, 0), (1, 1, 1), interpolation="bilinear")
    plain = one((20, 35, 180, 240), True, erase=(50, 60, 40, 80))
    assert torch.equal(tensors(images[0], plain), pil(images[0], plain))
    drawn = one((20, 35, 180, 240), True, ((8, 0.26999998092651367),), (50, 60, 40, 80))
    gap = (tensors(images[0], drawn) - pil(images[0], drawn)).abs() * 255
    assert 0 < gap.max() <= 1.001
    with pytest.raises(ValueError, match="pil or tensor"):
        View(224, MEAN, STD, backend="numpy")


@pytest.mark.parametrize("backend", ["pil", "tensor"])
@pytest.mark.parametrize("size", [192, 224, 256, 384])
def test_other_sizes_on_both_backends(images: tuple[Image.Image, Image.Image], backend: str, size: int) -> None:
    """The crop is exact at any size; what is counted on the 224 grid is scaled, and is itself at 224."""
    view = View(size, (0, 0, 0), (1, 1, 1), interpolation="bilinear", backend=backend)
    white = Image.new("RGB", (400, 300), (255, 255, 255))
    moved = view(white, one((20, 35, 180, 240), False, ((3, 30.45317268371582),)))
    assert int((moved[0] == 0).sum()) == round(30 * size / 224) * size
    erased = view(white, one((20, 35, 180, 240), False, erase=(50, 60, 40, 80)))
    black = (erased[0] == 0).nonzero()
    assert black.amin(0).tolist() == [round(50 * size / 224), round(60 * size / 224)]
    assert len(black) == round(40 * size / 224) * round(80 * size / 224)
    assert scale_box((30, 40, 150, 200), 224, size) == tuple(round(v * size / 224) for v in (30, 40, 150, 200))
    cropped = images[0].crop((35, 20, 275, 200)).resize((size, size), Image.Resampling.BILINEAR)
    assert torch.equal((view(images[0], one((20, 35, 180, 240), False)) * 255).round().byte(), to_tensor(cropped))


@pytest.mark.parametrize("name", NAMES)
def test_ops_are_torchvisions_own(images: tuple[Image.Image, Image.Image], name: str) -> None:
    """The numbers cover 11 of 14 ops; torchvision's RandAugment itself covers all, with both signs."""
    from torchvision.transforms import InterpolationMode, autoaugment

    image = images[1].resize((224, 224))
    for magnitude in {"Posterize": (7.0, 4.0), "Solarize": (178.5, 10.0)}.get(name, (0.25, -0.25)):
        scale = 60 if name.startswith(("Trans", "Rotate")) else 1
        wanted = autoaugment._apply_op(image, name, magnitude * scale, InterpolationMode.NEAREST, None)
        made = torchvision_op(image, name, magnitude * scale, 224)
        assert np.array_equal(np.asarray(made), np.asarray(wanted))


def test_other_view_sizes_scale_boxes() -> None:
    """In a view of half the size every coordinate counted on the 224 grid is halved; the crop is not."""
    ramp = Image.fromarray(np.full((300, 400, 3), 255, np.uint8))
    small = View(112, (0, 0, 0), (1, 1, 1), interpolation="bilinear")
    view = small(ramp, one((20, 35, 180, 240), True, erase=(50, 60, 40, 80)))
    assert (view == 0).nonzero()[:, 1:].amin(0).tolist() == [25, 30]
    assert (view == 0).nonzero()[:, 1:].amax(0).tolist() == [25 + 20 - 1, 30 + 40 - 1]
    mixed = small.mix(torch.zeros(3, 112, 112), torch.ones(3, 112, 112), Mix(None, (30, 40, 150, 200), 224))
    assert mixed.sum().item() == 3 * 60 * 80
