"""RandAugment in timm's notation: parsing of ``rand-m9-mstd0.5-inc1``, and the draws of ops and magnitudes.

``torchvision-m9-n2`` names torchvision's instead (:mod:`vitlab.distill.randaug_torchvision`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from vitlab.distill.randaug_torchvision import BINS
from vitlab.errors import UserError

RANDAUG_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's increasing op set in the order in which RandAugment numbers it."""


@dataclass(frozen=True, slots=True)
class RandAugment:
    """A parsed ``rand-m9-mstd0.5-inc1``: ``count`` ops of strength N(magnitude, std), each run with ``prob``."""

    magnitude: float
    std: float = 0.0
    count: int = 2
    prob: float = 0.5
    limit: float = 10.0
    op_set: str = "timm"  # timm (increasing) | torchvision


@functools.lru_cache(maxsize=64)
def parse_randaug(text: str) -> RandAugment:
    """Read timm's notation: ``rand-m<magnitude>[-mstd<std>][-n<ops>][-p<prob>][-mmax<limit>]-inc1``; torchvision's op
    set as ``torchvision-m<magnitude>-n<ops>``, the magnitude an index below 31.

    Raises:
        UserError: for anything else, also for op weights and for the op set that does not grow with magnitude.
    """
    cure = "Write it as rand-m9-mstd0.5-inc1 (also -n2, -p0.5, -mmax10), torchvision-m9-n2, or null."
    if text.startswith("torchvision"):
        found = re.fullmatch(r"torchvision-m(\d+)-n(\d+)", text)
        if found is None or int(found[1]) >= BINS or not 1 <= int(found[2]) <= 16:
            raise UserError(
                f"recipe.augmentation.randaug={text}: torchvision's has a magnitude up to {BINS - 1} and 1 to 16 ops.",
                "Write it as torchvision-m9-n2.",
            )
        return RandAugment(float(found[1]), 0.0, int(found[2]), 1.0, op_set="torchvision")
    head, *parts = text.split("-")
    fields: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise UserError(f"recipe.augmentation.randaug={text}: '{part}' is not part of the notation.", cure)
        fields[match[1]] = float(match[2])
    if head != "rand" or fields.get("inc") != 1 or "m" not in fields:
        raise UserError(f"recipe.augmentation.randaug={text}: needs 'rand', a magnitude m and inc1.", cure)
    limit, prob, count = fields.get("mmax", 10.0), fields.get("p", 0.5), fields.get("n", 2.0)
    if limit > 10 or prob > 1 or count < 1 or count != int(count):
        raise UserError(f"recipe.augmentation.randaug={text}: mmax is at most 10, p at most 1, n an integer.", cure)
    return RandAugment(fields["m"], fields.get("mstd", 0.0), int(count), prob, limit)


def draw_ops(rng: np.random.Generator, spec: RandAugment) -> tuple[tuple[str, float], ...]:
    """The executed ops with their arguments; the magnitude is drawn for every kept op, also for those without one."""
    ops = []
    # All ops are chosen first, then skipped one by one: the order of timm's RandAugment, which fixes the stream.
    for choice in rng.choice(len(RANDAUG_OPS), spec.count, replace=True).tolist():
        if spec.prob < 1 and rng.random() > spec.prob:
            continue
        magnitude = rng.normal(spec.magnitude, spec.std) if spec.std > 0 else spec.magnitude
        strength = max(0.0, min(magnitude, spec.limit)) / 10
        name = RANDAUG_OPS[choice]
        ops.append((name, float(_argument(rng, name, strength))))
    return tuple(ops)


def _argument(rng: np.random.Generator, name: str, strength: float) -> float:
    """The argument of an op at a strength in [0, 1]; signed ops draw their sign here."""
    match name:
        case "Rotate":
            return _signed(rng, strength * 30)
        case "PosterizeIncreasing":
            return 4 - int(strength * 4)
        case "SolarizeIncreasing":
            return 256 - int(strength * 256)
        case "SolarizeAdd":
            return int(strength * 110)
        case "ColorIncreasing" | "ContrastIncreasing" | "BrightnessIncreasing" | "SharpnessIncreasing":
            return max(0.1, 1.0 + _signed(rng, strength * 0.9))
        case "ShearX" | "ShearY":
            return _signed(rng, strength * 0.3)
        case "TranslateXRel" | "TranslateYRel":
            return _signed(rng, strength * 0.45)
        case _:  # AutoContrast, Equalize, Invert
            return 0.0


def _signed(rng: np.random.Generator, value: float) -> float:
    return -value if rng.random() > 0.5 else value
