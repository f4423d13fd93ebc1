"""torchvision's RandAugment: its op set, the arguments of its magnitudes, and draws of it."""

from __future__ import annotations

import functools

import numpy as np

BINS = 31
"""Magnitudes that torchvision's RandAugment distinguishes."""

OPS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""torchvision's op set as the official records number it; the ops 1 to 9 carry a random sign."""

SIGNED = range(1, 10)

SIDE = 224
"""Pixels of the view on which translations are counted."""


@functools.lru_cache(maxsize=64)
def magnitudes(index: int, bins: int = BINS) -> tuple[float, ...]:
    """The unsigned argument of each of :data:`OPS` at magnitude ``index`` of ``bins``, on a view of 224 pixels.

    torchvision's table: float32 values widened to double, as the official records hold them.
    """
    if not 0 <= index < bins:
        raise ValueError(f"magnitude {index} is outside 0..{bins - 1}")

    def part(end: float, start: float = 0.0) -> float:
        import torch  # torchvision's own arithmetic, whose float32 roundings are in the records

        return float(torch.linspace(start, end, bins)[index].item())

    shear, rotate, colour = part(0.3), part(30.0), part(0.9)
    translate = part(150.0 / 331.0 * SIDE)
    posterize = float(8 - round(index / ((bins - 1) / 4)))
    solarize = part(0.0, 255.0)
    return (0.0, shear, shear, translate, translate, rotate, *[colour] * 4, posterize, solarize, 0.0, 0.0)


def draw_torchvision_ops(rng: np.random.Generator, magnitude: int, count: int) -> tuple[tuple[str, float], ...]:
    """``count`` ops, drawn with replacement, with their signed arguments at ``magnitude``; none is skipped."""
    table, ops = magnitudes(magnitude), []
    for number in rng.integers(len(OPS), size=count).tolist():
        value = table[number]
        ops.append((OPS[number], -value if number in SIGNED and rng.random() < 0.5 else value))
    return tuple(ops)
