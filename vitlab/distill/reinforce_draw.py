"""The draws of Dataset Reinforcement (arXiv 2303.08983, section 4 of its appendix and the official code's order).

Parameters are drawn once, stored explicitly (:mod:`vitlab.distill.reinforce_record`) and replayed. The random numbers
come from a counter-based generator, Philox keyed by the seed with (image, sample) in its counter, so that a draw does
not depend on earlier draws, on the process or on the batch.

Everything measured in pixels of the view (erasing, CutMix, translation) is drawn on the 224 grid of the paper
and scaled to the view at replay; the crop is in pixels of the source image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vitlab.distill.draw import ATTEMPTS, GRID, INTERPOLATIONS, Draw, Erase, Mix, draw_crop
from vitlab.distill.randaug_torchvision import BINS, OPS, SIGNED, magnitudes
from vitlab.errors import UserError
from vitlab.files import stable_dict

PROTOCOL = "reinforce-1"
VARIANTS = ("rrc", "mixing", "randaug", "randaug_mixing", "center")
PARTNERS = ("dataset", "batch")

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class Reinforcement:
    """What may be drawn for a stored view.

    ``variant``: rrc (crop and flip), mixing (and MixUp and CutMix), randaug (and RandAugment and erasing),
    randaug_mixing (all), center (the middle of the image, nothing random). ``crop_scale`` None: the whole image.
    ``pad``: instead of a resized crop, zero-pad the resized image and cut a random crop out of it (CIFAR); in pixels
    of the 224 grid. ``ops`` and ``magnitude``: of RandAugment, the latter an index below 31. ``erase_scale`` and
    ``erase_ratio``: range of area and of height to width. ``mixup`` and ``cutmix``: probabilities, drawn independently;
    both mixing ratios come from Beta(1, 1). ``crop_pct``: side of the middle to the short side (center only).
    ``partner``: of a mixed view, any image of the data set, or (``batch``, as in the official code) any of the
    ``partner_batch`` neighbours that are loaded together; the image itself is a candidate. ``odd``: signed arguments of
    ops other than those of ``magnitude``, in records imported from a released set. ``interpolation``: the filter that
    resizes the view; bilinear in the official code and in every store that does not state one.

    Raises:
        UserError: for a value outside its range; the message names ``method.views.<name>``.
    """

    variant: str = "randaug"
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int | None = None
    flip: float = 0.5
    ops: int = 2
    magnitude: int = 9
    erase: float = 0.25
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    mixup: float = 0.5
    cutmix: float = 0.5
    crop_pct: float = 0.875
    partner: str = "dataset"
    partner_batch: int = 4
    odd: tuple[tuple[str, float], ...] = ()
    interpolation: str = "bilinear"

    FIRST: ClassVar[tuple[str, ...]] = (
        *("variant", "crop_scale", "crop_ratio", "pad", "flip", "ops", "magnitude", "erase", "erase_scale"),
        *("erase_ratio", "mixup", "cutmix", "crop_pct", "partner", "partner_batch", "odd"),
    )
    """Never changed: stores of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "erase_scale", "erase_ratio"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(v) for v in value))
        object.__setattr__(self, "odd", tuple((str(name), float(value)) for name, value in self.odd))
        _check("partner", self.partner, self.partner in PARTNERS, " | ".join(PARTNERS))
        _check("partner_batch", self.partner_batch, self.partner_batch >= 1, "1 or more")
        _check("interpolation", self.interpolation, self.interpolation in INTERPOLATIONS, " | ".join(INTERPOLATIONS))
        _check("variant", self.variant, self.variant in VARIANTS, " | ".join(VARIANTS))
        for name, top in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("erase_scale", 1.0), ("erase_ratio", 1e9)):
            value = getattr(self, name)
            if value is not None:
                good = len(value) == 2 and 0 < value[0] <= value[1] <= top
                _check(name, list(value), good, f"[low, high] with 0 < low <= high{' <= 1' if top == 1 else ''}")
        for name in ("flip", "erase", "mixup", "cutmix"):
            value = getattr(self, name)
            _check(name, value, 0 <= value <= 1, "a probability in [0, 1]")
        _check("ops", self.ops, 1 <= self.ops <= 16, "1 to 16")
        _check("magnitude", self.magnitude, 0 <= self.magnitude < BINS, f"0 to {BINS - 1}")
        _check("crop_pct", self.crop_pct, 0 < self.crop_pct <= 1, "a number in (0, 1]")
        if self.pad is not None:
            _check("pad", self.pad, 0 <= self.pad <= 127, "0 to 127")

    @property
    def mixes(self) -> bool:
        """Whether another image may be mixed in."""
        return self.variant in ("mixing", "randaug_mixing")

    @property
    def augments(self) -> bool:
        """Whether RandAugment and erasing are on."""
        return self.variant in ("randaug", "randaug_mixing")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` gives an equal object back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in stable_dict(self).items()}
        # Fields added after the first stores are left out at their neutral value: older fingerprints stay valid.
        if self.partner == "dataset":
            del values["partner"], values["partner_batch"]
        values["odd"] = [list(one) for one in self.odd]
        return values if self.odd else {k: v for k, v in values.items() if k != "odd"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reinforcement:
        """The inverse of :meth:`to_dict`; an unknown field is a TypeError."""
        return cls(**values)

    def fingerprint(self) -> str:
        """sha256 hex of the fields and of the protocol: equal exactly when records have the same distribution."""
        text = json.dumps({"protocol": PROTOCOL, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def generator(seed: int, image: int, number: int) -> np.random.Generator:
    """The random numbers of one stored view: Philox with key (``seed``, 0) from the counter (0, 0, number, image)."""
    if min(seed, image, number) < 0:
        raise ValueError(f"seed, image and sample are 0 or more, got {(seed, image, number)}")
    # Philox counts up from the first word; the two words left at 0 keep the streams of two views from overlapping.
    counter = np.array([0, 0, number, image], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, 0], np.uint64)))


def sample(
    spec: Reinforcement, seed: int, image: int, number: int, images: int, size_of: Callable[[int], Size]
) -> Draw:
    """Sample ``number`` of ``image``: a function of its arguments alone.

    The partner of a mixed view is any of the ``images`` (or of its ``partner_batch``), itself included, with a draw of
    its own; ``size_of`` gives the size of an image and is called only for the images that are needed.
    """
    # One stream in a fixed order: the view itself, the mixing, the partner's index, the partner's view.
    rng = generator(seed, image, number)
    own = _draw_one(rng, spec, size_of(image))
    if not spec.mixes:
        return own
    ratio = rng.random() / 2 if rng.random() < spec.mixup else None
    cut = None
    if rng.random() < spec.cutmix:
        cut = rng.random()
        row, column = (int(rng.random() * GRID) for _ in range(2))
    if ratio is None and cut is None:
        return own
    first, many = 0, images
    if spec.partner == "batch":
        first = image // spec.partner_batch * spec.partner_batch
        many = min(spec.partner_batch, images - first)
    partner = first + min(int(rng.random() * many), many - 1)
    box = None if cut is None else cutmix_box(cut, row, column)
    other = _draw_one(rng, spec, size_of(partner))
    return dataclasses.replace(own, mix=Mix(ratio, box, GRID, partner, other, cut))


def cutmix_box(ratio: float, row: int, column: int, grid: int = GRID) -> tuple[int, int, int, int]:
    """(r1, c1, r2, c2) of a box of area 1 - ``ratio`` around (row, column), clipped to the grid."""
    half = int(grid * math.sqrt(1 - ratio)) // 2
    rows, columns = ((max(v - half, 0), min(v + half, grid)) for v in (row, column))
    return rows[0], columns[0], rows[1], columns[1]


def centre_crop(size: Size, crop_pct: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the square in the middle of an image, ``crop_pct`` of its short side."""
    width, height = size
    side = max(1, round(min(size) * crop_pct))
    return (height - side) // 2, (width - side) // 2, side, side


def _draw_one(rng: np.random.Generator, spec: Reinforcement, size: Size) -> Draw:
    """The draw of a single image, without mixing."""
    width, height = size
    if spec.variant == "center":
        return Draw(crop=centre_crop(size, spec.crop_pct), op_set="torchvision")
    crop: tuple[int, int, int, int] | None = None
    shift: tuple[int, int, int] | None = None
    if spec.pad is not None:
        top, left = (int(rng.random() * (2 * spec.pad + 1)) for _ in range(2))
        shift = spec.pad, top, left
    elif spec.crop_scale is not None:
        crop = draw_crop(rng, spec.crop_scale, spec.crop_ratio, width, height)
    else:
        crop = 0, 0, height, width
    flip = rng.random() < spec.flip
    if not spec.augments:
        return Draw(crop=crop, shift=shift, flip=flip, op_set="torchvision")
    ops = []
    table = magnitudes(spec.magnitude)
    for _ in range(spec.ops):
        number = int(rng.random() * len(OPS))
        value = table[number]
        if number in SIGNED and rng.random() < 0.5:
            value = -value
        ops.append((OPS[number], value))
    erase = _erase(rng, spec)
    return Draw(crop=crop, shift=shift, flip=flip, ops=tuple(ops), erase=erase, op_set="torchvision")


def _erase(rng: np.random.Generator, spec: Reinforcement) -> Erase | None:
    """A black box, or None: not chosen, or no fit in ten tries (where the official code blacks out the full view)."""
    if not rng.random() < spec.erase:
        return None
    low, high = spec.erase_scale
    ratio = math.log(spec.erase_ratio[0]), math.log(spec.erase_ratio[1])
    for _ in range(ATTEMPTS):
        area = (low + rng.random() * (high - low)) * GRID * GRID
        aspect = math.exp(ratio[0] + rng.random() * (ratio[1] - ratio[0]))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < GRID and 0 < w < GRID:
            top, left = int(rng.random() * (GRID - h + 1)), int(rng.random() * (GRID - w + 1))
            return Erase(top, left, h, w, "black")
    return None


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise UserError(f"method.views.{name}={value} is out of range:", f"expected {expected}.")
