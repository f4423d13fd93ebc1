"""The fifteen corruptions of ImageNet-C, made on the fly for images of any size.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions (ICLR 2019): four families, five
severities, with the strengths and the steps of the released generator for views of 224 pixels. Lengths in pixels are
scaled to the short side, so that a severity means the same on small images. Noise and displacements come from a seed
for each image, so that every model is measured on the same pixels.

Differences from the released generator: frost is synthesised, since the photographs may not be redistributed, and
values are rounded instead of truncated. The published files were moreover saved as JPEGs, with libraries of their time.
Numbers are therefore comparable between models measured here, not with those on the published files.

SciPy is imported inside the functions: every table of results imports this module, and would take a second more.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitlab.measure.robustness_names import CORRUPTIONS, SEVERITIES

Pixels = NDArray[np.float64]
"""[H, W, 3] in [0, 1]."""

Places = NDArray[np.float64]
"""Coordinates or displacements in pixels."""

REFERENCE = 224
"""Short side for which the strengths were published."""

GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue."""

STRENGTHS: dict[str, tuple[tuple[float, ...], ...]] = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),  # standard deviation
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),  # photons of white
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),  # share of values
    "defocus_blur": ((3,), (4,), (6,), (8,), (10,)),  # radius
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # sigma, reach, rounds
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # half the length, sigma
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),  # up to, step
    "snow": (  # mean, std, zoom and least value of the flakes, length and sigma of their fall, weight of the image
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weight of the image, of the frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, roughness
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),  # added to the value (V of HSV)
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),  # share of it that is left
    "elastic_transform": (  # amount and sigma of the displacements, reach of the affine part
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),  # side of the reduced image, as a share
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),  # quality
}


def corrupt(image: Image.Image, name: str, severity: int, seed: int = 0) -> Image.Image:
    """An RGB image corrupted; the same for the same ``seed``.

    Raises:
        ValueError: for another corruption, or a severity outside 1 to 5.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"there is no corruption {name} of severity {severity}")
    # Corruption and severity are part of the seed: their noise is independent, and none depends on what else is
    # measured.
    rng = np.random.default_rng([seed, CORRUPTIONS.index(name), severity])
    strength = STRENGTHS[name][severity - 1]
    if name in ("pixelate", "jpeg_compression"):
        return _coded(image, name, strength[0])
    pixels = np.asarray(image, dtype=np.float64) / 255
    corrupted = np.clip(_FUNCTIONS[name](pixels, rng, min(image.size) / REFERENCE, *strength), 0, 1)
    return Image.fromarray(np.round(corrupted * 255).astype(np.uint8))


def mean_corruption_error(error: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """mCE: the mean over corruptions of the ratio of a model's error to a reference model's, each a mean over
    severities.

    Raises:
        ValueError: if the two name different corruptions, or the reference makes no error somewhere.
    """
    if set(error) != set(reference) or not error:
        raise ValueError(f"errors of {sorted(error)} and of {sorted(reference)} do not compare")
    if min(reference.values()) <= 0:
        raise ValueError("a reference without errors is no measure")
    return float(np.mean([error[name] / reference[name] for name in error]))


# The corruptions: pixels, a generator, the short side divided by REFERENCE (scales lengths), and the strengths.


def _gaussian(x: Pixels, rng: np.random.Generator, scale: float, std: float) -> Pixels:
    return x + rng.normal(0, std, x.shape)


def _shot(x: Pixels, rng: np.random.Generator, scale: float, photons: float) -> Pixels:
    return np.asarray(rng.poisson(x * photons) / photons)


def _impulse(x: Pixels, rng: np.random.Generator, scale: float, share: float) -> Pixels:
    draw = rng.random(x.shape)  # one draw for both: half of the share becomes black, half white
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def _defocus(x: Pixels, rng: np.random.Generator, scale: float, radius: float) -> Pixels:
    radius = radius * scale
    # A disk sampled at about a quarter of a pixel, so that its edge is smooth and fractional radii differ.
    fine = np.linspace(-radius, radius, 8 * math.ceil(radius) + 1)
    rows, columns = (grid.ravel() for grid in np.meshgrid(fine, fine))
    return _spread(x, rows, columns, (np.hypot(rows, columns) <= radius).astype(float), "reflect")


def _glass(x: Pixels, rng: np.random.Generator, scale: float, sigma: float, reach: float, rounds: float) -> Pixels:
    """Each pixel, from the last to the first, is replaced by a random near one. The released code intends an exchange
    of the two, but NumPy's views make it a copy; this is kept."""
    x = _smooth(x, sigma * scale)
    height, width = x.shape[:2]
    far = max(1, round(reach * scale))
    here = (np.arange(height - far, far, -1)[:, None] * width + np.arange(width - far, far, -1)).ravel()
    came = list(range(height * width))
    # Sequential, since a copied pixel may be copied again: hence a loop, over a list instead of an array for speed.
    for _ in range(int(rounds)):
        dy, dx = rng.integers(-far, far, (2, len(here)))
        for to, of in zip(here.tolist(), (here + dy * width + dx).tolist(), strict=True):
            came[to] = came[of]
    return _smooth(x.reshape(-1, 3)[came].reshape(x.shape), sigma * scale)


def _motion(x: Pixels, rng: np.random.Generator, scale: float, radius: float, sigma: float) -> Pixels:
    return _streaked(x, radius * scale, sigma * scale, rng.uniform(-45, 45))


def _zoom(x: Pixels, rng: np.random.Generator, scale: float, top: float, step: float) -> Pixels:
    zooms = np.arange(1, top, step)
    total = x.copy()
    for zoom in zooms:
        total += _magnified(x, float(zoom))
    return total / (len(zooms) + 1)


def _snow(
    x: Pixels,
    rng: np.random.Generator,
    scale: float,
    mean: float,
    std: float,
    zoom: float,
    least: float,
    radius: float,
    sigma: float,
    own: float,
) -> Pixels:
    layer = rng.normal(mean, std, (*x.shape[:2], 1))
    layer = _magnified(layer, 1 + (zoom - 1) * min(1.0, max(scale, 0.3)))  # at least 0.3: flakes below a pixel vanish
    layer = np.clip(np.where(layer < least, 0, layer), 0, 1)
    layer = _streaked(layer, radius * scale, sigma * scale, rng.uniform(-135, -45))
    # As released: the image is whitened, and the flakes are added twice, once rotated by 180 degrees.
    pale = np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return own * x + (1 - own) * pale + layer + np.rot90(layer, 2)


def _frost(x: Pixels, rng: np.random.Generator, scale: float, own: float, frost: float) -> Pixels:
    """Crystals are the ridges of a rough random field, with the mean brightness, contrast and blue tint of the released
    photographs."""
    ridges = 1 - np.abs(2 * _plasma(rng, x.shape[0], x.shape[1], 1.2) - 1)
    layer = rng.uniform(0.35, 0.82) + 0.6 * (ridges - ridges.mean())
    return own * x + frost * np.clip(layer[..., None] * np.array([0.88, 1.02, 1.10]), 0, 1)


def _fog(x: Pixels, rng: np.random.Generator, scale: float, amount: float, roughness: float) -> Pixels:
    top = x.max()
    field = _plasma(rng, x.shape[0], x.shape[1], roughness)
    return np.asarray((x + amount * field[..., None]) * top / (top + amount))  # the maximum stays where it was


def _brightness(x: Pixels, rng: np.random.Generator, scale: float, more: float) -> Pixels:
    # V of HSV is the largest channel; hue and saturation stay if all channels are scaled alike. Black has no hue.
    top = x.max(2, keepdims=True)
    value = np.clip(top + more, 0, 1)
    return np.where(top > 0, x * value / np.maximum(top, 1e-12), value)


def _contrast(x: Pixels, rng: np.random.Generator, scale: float, left: float) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * left + mean


def _elastic(x: Pixels, rng: np.random.Generator, scale: float, amount: float, sigma: float, reach: float) -> Pixels:
    """An affine map, given by random shifts of three corners of a square, then a smooth random displacement field."""
    from scipy.ndimage import gaussian_filter

    height, width = x.shape[:2]
    middle, half = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = middle + half * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-reach, reach, (3, 2)) * scale
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # from places after to places before
    # The standard deviation of noise smoothed over sigma pixels falls as 1 / sigma: hence scale^2, once for that and
    # once for the length of the displacement.
    shift = [
        gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma * scale, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    places = np.mgrid[:height, :width].astype(np.float64)
    before = np.einsum("chw,cd->dhw", np.concatenate([places, np.ones((1, height, width))]), affine)
    return _sampled(_sampled(x, before), places + amount * scale**2 * np.stack(shift))


_FUNCTIONS: dict[str, Callable[..., Pixels]] = {
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


def _smooth(x: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _streaked(x: Pixels, radius: float, sigma: float, degrees: float) -> Pixels:
    """Motion blur: one-sided, along a line of twice ``radius`` pixels, with Gaussian weights of the distance."""
    steps = np.linspace(0, 2 * radius, max(3, math.ceil(2 * radius) + 1))
    rows, columns = (steps * f(math.radians(degrees)) for f in (math.sin, math.cos))
    return _spread(x, rows, columns, np.exp(-0.5 * (steps / sigma) ** 2), "edge")


def _spread(x: Pixels, rows: Places, columns: Places, weights: Places, border: Literal["edge", "reflect"]) -> Pixels:
    """The weighted mean of the image at these displacements, in fractions of pixels; the border repeated or
    mirrored."""
    from scipy.signal import fftconvolve

    reach = math.ceil(max(np.abs(rows).max(), np.abs(columns).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    # Each weight is split bilinearly among the four pixels around it, and all become one kernel: one convolution
    # instead of an interpolated copy of the image for each displacement.
    for dy, along in ((0, 1 - (rows - top)), (1, rows - top)):
        for dx, across in ((0, 1 - (columns - left)), (1, columns - left)):
            np.add.at(kernel, (reach + top + dy, reach + left + dx), weights * along * across)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), border)
    kernel = kernel[::-1, ::-1, None] / kernel.sum()  # a convolution flips its kernel; this is a correlation
    return np.asarray(fftconvolve(padded, kernel, mode="valid", axes=(0, 1)))


def _magnified(x: Pixels, zoom: float) -> Pixels:
    """The centre, enlarged to the size of the image."""
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    middle = (x.shape[0] - 1) / 2, (x.shape[1] - 1) / 2
    return _on_grid(x, (rows - middle[0]) / zoom + middle[0], (columns - middle[1]) / zoom + middle[1])


def _on_grid(x: Pixels, rows: Places, columns: Places) -> Pixels:
    """Bilinear values on a grid of ``rows`` x ``columns``, which is separable: along one axis, then along the other.
    The border is repeated."""
    for axis, places in ((0, rows), (1, columns)):
        last = x.shape[axis] - 1
        places = np.clip(places, 0, last)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, last), axis) * share
    return x


def _sampled(x: Pixels, places: Places) -> Pixels:
    """Bilinear values at the coordinates ``places`` [2, H, W]; beyond the border the image is mirrored."""
    from scipy.ndimage import map_coordinates

    return np.stack([map_coordinates(x[..., c], places, order=1, mode="mirror") for c in range(x.shape[2])], 2)


def _plasma(rng: np.random.Generator, height: int, width: int, decay: float) -> NDArray[np.float64]:
    """A fractal [H, W] in [0, 1] by the diamond-square algorithm on a torus; each halving of the step divides the noise
    by ``decay**2``."""
    side = 1 << max(height - 1, width - 1, 1).bit_length()  # the next power of two, then cut to the image
    field = np.zeros((side, side))
    step, wobble = side, 1.0

    def noisy(four: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(four / 4 + wobble * rng.uniform(-1, 1, four.shape))

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        middles = noisy(rows + np.roll(rows, -1, 1))
        field[half::step, half::step] = middles
        # The edges' middles: of two corners along the edge, and of the middles of the squares beside it.
        field[::step, half::step] = noisy(corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0))
        field[half::step, ::step] = noisy(corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1))
        step, wobble = half, wobble / decay**2
    low, high = field.min(), field.max()
    return np.asarray((field - low) / max(high - low, 1e-12))[:height, :width]
