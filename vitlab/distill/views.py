"""Apply a Draw to the pixels of an image. Nothing random is drawn here.

The order is that of both papers: crop, resize, (shift,) flips, ops or jitter, to tensor, normalise, erase, mix.
Image operations run on PIL images, so that a view is bit-identical to that of the official TinyViT pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitlab.config.size import Size, hw, plain_size
from vitlab.distill.draw import CROPS, Draw, Erase, Mix
from vitlab.distill.ops import RESAMPLING, Fill, jitter_op, timm_op, torchvision_op, torchvision_tensor_op

BACKENDS = ("pil", "tensor")


class CropOutside(ValueError):
    """A crop that does not lie inside its image: it was drawn for another one."""


class View:
    """Makes training views of ``size`` pixels (a side, or height and width), normalised with ``mean`` and ``std``
    (per RGB channel).

    ``interpolation`` (nearest, bilinear, bicubic) resizes the crop, with antialiasing, and moves pixels in the
    geometric ops of timm's set, and of torchvision's in views that are not stored; ``fill`` is the colour (0-255) of
    the pixels that timm's uncover, by default the mean's.
    ``backend``: what torchvision's ops run on, PIL images or uint8 tensors; everything else is the same for both.
    """

    def __init__(
        self,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        fill: Fill | None = None,
        backend: str = "pil",
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"the backend is {' or '.join(BACKENDS)}, got {backend!r}")
        self.backend = backend
        self.size = plain_size(size)
        self.height, self.width = hw(size)
        self.resampling = RESAMPLING[interpolation]
        self.normalise = _Normalise(mean, std)
        self.fill = fill if fill is not None else _mean_colour(mean)

    def __call__(self, image: Image.Image, draw: Draw, out: Tensor | None = None) -> Tensor:
        """The view [3, H, W] float32 of an RGB ``image``; ``draw.mix`` is left to :meth:`mix`.

        ``out``: written and returned where given (a row of a batch saves a copy).

        Raises:
            CropOutside: the crop does not lie inside the image.
        """
        if draw.crop is not None:
            top, left, height, width = draw.crop
            if top < 0 or left < 0 or top + height > image.height or left + width > image.width:
                raise CropOutside(f"crop {draw.crop} is outside the image of {image.width} x {image.height} pixels")
            image = image.crop((left, top, left + width, top + height))
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), self.resampling)
        if draw.shift is not None:
            image = self._shift(image, draw.shift, draw.grid)
        if draw.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draw.vertical_flip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        pixels: Tensor | None = None
        if draw.ops and draw.op_set == "torchvision" and self.backend == "tensor":
            pixels = to_tensor(image)
            for name, argument in draw.ops:
                pixels = torchvision_tensor_op(pixels, name, argument, draw.grid)
            if draw.jitter:
                raise ValueError("colour jitter does not follow torchvision's ops on tensors")
        else:
            for name, argument in draw.ops:
                if draw.op_set == "timm":
                    image = timm_op(image, name, argument, self.resampling, self.fill)
                elif draw.op_set == "torchvision_filtered":
                    image = torchvision_op(image, name, argument, draw.grid, self.resampling)
                else:
                    image = torchvision_op(image, name, argument, draw.grid)
        for name, factor in draw.jitter:
            image = jitter_op(image, name, factor)
        view = self.normalise(image if pixels is None else pixels, out)
        if draw.erase is not None:
            self._erase(view, draw.erase, draw.grid)
        return view

    def mix(self, anchor: Tensor, partner: Tensor, mix: Mix) -> Tensor:
        """The view ``anchor`` [C, H, W] with ``partner`` mixed in; both are left as they are.

        In a pair each member is the other's partner: call it twice, with the unmixed views.
        """
        # Mixup first, then the box from the unmixed partner: with both, the box holds the partner alone.
        mixed = anchor.clone() if mix.ratio is None else anchor * mix.ratio + partner * (1 - mix.ratio)
        if mix.box is not None:
            r1, c1, r2, c2 = scale_box(mix.box, mix.grid, self.size)
            mixed[:, r1:r2, c1:c2] = partner[:, r1:r2, c1:c2]
        return mixed

    def _shift(self, image: Image.Image, shift: tuple[int, int, int], grid: int) -> Image.Image:
        pad, top, left = shift
        down, right = round(pad * self.height / grid), round(pad * self.width / grid)
        top, left = round(top * self.height / grid), round(left * self.width / grid)
        padded = ImageOps.expand(image, (right, down), fill=0)
        return padded.crop((left, top, left + self.width, top + self.height))

    def _erase(self, view: Tensor, erase: Erase, grid: int) -> None:
        top = min(round(erase.top * self.height / grid), self.height - 1)
        left = min(round(erase.left * self.width / grid), self.width - 1)
        height = min(round(erase.height * self.height / grid), self.height - top)
        width = min(round(erase.width * self.width / grid), self.width - left)
        area = view[:, top : top + height, left : left + width]
        if erase.mode == "black":
            area.copy_(self.normalise.black)
        elif erase.mode == "const":
            area.zero_()
        elif erase.mode in ("pixel", "rand"):
            shape = area.shape if erase.mode == "pixel" else (area.shape[0], 1, 1)
            # Noise after normalisation, of the view's size: a seed gives other pixels at another resolution.
            noise = np.random.Generator(np.random.MT19937(erase.seed)).normal(size=tuple(shape))
            area.copy_(torch.from_numpy(noise))
        else:
            raise ValueError(f"'{erase.mode}' is not a way to erase")


class EvalView:
    """The view of evaluation: a test image, resized and cropped as ``crop`` specifies.

    ``center``: short side to int(size / crop_pct), then a centre crop; for a ``size`` of (height, width) the image is
    resized, keeping its ratio, until it just covers both divided by crop_pct, as in timm. ``squash``: both sides
    resized to ``size``, nothing is cut. ``squash_crop``: both sides resized to int(side / crop_pct), then a centre crop
    (timm's ``squash`` with a crop_pct below 1). ``auto``: squash where crop_pct is 1 or more, else center; this is the
    official TinyViT's rule (0.875 at 224 px, 1 at 384 and 512). timm's record of a model states which its
    numbers used.
    """

    def __init__(
        self,
        size: Size,
        crop_pct: float,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        crop: str = "auto",
    ) -> None:
        if not crop_pct > 0:
            raise ValueError(f"crop_pct must be above 0, got {crop_pct}")
        if crop not in CROPS:
            raise ValueError(f"crop is one of {', '.join(CROPS)}, got {crop!r}")
        self.size = plain_size(size)
        self.height, self.width = hw(size)
        self.crop_pct = crop_pct
        self.squash = crop == "squash" or (crop == "auto" and crop_pct >= 1)
        self.squash_crop = crop == "squash_crop"
        self.interpolation = interpolation
        self.resampling = RESAMPLING[interpolation]
        self.normalise = _Normalise(mean, std)

    def __str__(self) -> str:
        """Description printed in the report beside a number: two conventions differ by a tenth of a percent or more."""
        if self.squash:
            return f"resized to {self.height} × {self.width}, nothing cut, {self.interpolation}"
        first = f"short side {int(self.height / self.crop_pct)}"
        if self.squash_crop:
            first = f"resized to {int(self.height / self.crop_pct)} × {int(self.width / self.crop_pct)}"
        elif self.height != self.width:
            covered = " × ".join(str(int(side / self.crop_pct)) for side in (self.height, self.width))
            first = f"resized to cover {covered}"
        cut = f"centre crop {self.height} × {self.width} (crop {self.crop_pct:g})"
        return f"{first}, {cut}, {self.interpolation}"

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """The view [3, H, W] float32 of an RGB ``image``, written into ``out`` where given."""
        return self.normalise(self.cut(image), out)

    def cut(self, image: Image.Image) -> Image.Image:
        """The pixels that the network sees of an RGB ``image``, height x width."""
        resized, (left, top) = self._resized(*image.size)
        if image.size != resized:
            image = image.resize(resized, self.resampling)
        if self.squash:
            return image
        return image.crop((left, top, left + self.width, top + self.height))

    def box(self, width: int, height: int) -> ViewBox:
        """The part of an image of ``width`` x ``height`` pixels that the view shows."""
        (wide, high), (left, top) = self._resized(width, height)
        across, down = width / wide, height / high  # image pixels per view pixel
        return ViewBox(
            left * across, top * down, (left + self.width) * across, (top + self.height) * down, self.height, self.width
        )

    def _resized(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the resized image, (width, height), and corner of the crop in it, (left, top)."""
        if self.squash:
            return (self.width, self.height), (0, 0)
        if self.squash_crop:
            wide, high = int(self.width / self.crop_pct), int(self.height / self.crop_pct)
        elif self.height == self.width:
            short = int(self.width / self.crop_pct)
            wide, high = (
                (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
            )
        else:
            scale = min(height / int(self.height / self.crop_pct), width / int(self.width / self.crop_pct))
            wide, high = round(width / scale), round(height / scale)
        return (wide, high), (round((wide - self.width) / 2), round((high - self.height) / 2))


@dataclass(frozen=True)
class ViewBox:
    """The part of an image that a view shows, and the affine map between the two.

    ``left`` .. ``bottom``: edges of the part, in pixels of the image; its upper left corner is (0, 0), so the centre
    of its first pixel is (0.5, 0.5). ``height`` and ``width``: of the view, in its own pixels. Points are (x, y).
    """

    left: float
    top: float
    right: float
    bottom: float
    height: int
    width: int

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """Image coordinates of a point of the view."""
        across, down = (self.right - self.left) / self.width, (self.bottom - self.top) / self.height
        return self.left + x * across, self.top + y * down

    def to_view(self, x: float, y: float) -> tuple[float, float]:
        """View coordinates of a point of the image; outside the view where it was cut away."""
        across, down = (self.right - self.left) / self.width, (self.bottom - self.top) / self.height
        return (x - self.left) / across, (y - self.top) / down


def scale_box(box: tuple[int, int, int, int], grid: Size, size: Size) -> tuple[int, int, int, int]:
    """A box drawn on a view of size ``grid`` on one of ``size``, rounded; itself where they are equal."""
    (rows, columns), (height, width) = hw(grid), hw(size)
    if (rows, columns) == (height, width):
        return box
    r1, c1, r2, c2 = box
    return (
        round(r1 * height / rows),
        round(c1 * width / columns),
        round(r2 * height / rows),
        round(c2 * width / columns),
    )


def mix_weight(mix: Mix, size: Size) -> float:
    """The view's own share of a mixed view of ``size`` pixels: mixup ratio times the area outside the CutMix box."""
    weight = 1.0 if mix.ratio is None else mix.ratio
    if mix.box is not None:
        r1, c1, r2, c2 = scale_box(mix.box, mix.grid, size)
        height, width = hw(size)
        weight *= 1 - (r2 - r1) * (c2 - c1) / (height * width)
    return weight


class _Normalise:
    """An RGB image, or its levels, to [3, H, W] float32: (v / 255 - mean) / std in the usual rounding steps."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got {list(mean)} and {list(std)}")
        self.mean = torch.tensor(list(mean), dtype=torch.float32).reshape(3, 1, 1)
        self.std = torch.tensor(list(std), dtype=torch.float32).reshape(3, 1, 1)
        self.black = (0 - self.mean) / self.std

    def __call__(self, image: Image.Image | Tensor, out: Tensor | None = None) -> Tensor:
        pixels = image if isinstance(image, Tensor) else to_tensor(image)
        view = out.copy_(pixels) if out is not None else pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return view.div_(255).sub_(self.mean).div_(self.std)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, H, W].

    Raises:
        ValueError: for another mode.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, got mode {image.mode}")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _mean_colour(mean: Sequence[float]) -> Fill:
    red, green, blue = (min(255, round(255 * v)) for v in mean)
    return red, green, blue
