"""Pixels: each step of a Draw against an independent way to do it."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.distill.draw import Augmentation, Draw, Erase, Mix, draw
from vitlab.distill.ops import jitter_op, timm_op, torchvision_op
from vitlab.distill.randaug import RANDAUG_OPS
from vitlab.distill.views import EvalView, View, mix_weight, scale_box

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def test_crop_resize_flip_normalise_is_torchvisions(image: Image.Image) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    view = View(32, MEAN, STD)
    for flip, vertical in ((False, False), (True, False), (False, True), (True, True)):
        wanted = F.resized_crop(image, 5, 7, 40, 50, [32, 32], InterpolationMode.BICUBIC)
        wanted = F.hflip(wanted) if flip else wanted
        wanted = F.vflip(wanted) if vertical else wanted
        wanted = F.normalize(F.to_tensor(wanted), MEAN, STD)
        made = view(image, Draw(crop=(5, 7, 40, 50), flip=flip, vertical_flip=vertical))
        assert made.equal(wanted) and made.is_contiguous()
        row = torch.empty(2, 3, 32, 32)
        assert view(image, Draw(crop=(5, 7, 40, 50), flip=flip, vertical_flip=vertical), out=row[1]).equal(wanted)
        assert row[1].equal(wanted)


def test_timm_ops_are_timms(image: Image.Image) -> None:
    """Every op of the set against timm's own, with the argument that a draw gives."""
    from timm.data import auto_augment as timm_ops

    table: dict[str, Callable[..., Image.Image]] = {
        "AutoContrast": timm_ops.auto_contrast,
        "Equalize": timm_ops.equalize,
        "Invert": timm_ops.invert,
        "Rotate": timm_ops.rotate,
        "PosterizeIncreasing": timm_ops.posterize,
        "SolarizeIncreasing": timm_ops.solarize,
        "SolarizeAdd": timm_ops.solarize_add,
        "ColorIncreasing": timm_ops.color,
        "ContrastIncreasing": timm_ops.contrast,
        "BrightnessIncreasing": timm_ops.brightness,
        "SharpnessIncreasing": timm_ops.sharpness,
        "ShearX": timm_ops.shear_x,
        "ShearY": timm_ops.shear_y,
        "TranslateXRel": timm_ops.translate_x_rel,
        "TranslateYRel": timm_ops.translate_y_rel,
    }
    assert tuple(table) == RANDAUG_OPS
    aug = Augmentation(size=32, randaug="rand-m8-mstd2-p1-inc1")
    met = set()
    for seed in range(60):
        for name, argument in draw(aug, seed, 80, 60).ops:
            met.add(name)
            kind = int if name in ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd") else float
            if name == "PosterizeIncreasing" and argument == 0:
                continue  # timm raises; see below
            bare = name in ("AutoContrast", "Equalize", "Invert")
            geometric = {"fillcolor": (1, 2, 3), "resample": Image.Resampling.BICUBIC}
            wanted = table[name](image, *(() if bare else (kind(argument),)), **geometric)
            made = timm_op(image, name, argument, Image.Resampling.BICUBIC, (1, 2, 3))
            assert np.array_equal(np.asarray(made), np.asarray(wanted)), (name, argument)
    assert met == set(RANDAUG_OPS)
    black = timm_op(image, "PosterizeIncreasing", 0, Image.Resampling.BICUBIC, (0, 0, 0))
    assert not np.asarray(black).any()


def test_unknown_names_are_errors(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="Color"):
        timm_op(image, "Color", 1.0, Image.Resampling.BICUBIC, (0, 0, 0))
    with pytest.raises(ValueError, match="ColorIncreasing"):
        torchvision_op(image, "ColorIncreasing", 1.0, 224)
    with pytest.raises(ValueError, match="gamma"):
        jitter_op(image, "gamma", 1.0)


def test_torchvision_translation_scales_with_the_view() -> None:
    square = Image.fromarray(np.random.default_rng(1).integers(1, 256, (112, 112, 3), dtype=np.uint8))
    moved = np.asarray(torchvision_op(square, "TranslateX", 30.4, grid=224))
    assert np.array_equal(moved[:, 15:], np.asarray(square)[:, :-15]) and not moved[:, :15].any()


def test_jitter(image: Image.Image) -> None:
    pixels = np.asarray(image).astype(float)
    assert np.abs(np.asarray(jitter_op(image, "brightness", 0.5)) - pixels * 0.5).max() <= 1
    grey = np.asarray(image.convert("L")).astype(float)
    assert np.abs(np.asarray(jitter_op(image, "saturation", 0.0)) - grey[..., None]).max() == 0
    assert np.abs(np.asarray(jitter_op(image, "contrast", 0.0)) - grey.mean()).max() <= 1
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    wanted = [round(255 * v) for v in colorsys.hsv_to_rgb(1 / 3, 1, 1)]
    assert np.abs(np.asarray(jitter_op(red, "hue", 1 / 3))[0, 0].astype(int) - wanted).max() <= 6  # 8-bit hue
    assert np.abs(np.asarray(jitter_op(red, "hue", -2 / 3))[0, 0].astype(int) - wanted).max() <= 6
    made = View(32, *PLAIN)(image, Draw(jitter=(("saturation", 0.0), ("brightness", 0.5))))
    assert made[0].equal(made[1]) and made.max() <= 0.5


def test_shift_is_a_padded_crop(image: Image.Image) -> None:
    """CIFAR's crop: 16 zeros around 224 pixels, then 224 of them from (top, left)."""
    base = View(224, *PLAIN)(image, Draw())
    padded = torch.nn.functional.pad(base, (16, 16, 16, 16))
    assert View(224, *PLAIN)(image, Draw(shift=(16, 3, 30))).equal(padded[:, 3:227, 30:254])
    small = View(112, *PLAIN)
    padded = torch.nn.functional.pad(small(image, Draw()), (8, 8, 8, 8))
    assert small(image, Draw(shift=(16, 4, 30))).equal(padded[:, 2:114, 15:127])


@pytest.mark.parametrize("size", [224, 112, 32, 7])
def test_erase_box_scales(image: Image.Image, size: int) -> None:
    view = View(size, MEAN, STD)
    plain = view(image, Draw())
    for mode in ("pixel", "rand", "const", "black"):
        erased = view(image, Draw(erase=Erase(56, 112, 112, 84, mode, seed=3)))
        rows, columns = slice(size // 4, size * 3 // 4), slice(size // 2, round(size * 7 / 8))
        if size % 8 == 0:
            box = erased[:, rows, columns].clone()
            erased[:, rows, columns] = plain[:, rows, columns]
            assert erased.equal(plain)
            if mode == "const":
                assert not box.any()
            if mode == "black":
                assert box[:, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(MEAN, STD, strict=True)])
            if mode == "rand":
                assert box.equal(box[:, :1, :1].expand_as(box)) and len(box.unique()) == 3
            if mode == "pixel":
                shape = (3, rows.stop - rows.start, columns.stop - columns.start)
                noise = np.random.Generator(np.random.MT19937(3)).normal(size=shape)
                assert box.equal(torch.from_numpy(noise).float())
        else:
            assert not erased.equal(plain)
    corner = view(image, Draw(erase=Erase(223, 223, 1, 1, "const")))
    assert (corner != plain).sum() <= 3
    with pytest.raises(ValueError, match="way to erase"):
        view(image, Draw(erase=Erase(0, 0, 9, 9, "noise")))


def test_wrong_crop_and_mode_are_errors(image: Image.Image) -> None:
    view = View(32, MEAN, STD)
    with pytest.raises(ValueError, match="outside the image of 80 x 60"):
        view(image, Draw(crop=(0, 0, 61, 10)))
    with pytest.raises(ValueError, match="RGB"):
        view(image.convert("L"), Draw())
    with pytest.raises(ValueError, match="three numbers"):
        View(32, (0.5,), (0.5,))


def test_mixing(image: Image.Image) -> None:
    view = View(32, MEAN, STD)
    a, b = view(image, Draw()), view(image, Draw(flip=True))
    kept = a.clone(), b.clone()
    both = Mix(0.25, (4, 8, 12, 24), 32)
    mixed = view.mix(a, b, both)
    assert mixed[:, 4:12, 8:24].equal(b[:, 4:12, 8:24])  # the unmixed partner
    torch.testing.assert_close(mixed[:, 12:], (0.25 * a + 0.75 * b)[:, 12:])
    assert mix_weight(both, 32) == pytest.approx(0.25 * (1 - 8 * 16 / 1024))
    assert mix_weight(Mix(0.3, None, 32), 32) == 0.3 and mix_weight(Mix(None, (5, 5, 5, 9), 32), 32) == 1
    assert a.equal(kept[0]) and b.equal(kept[1])
    assert scale_box((30, 40, 150, 200), 224, 112) == (15, 20, 75, 100)
    assert mix_weight(Mix(None, (0, 0, 112, 224), 224), 32) == 0.5


def test_fill_is_the_mean_colour() -> None:
    assert View(32, MEAN, STD).fill == (124, 116, 104)
    assert View(32, (0.48145466, 0.4578275, 0.40821073), STD).fill == (123, 117, 104)
    assert View(32, MEAN, STD, fill=(1, 2, 3)).fill == (1, 2, 3)


@pytest.mark.parametrize(("width", "height"), [(80, 60), (60, 80), (33, 33), (32, 32)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_evaluation_is_torchvisions(width: int, height: int, crop_pct: float) -> None:
    from torchvision import transforms as T

    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8))
    bicubic = T.InterpolationMode.BICUBIC
    resized = T.Resize((32, 32) if crop_pct == 1 else int(32 / crop_pct), bicubic)
    steps = [resized, T.CenterCrop(32)]  # of 32 pixels: nothing to crop
    wanted = T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)])(image)
    assert EvalView(32, crop_pct, MEAN, STD)(image).equal(wanted)


def test_both_crop_conventions_are_described() -> None:
    """Official TinyViT: 256 and a centre crop at 224 px, a plain resize above; timm: 0.95, or 1.0 without squashing."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    official, large = EvalView(224, 0.875, MEAN, STD), EvalView(384, 1.0, MEAN, STD)
    assert str(official) == "short side 256, centre crop 224 × 224 (crop 0.875), bicubic"
    assert str(large) == "resized to 384 × 384, nothing cut, bicubic"
    squashed = EvalView(32, 0.9, MEAN, STD, crop="squash")(image)
    assert squashed.equal(EvalView(32, 1.0, MEAN, STD)(image))
    both = EvalView(32, 0.8, MEAN, STD, crop="squash_crop")
    assert str(both) == "resized to 40 × 40, centre crop 32 × 32 (crop 0.8), bicubic"
    small = image.resize((40, 40), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    assert both(image).equal(EvalView(32, 1.0, MEAN, STD)(small))
    assert both.box(160, 90).left == pytest.approx(16) and both.box(160, 90).top == pytest.approx(9)
    centred = EvalView(32, 1.0, MEAN, STD, crop="center")
    assert "short side 32, centre crop 32 × 32 (crop 1)" in str(centred)
    wanted = image.resize((56, 32), Image.Resampling.BICUBIC).crop((12, 0, 44, 32))
    assert centred(image).equal(EvalView(32, 1.0, MEAN, STD)(wanted))
    assert not centred(image).equal(squashed)
    with pytest.raises(ValueError, match="crop is one of"):
        EvalView(32, 1.0, MEAN, STD, crop="best")
