"""The fifteen corruptions of ImageNet-C, made on the fly for images of any size.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions (ICLR 2019): four families, five
severities. The published strengths are for views of 224 pixels; what is counted in pixels is scaled to the short side,
so that a severity means the same on small images. Noise and places come from a seed for each image, so that every
model meets the same pixels. The numbers are comparable between models measured here, not with those of the
published image files, whose libraries and JPEG coding are gone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitlab.measure.kinds import CORRUPTIONS, SEVERITIES

Pixels = NDArray[np.float64]
"""[H, W, 3] in [0, 1]."""

REFERENCE = 224
"""Short side for which the strengths were published."""

STRENGTHS: dict[str, tuple[tuple[float, ...], ...]] = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),  # standard deviation
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),  # photons of white
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),  # share of values
    "defocus_blur": ((3,), (4,), (6,), (8,), (10,)),  # radius
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # sigma, reach, rounds
    "motion_blur": ((10,), (15,), (15,), (15,), (20,)),  # length
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),  # up to, step
    "snow": ((0.1, 0.3, 3), (0.2, 0.3, 2), (0.55, 0.3, 4), (0.55, 0.3, 4.5), (0.55, 0.3, 2.5)),  # mean, std, zoom
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weight of the image, of the frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, roughness
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),  # added to the value
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),  # what is left of it
    "elastic_transform": ((0.025, 0.05), (0.04, 0.045), (0.055, 0.04), (0.07, 0.035), (0.09, 0.03)),  # shift, scale
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),  # side that is left
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),  # quality
}


def corrupt(image: Image.Image, name: str, severity: int, seed: int = 0) -> Image.Image:
    """An RGB image corrupted; the same for the same ``seed``.

    Raises:
        ValueError: for another corruption, or a severity outside 1 to 5.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"there is no corruption {name} of severity {severity}")
    rng = np.random.default_rng([seed, CORRUPTIONS.index(name), severity])
    strength = STRENGTHS[name][severity - 1]
    if name in ("pixelate", "jpeg_compression"):
        return _coded(image, name, strength[0])
    pixels = np.asarray(image, dtype=np.float64) / 255
    made = np.clip(_MAKERS[name](pixels, rng, min(image.size) / REFERENCE, *strength), 0, 1)
    return Image.fromarray(np.round(made * 255).astype(np.uint8))


def mean_corruption_error(error: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """mCE: the mean over corruptions of a model's error as a share of a reference model's, each a mean over severities.

    Raises:
        ValueError: if the two name different corruptions, or the reference makes no error somewhere.
    """
    if set(error) != set(reference) or not error:
        raise ValueError(f"errors of {sorted(error)} and of {sorted(reference)} do not compare")
    if min(reference.values()) <= 0:
        raise ValueError("a reference without errors is no measure")
    return float(np.mean([error[name] / reference[name] for name in error]))


def _gaussian(x: Pixels, rng: np.random.Generator, scale: float, std: float) -> Pixels:
    return x + rng.normal(0, std, x.shape)


def _shot(x: Pixels, rng: np.random.Generator, scale: float, photons: float) -> Pixels:
    return np.asarray(rng.poisson(x * photons) / photons)


def _impulse(x: Pixels, rng: np.random.Generator, scale: float, share: float) -> Pixels:
    dice = rng.random(x.shape)
    return np.where(dice < share / 2, 0.0, np.where(dice < share, 1.0, x))


def _defocus(x: Pixels, rng: np.random.Generator, scale: float, radius: float) -> Pixels:
    radius = radius * scale
    reach = math.ceil(radius)
    grid = np.arange(-reach, reach + 1)
    disk = np.clip(radius + 1 - np.hypot(grid[:, None], grid[None]), 0, 1)
    return _convolved(x, disk / disk.sum())


def _glass(x: Pixels, rng: np.random.Generator, scale: float, sigma: float, reach: float, rounds: float) -> Pixels:
    x = _smooth(x, sigma * scale)
    height, width = x.shape[:2]
    far = reach * scale
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(rounds)):
        dy, dx = rng.uniform(-far, far, (2, height, width))
        x = _sampled(x, rows + dy, columns + dx)
    return _smooth(x, sigma * scale)


def _motion(x: Pixels, rng: np.random.Generator, scale: float, length: float) -> Pixels:
    return _streaked(x, max(1.5, length * scale), rng.uniform(-45, 45))


def _zoom(x: Pixels, rng: np.random.Generator, scale: float, top: float, step: float) -> Pixels:
    zooms = np.arange(1, top, step)
    total = x.copy()
    for zoom in zooms:
        total += _magnified(x, float(zoom))
    return total / (len(zooms) + 1)


def _snow(x: Pixels, rng: np.random.Generator, scale: float, mean: float, std: float, zoom: float) -> Pixels:
    height, width = x.shape[:2]
    layer = np.repeat(rng.normal(mean, std, (height, width))[..., None], 3, 2)
    layer = _magnified(np.clip(layer, 0, 1), 1 + (zoom - 1) * min(1.0, max(scale, 0.3)))
    layer = np.where(layer < 0.5, 0, layer)
    layer = _streaked(layer, max(1.5, 10 * scale), rng.uniform(-135, -45))
    grey = np.maximum(x, x.mean(2, keepdims=True) * 1.5 + 0.5)
    x = 0.8 * x + 0.2 * grey
    return x + layer + np.rot90(layer, 2)


def _frost(x: Pixels, rng: np.random.Generator, scale: float, own: float, frost: float) -> Pixels:
    """Crystals are ridges of a rough random field, since the published photographs are not free to pass on."""
    field = _field(rng, x.shape[0], x.shape[1], 1.2)
    ridges = (1 - np.abs(2 * field - 1)) ** 3
    tint = np.array([0.85, 0.95, 1.0])
    return own * x + frost * ridges[..., None] * tint


def _fog(x: Pixels, rng: np.random.Generator, scale: float, amount: float, roughness: float) -> Pixels:
    top = x.max()
    field = _field(rng, x.shape[0], x.shape[1], roughness)
    return np.asarray((x + amount * field[..., None]) * top / (top + amount))


def _brightness(x: Pixels, rng: np.random.Generator, scale: float, more: float) -> Pixels:
    top = x.max(2, keepdims=True)
    value = np.clip(top + more, 0, 1)
    return np.where(top > 0, x * value / np.maximum(top, 1e-12), value)


def _contrast(x: Pixels, rng: np.random.Generator, scale: float, left: float) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * left + mean


def _elastic(x: Pixels, rng: np.random.Generator, scale: float, shift: float, smooth: float) -> Pixels:
    height, width = x.shape[:2]
    side = min(height, width)
    moved = []
    for _ in range(2):
        field = _smooth(rng.uniform(-1, 1, (height, width, 1)), max(0.5, smooth * side))
        field /= max(float(np.abs(field).max()), 1e-12)
        moved.append(field[..., 0] * shift * side)
    rows, columns = np.mgrid[:height, :width]
    return _sampled(x, rows + moved[0], columns + moved[1])


_MAKERS: dict[str, Callable[..., Pixels]] = {
    "gaussian_noise": _gaussian,
    "shot_noise": _shot,
    "impulse_noise": _impulse,
    "defocus_blur": _defocus,
    "glass_blur": _glass,
    "motion_blur": _motion,
    "zoom_blur": _zoom,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic,
}


def _coded(image: Image.Image, name: str, strength: float) -> Image.Image:
    if name == "pixelate":
        small = max(1, int(image.width * strength)), max(1, int(image.height * strength))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(strength))
    return Image.open(buffer).convert("RGB")


def _convolved(x: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Cross-correlation with an odd kernel, the border mirrored."""
    ry, rx = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(x, ((ry, ry), (rx, rx), (0, 0)), "symmetric")
    out = np.zeros_like(x)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        out += kernel[dy, dx] * padded[dy : dy + x.shape[0], dx : dx + x.shape[1]]
    return out


def _smooth(x: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur, rows then columns."""
    reach = max(1, math.ceil(3 * sigma))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    line /= line.sum()
    return _convolved(_convolved(x, line[None]), line[:, None])


def _streaked(x: Pixels, length: float, degrees: float) -> Pixels:
    """Blurred along a line of ``length`` pixels."""
    dy, dx = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    steps = np.linspace(-length / 2, length / 2, max(3, math.ceil(length) + 1))
    return sum((_on_grid(x, rows + t * dy, columns + t * dx) for t in steps), np.zeros_like(x)) / len(steps)


def _magnified(x: Pixels, zoom: float) -> Pixels:
    """The middle, enlarged to the whole."""
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    middle = (x.shape[0] - 1) / 2, (x.shape[1] - 1) / 2
    return _on_grid(x, (rows - middle[0]) / zoom + middle[0], (columns - middle[1]) / zoom + middle[1])


def _on_grid(x: Pixels, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Pixels:
    """As :func:`_sampled` where every row of places has the same columns: first along one axis, then the other."""
    for axis, places in ((0, rows), (1, columns)):
        last = x.shape[axis] - 1
        places = np.clip(places, 0, last)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, last), axis) * share
    return x


def _sampled(x: Pixels, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Pixels:
    """Bilinear values at these places, the border repeated."""
    height, width = x.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    r, c = np.floor(rows).astype(int), np.floor(columns).astype(int)
    fr, fc = (rows - r)[..., None], (columns - c)[..., None]
    r2, c2 = np.minimum(r + 1, height - 1), np.minimum(c + 1, width - 1)
    return (x[r, c] * (1 - fc) + x[r, c2] * fc) * (1 - fr) + (x[r2, c] * (1 - fc) + x[r2, c2] * fc) * fr


def _field(rng: np.random.Generator, height: int, width: int, roughness: float) -> NDArray[np.float64]:
    """A plasma fractal [H, W] in [0, 1]: midpoint displacement whose steps shrink by ``roughness`` each halving."""
    side = 2
    field = rng.random((side, side))
    step = 1.0
    while side < max(height, width):
        side *= 2
        step /= roughness
        grown = Image.fromarray(field.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        field = np.asarray(grown, dtype=np.float64) + step * rng.uniform(-0.5, 0.5, (side, side))
    field = field[:height, :width]
    low, high = field.min(), field.max()
    return np.asarray((field - low) / max(high - low, 1e-12))
