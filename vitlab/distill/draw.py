"""Every random choice of a training view, as a function of one seed; no pixel is touched here.

The draw protocol is that of TinyViT (arXiv 2207.10666, official code): one ``numpy.random.Generator(PCG64(seed))``
per view, read in a fixed order (crop, flips, RandAugment or colour jitter, erasing), and one more per mixed pair.
What a seed means must never change: it is pinned by ``tests/parity/test_tinyvit_draws.py``, since numpy does not
promise its generators across versions. Only the derivation of a seed, :func:`seed_of`, is vitlab's own.

A :class:`Draw` is the explicit result, the only input of :mod:`vitlab.distill.views` beside the image. It also holds
the draws of Dataset Reinforcement (arXiv 2303.08983), which stores explicit parameters instead of a seed: torchvision's
op set (``op_set="torchvision"``), black erasing, a padded crop (``shift``), a partner from anywhere in the data set
with a draw of its own, mixup and CutMix both at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.config.size import Size, hw
from vitlab.distill.randaug import draw_ops, parse_randaug
from vitlab.distill.randaug_torchvision import draw_torchvision_ops
from vitlab.errors import UserError
from vitlab.files import stable_dict

GRID = 224
"""Side of the reference grid on which erasing (and torchvision's translations) are drawn."""

ATTEMPTS = 10
"""Tries for a crop, or an erasing box, that fits, before the fallback."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
ERASE_MODES = ("pixel", "rand", "const", "black")
CROPS = ("auto", "center", "squash", "squash_crop")
"""What ``dataset.crop`` accepts: see :class:`vitlab.distill.views.EvalView`."""

_JITTER = ("brightness", "contrast", "saturation", "hue")
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Augmentation:
    """What may be drawn for a view of ``size``: the fields of ``config.AugmentationConfig`` and the size in pixels, a
    side or (height, width). ``crop_ratio`` is that of the crop in the image, as in torchvision, whatever the view's
    ratio.

    Raises:
        UserError: for a value outside its range; the message names ``recipe.augmentation.<field>``.
    """

    size: Size
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    vertical_flip: float = 0.0
    randaug: str | None = None
    color_jitter: tuple[float, ...] | None = None
    erase: float = 0.0
    erase_mode: str = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    interpolation: str = "bicubic"

    FIRST: ClassVar[tuple[str, ...]] = (
        *("size", "crop_scale", "crop_ratio", "flip", "vertical_flip", "randaug", "color_jitter"),
        *("erase", "erase_mode", "mixup", "cutmix", "mix_prob", "mix_switch", "interpolation"),
    )
    """Never changed: stores of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "color_jitter"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(v) for v in value))
        try:
            height, width = hw(self.size)
        except ValueError:
            raise UserError(
                f"A view of {self.size} pixels cannot be made:", "dataset.size must be 1 or more, or [height,width]."
            ) from None
        object.__setattr__(self, "size", height if height == width else (height, width))
        if self.crop_scale is not None:
            _check(
                "crop_scale", self.crop_scale, _ordered(self.crop_scale, 1.0), "[low, high] with 0 < low <= high <= 1"
            )
        _check("crop_ratio", self.crop_ratio, _ordered(self.crop_ratio, math.inf), "[low, high] with 0 < low <= high")
        for name in ("flip", "vertical_flip", "erase", "mix_prob", "mix_switch"):
            value = getattr(self, name)
            _check(name, value, 0 <= value <= 1, "a probability in [0, 1]")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "a Beta parameter >= 0 (0: off)")
        _check("erase_mode", self.erase_mode, self.erase_mode in ERASE_MODES, " | ".join(ERASE_MODES))
        _check("interpolation", self.interpolation, self.interpolation in INTERPOLATIONS, " | ".join(INTERPOLATIONS))
        if self.randaug is not None:
            parse_randaug(self.randaug)
        if self.color_jitter is not None:
            good = 3 <= len(self.color_jitter) <= 4 and all(v >= 0 for v in self.color_jitter)
            good = good and (len(self.color_jitter) < 4 or self.color_jitter[3] <= 0.5)
            _check(
                "color_jitter",
                self.color_jitter,
                good,
                "[brightness, contrast, saturation(, hue <= 0.5)], none negative",
            )
            if self.randaug is not None:
                raise UserError(
                    "recipe.augmentation.color_jitter is never run beside recipe.augmentation.randaug:",
                    "set one of the two to null.",
                )

    @property
    def mixes(self) -> bool:
        """Whether views are mixed in pairs (an unpaired view is then left unmixed)."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` gives an equal object back. A field that came after :attr:`FIRST` is left
        out where it is neutral."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in stable_dict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Augmentation:
        """The inverse of :meth:`to_dict`; an unknown field is a TypeError."""
        return cls(**values)

    def fingerprint(self) -> str:
        """sha256 hex of the fields and of the draw protocol: equal exactly when every seed means the same view.

        It stays what it is when a field with a neutral default is added, so that sealed stores are read for ever.
        """
        text = json.dumps({"protocol": "tinyvit-1", **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Erase:
    """A box (top, left, height, width) on a ``Draw.grid`` x ``Draw.grid`` view, and what fills it.

    ``mode``: ``pixel`` N(0, 1) noise per value and ``rand`` per channel, from MT19937(``seed``), ``const`` zeros,
    all three after normalisation; ``black`` zeros before it.
    """

    top: int
    left: int
    height: int
    width: int
    mode: str = "pixel"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Mix:
    """How a view is mixed with its partner: mixup first (``ratio`` is the view's own weight), then the CutMix box.

    ``box``: rows r1:r2 and columns c1:c2 as (r1, c1, r2, c2) on a view of size ``grid`` (a side, or height and width),
    pasted from the unmixed partner. ``partner``: index in the data set, None for the neighbour in the batch (pair 2t,
    2t+1; then both members get the same Mix). ``draw``: the partner's draw where it is not that of its own view.
    ``cut``: the ratio that ``box`` was drawn with, kept only for the record; no pixel depends on it.
    """

    ratio: float | None
    box: tuple[int, int, int, int] | None
    grid: Size
    partner: int | None = None
    draw: Draw | None = None
    cut: float | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """The parameters of one view, in the order in which they are applied.

    ``crop``: (top, left, height, width) in pixels of the source image, then resized to the view; None: the whole
    image. ``shift``: (pad, top, left) on the grid: zero-pad the resized view, then cut it out again. ``ops``: the
    executed RandAugment ops as (name, argument). ``jitter``: (brightness|contrast|saturation|hue, factor) in order
    of application. ``grid``: steps on each side of the view on which ``shift``, ``erase`` and pixel translations are
    counted; on a view that is no square a step down and a step across differ.
    """

    crop: tuple[int, int, int, int] | None = None
    flip: bool = False
    vertical_flip: bool = False
    ops: tuple[tuple[str, float], ...] = ()
    jitter: tuple[tuple[str, float], ...] = ()
    erase: Erase | None = None
    mix: Mix | None = None
    shift: tuple[int, int, int] | None = None
    op_set: str = "timm"  # whose ops the names in ``ops`` are: timm | torchvision (nearest) | torchvision_filtered
    grid: int = GRID


def seed_of(base_seed: int, slot: int, index: int) -> int:
    """The seed in [0, 2^31) of the view ``slot`` of image ``index``: a pure function of the three numbers.

    splitmix64's finaliser folded over the three numbers: h <- mix(h + word + 0x9E3779B97F4A7C15), h = 0 at first,
    words base_seed, slot, index; the upper 31 bits of the last h.
    """
    # The addend keeps zeros from being a fixed point: the finaliser maps 0 to 0.
    state = 0
    for word in (base_seed, slot, index):
        if not 0 <= word <= _MASK:
            raise ValueError(f"base_seed, slot and index must be in [0, 2^64), got {(base_seed, slot, index)}")
        state = _mix(state + word + _GOLDEN & _MASK)
    return state >> 33  # 31 bits, since stores hold a seed as a signed 32-bit integer


def seeds_of(base_seed: int, slot: ArrayLike, index: ArrayLike) -> NDArray[np.int32]:
    """:func:`seed_of` of many views at once; ``slot`` and ``index`` broadcast, integers >= 0. Returns int32."""
    if not 0 <= base_seed <= _MASK:
        raise ValueError(f"base_seed must be in [0, 2^64), got {base_seed}")
    slots, indices = np.asarray(slot), np.asarray(index)
    for words in (slots, indices):
        if words.dtype.kind not in "iu" or (words.size and words.min() < 0):
            raise ValueError("slot and index must be integers >= 0")
    start = _mix(base_seed + _GOLDEN & _MASK) + _GOLDEN & _MASK
    if slots.ndim == 0:
        state: np.uint64 | NDArray[np.uint64] = np.uint64(_mix(start + int(slots) & _MASK) + _GOLDEN & _MASK)
    else:
        state = _mix_array(slots.astype(np.uint64) + np.uint64(start)) + np.uint64(_GOLDEN)
    # At least one dimension: numpy arrays wrap around modulo 2^64, which is intended here; numpy scalars warn.
    state = _mix_array(np.atleast_1d(indices.astype(np.uint64)) + state)
    return (state >> np.uint64(33)).astype(np.int32).reshape(np.broadcast_shapes(slots.shape, indices.shape))


def draw(aug: Augmentation, seed: int, width: int, height: int) -> Draw:
    """All choices for one view of a ``width`` x ``height`` image, except mixing (:func:`draw_mix`)."""
    # The order of these draws is the protocol: one more or one fewer changes the meaning of every stored seed. A choice
    # that is switched off draws nothing.
    rng = np.random.Generator(np.random.PCG64(seed))
    crop = draw_crop(rng, aug.crop_scale, aug.crop_ratio, width, height) if aug.crop_scale is not None else None
    flip = aug.flip > 0 and rng.random() < aug.flip
    vertical_flip = aug.vertical_flip > 0 and rng.random() < aug.vertical_flip
    ops: tuple[tuple[str, float], ...] = ()
    jitter: tuple[tuple[str, float], ...] = ()
    op_set = "timm"
    if aug.randaug is not None:
        spec = parse_randaug(aug.randaug)
        if spec.op_set == "torchvision":
            op_set, ops = "torchvision_filtered", draw_torchvision_ops(rng, int(spec.magnitude), spec.count)
        else:
            ops = draw_ops(rng, spec)
    elif aug.color_jitter is not None:
        jitter = _draw_jitter(rng, aug.color_jitter)
    erase = _draw_erase(rng, aug.erase, aug.erase_mode) if aug.erase > 0 else None
    return Draw(crop, flip, vertical_flip, ops, jitter, erase, op_set=op_set)


def draw_mix(aug: Augmentation, seed_a: int, seed_b: int, height: int, width: int) -> Mix | None:
    """How the pair of views with these two seeds is mixed (mode ``pair2``); None: not at all. Symmetric in the seeds.

    Both members get the same Mix. ``height`` and ``width``: of the views.
    """
    if not aug.mixes:
        return None
    # XOR is symmetric: both members of a pair compute the same Mix, each in its own loader process if need be.
    rng = np.random.Generator(np.random.PCG64(seed_a ^ seed_b))
    if not rng.random() < aug.mix_prob:
        return None
    grid: Size = width if height == width else (height, width)
    # Drawn only where both kinds are on, as in the official code; otherwise the numbers after it would shift.
    cut = aug.cutmix > 0 if aug.mixup == 0 or aug.cutmix == 0 else rng.random() < aug.mix_switch
    if not cut:
        return Mix(float(rng.beta(aug.mixup, aug.mixup)), None, grid)
    lam = rng.beta(aug.cutmix, aug.cutmix)
    side = math.sqrt(1 - lam)
    h, w = int(height * side), int(width * side)
    y, x = _randint(rng, 0, height - 1), _randint(rng, 0, width - 1)
    # Clipping at the border shrinks the box below an area of 1 - lam: views.mix_weight uses the clipped box.
    rows = max(y - h // 2, 0), min(y + h // 2, height)
    columns = max(x - w // 2, 0), min(x + w // 2, width)
    return Mix(None, (rows[0], columns[0], rows[1], columns[1]), grid)


def draw_crop(
    rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float], width: int, height: int
) -> tuple[int, int, int, int]:
    """Random resized crop: (top, left, height, width); a centred crop of an allowed ratio after ten misses."""
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        area = _uniform(rng, *scale) * width * height
        aspect = math.exp(_uniform(rng, *log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _randint(rng, 0, height - h), _randint(rng, 0, width - w), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_jitter(rng: np.random.Generator, amounts: tuple[float, ...]) -> tuple[tuple[str, float], ...]:
    """Colour jitter: factors in the order brightness, contrast, saturation(, hue), then the order to apply them in."""
    factors = []
    for name, amount in zip(_JITTER, amounts, strict=False):
        low, high = (-amount, amount) if name == "hue" else (max(0.0, 1 - amount), 1 + amount)
        factors.append((name, _uniform(rng, low, high)))
    return tuple(factors[i] for i in rng.permutation(len(factors)).tolist())


def _draw_erase(rng: np.random.Generator, prob: float, mode: str) -> Erase | None:
    """One box on the 224 grid, or None: not chosen, or no fit in ten tries."""
    if rng.random() > prob:
        return None
    # timm's ranges; a black box is torchvision's.
    largest, widest = (0.33, 3.3) if mode == "black" else (1 / 3, 1 / 0.3)
    log_ratio = math.log(0.3), math.log(widest)
    for _ in range(ATTEMPTS):
        area = _uniform(rng, 0.02, largest) * GRID * GRID
        aspect = math.exp(_uniform(rng, *log_ratio))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < GRID and h < GRID:
            top, left = _randint(rng, 0, GRID - h), _randint(rng, 0, GRID - w)
            seed = _randint(rng, 0, 1 << 30) if mode in ("pixel", "rand") else 0
            return Erase(top, left, h, w, mode, seed)
    return None


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return rng.random() * (high - low) + low


def _randint(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in [low, high], both ends included."""
    return min(int(rng.random() * (high - low + 1)) + low, high)


def _mix(word: int) -> int:
    """splitmix64's finaliser."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK
    return word ^ word >> 31


def _mix_array(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


def _ordered(pair: tuple[float, ...], top: float) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= top


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"recipe.augmentation.{name}={shown} is out of range:", f"expected {expected}.")
