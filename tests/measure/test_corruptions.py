"""ImageNet-C's corruptions on the fly: pure functions of image, name, severity and seed, harder with severity."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitlab.measure.corruptions import STRENGTHS, corrupt, mean_corruption_error
from vitlab.measure.robustness_names import CORRUPTIONS, SEVERITIES

STOCHASTIC = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"),
    "elastic_transform",
}


# How far the released generator's functions take the scene of 224 pixels at each severity (root mean square, in levels
# of 256), and how near ours must come. Measured with imagecorruptions-imaug 1.1.5 (elastic_transform: the authors'),
# the mean over 40 seeds; chance differs, and frost is drawn here.
RELEASED: dict[str, tuple[tuple[float, ...], float]] = {
    "gaussian_noise": ((19.4, 28.6, 41.4, 56.8, 75.3), 0.01),
    "shot_noise": ((21.4, 32.2, 44.8, 64.9, 79.5), 0.01),
    "impulse_noise": ((25.5, 36.0, 44.0, 60.6, 76.2), 0.02),
    "defocus_blur": ((7.9, 9.0, 10.9, 12.4, 14.0), 0.03),
    "glass_blur": ((11.0, 9.7, 16.8, 14.5, 15.3), 0.02),
    "motion_blur": ((10.4, 14.3, 19.0, 23.9, 26.9), 0.15),
    "zoom_blur": ((16.0, 19.1, 21.1, 23.3, 25.3), 0.03),
    "snow": ((45.8, 74.2, 74.8, 90.3, 105.0), 0.06),
    "frost": ((60.0, 72.9, 80.1, 77.5, 81.5), 0.25),
    "fog": ((50.4, 56.0, 61.3, 62.0, 65.3), 0.08),
    "brightness": ((16.8, 32.0, 44.3, 54.0, 60.0), 0.03),
    "contrast": ((42.7, 49.8, 56.9, 64.0, 67.5), 0.01),
    "elastic_transform": ((42.8, 59.0, 18.1, 18.5, 19.8), 0.2),
    "pixelate": ((6.1, 6.3, 7.7, 9.0, 9.8), 0.02),
    "jpeg_compression": ((9.6, 10.4, 11.1, 12.9, 15.2), 0.02),
}


def scene(width: int, height: int) -> Image.Image:
    """Smooth areas, edges and texture, in colour."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    waves = 0.5 + 0.3 * np.sin(9 * x + 4 * y) + 0.2 * np.sign(np.sin(40 * x * y))
    pixels = np.stack([waves, 0.8 * x / x.max(), 1 - y / y.max()], 2)
    return Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))


@pytest.fixture(scope="module", params=[(120, 96), (32, 32)], ids=str)
def image(request: pytest.FixtureRequest) -> Image.Image:
    return scene(*request.param)


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def test_there_are_fifteen() -> None:
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 15 and set(STRENGTHS) == set(CORRUPTIONS)
    assert all(len(levels) == len(SEVERITIES) for levels in STRENGTHS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption(image: Image.Image, name: str) -> None:
    before = np.asarray(image).copy()
    made = [corrupt(image, name, severity, 3) for severity in SEVERITIES]
    assert np.array_equal(np.asarray(image), before), "the image itself is left alone"
    assert all(one.size == image.size and one.mode == "RGB" for one in made)
    assert np.array_equal(np.asarray(made[2]), np.asarray(corrupt(image, name, 3, 3)))
    far = [distance(image, one) for one in made]
    assert far[0] > 1, far
    assert far[4] > far[0] or name == "elastic_transform", far  # whose first two move all of the image together
    other = corrupt(image, name, 3, 4)
    assert np.array_equal(np.asarray(other), np.asarray(made[2])) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strengths_are_those_of_the_released_generator(name: str) -> None:
    view = scene(224, 224)
    released, tolerance = RELEASED[name]
    seeds = 1 if name not in STOCHASTIC else 2 if tolerance < 0.05 else 12
    found = [np.mean([distance(view, corrupt(view, name, level, s)) for s in range(seeds)]) for level in SEVERITIES]
    assert found == pytest.approx(released, rel=tolerance)


def test_noise_has_the_strength_that_it_says() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    found = np.asarray(corrupt(grey, "gaussian_noise", 1), float) / 255
    assert found.std() == pytest.approx(0.08, rel=0.02)
    found = np.asarray(corrupt(grey, "shot_noise", 1), float) / 255
    assert found.std() == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)
    found = np.asarray(corrupt(grey, "impulse_noise", 5))
    assert np.mean(found != 128) == pytest.approx(0.27, abs=0.01)
    assert np.mean(found == 0) == pytest.approx(np.mean(found == 255), abs=0.01)


def test_contrast_and_brightness_by_hand() -> None:
    halves = Image.fromarray(np.repeat(np.array([[[51] * 3], [[153] * 3]], np.uint8), 4, 1))
    assert np.unique(np.asarray(corrupt(halves, "contrast", 3))).tolist() == [92, 112]  # 102 -+ 0.2 x 51
    assert np.unique(np.asarray(corrupt(halves, "brightness", 2))).tolist() == [102, 204]  # + 0.2 x 255


def test_blurs_keep_a_flat_image_and_the_mean() -> None:
    flat = Image.new("RGB", (40, 40), (90, 120, 30))
    point = Image.new("RGB", (224, 224))
    point.putpixel((112, 112), (255, 255, 255))
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        assert np.array_equal(np.asarray(corrupt(flat, name, 5)), np.asarray(flat)), name
    spread = np.argwhere(np.asarray(corrupt(ImageOps.expand(point, 0), "defocus_blur", 1))[..., 0])
    assert np.ptp(spread, 0).tolist() == [6, 6]  # a disk of radius 3 at 224 pixels


def test_what_is_not_there_is_refused() -> None:
    for name, severity in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ValueError):
            corrupt(scene(8, 8), name, severity)


def test_mean_corruption_error() -> None:
    assert mean_corruption_error({"fog": 0.2, "snow": 0.9}, {"fog": 0.4, "snow": 0.6}) == pytest.approx(1.0)
    with pytest.raises(ValueError):
        mean_corruption_error({"fog": 0.2}, {"snow": 0.2})
    with pytest.raises(ValueError):
        mean_corruption_error({"fog": 0.2}, {"fog": 0.0})
