"""The image operations of RandAugment and colour jitter on PIL images, under the names that a Draw uses.

Two families share some names and differ in pixels: timm's increasing set (bicubic, filled with the mean colour,
translations relative to the side) and torchvision's (nearest, filled with black, translations in pixels).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_TORCHVISION_FILTERS = {filter: name for name, filter in RESAMPLING.items()}
Fill = tuple[int, int, int]


def timm_op(image: Image.Image, name: str, argument: float, resampling: Image.Resampling, fill: Fill) -> Image.Image:
    """Apply one op of timm's increasing set (the argument is final: degrees, bits, threshold, factor, share of side).

    Raises:
        ValueError: for a name outside the set.
    """
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(argument, resample=resampling, fillcolor=fill)
        case "PosterizeIncreasing":
            return _posterize(image, int(argument))
        case "SolarizeIncreasing":
            return ImageOps.solarize(image, int(argument))
        case "SolarizeAdd":
            table = [min(255, v + int(argument)) if v < 128 else v for v in range(256)]
            return image.point(table * len(image.getbands()))
        case "ColorIncreasing":
            return ImageEnhance.Color(image).enhance(argument)
        case "ContrastIncreasing":
            return ImageEnhance.Contrast(image).enhance(argument)
        case "BrightnessIncreasing":
            return ImageEnhance.Brightness(image).enhance(argument)
        case "SharpnessIncreasing":
            return ImageEnhance.Sharpness(image).enhance(argument)
        case "ShearX":
            return _affine(image, (1, argument, 0, 0, 1, 0), resampling, fill)
        case "ShearY":
            return _affine(image, (1, 0, 0, argument, 1, 0), resampling, fill)
        case "TranslateXRel":
            return _affine(image, (1, 0, argument * image.width, 0, 1, 0), resampling, fill)
        case "TranslateYRel":
            return _affine(image, (1, 0, 0, 0, 1, argument * image.height), resampling, fill)
    raise ValueError(f"'{name}' is not an op of the timm set")


def torchvision_op(
    image: Image.Image, name: str, magnitude: float, grid: int, resampling: Image.Resampling = Image.Resampling.NEAREST
) -> Image.Image:
    """Apply one op of torchvision's RandAugment (no fill), as ``RandAugment`` itself does on a PIL image.

    ``resampling``: the filter that moves pixels, by default torchvision's own.

    ``magnitude`` is signed; translations count pixels of a ``grid``-pixel side and are scaled to the image's, rounded
    (unchanged when the image has that side).

    Raises:
        ValueError: for a name outside the set.
    """
    from torchvision.transforms import functional as F  # heavy, and only this op set needs it

    def affine(translate: list[int], shear: list[float]) -> Image.Image:
        mode = _TORCHVISION_FILTERS[resampling]
        centre = [0, 0] if any(shear) else None
        return F.affine(image, 0.0, translate, 1.0, shear, F.InterpolationMode(mode), center=centre)

    def pixels(side: int) -> int:
        return _pixels(magnitude, side, grid)

    match name:
        case "Identity":
            return image
        case "ShearX":
            return affine([0, 0], [math.degrees(math.atan(magnitude)), 0.0])
        case "ShearY":
            return affine([0, 0], [0.0, math.degrees(math.atan(magnitude))])
        case "TranslateX":
            return affine([pixels(image.width), 0], [0.0, 0.0])
        case "TranslateY":
            return affine([0, pixels(image.height)], [0.0, 0.0])
        case "Rotate":
            return image.rotate(magnitude, resample=resampling)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(1.0 + magnitude)
        case "Color":
            return ImageEnhance.Color(image).enhance(1.0 + magnitude)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(1.0 + magnitude)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(1.0 + magnitude)
        case "Posterize":
            return _posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]  # compares, so 178.5 is exact
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
    raise ValueError(f"'{name}' is not an op of the torchvision set")


def torchvision_tensor_op(image: Tensor, name: str, magnitude: float, grid: int) -> Tensor:
    """The same op on a uint8 tensor [3, H, W], as the official code made the inputs of its teachers.

    Rotate, Color, Contrast, Sharpness and AutoContrast differ from Pillow's in some pixels, mostly by one level.

    Raises:
        ValueError: for a name outside the set.
    """
    from torchvision.transforms import functional as F

    height, width = image.shape[-2:]
    match name:
        case "Identity":
            return image
        case "ShearX":
            return F.affine(image, 0.0, [0, 0], 1.0, [math.degrees(math.atan(magnitude)), 0.0], center=[0, 0])
        case "ShearY":
            return F.affine(image, 0.0, [0, 0], 1.0, [0.0, math.degrees(math.atan(magnitude))], center=[0, 0])
        case "TranslateX":
            return F.affine(image, 0.0, [_pixels(magnitude, width, grid), 0], 1.0, [0.0, 0.0])
        case "TranslateY":
            return F.affine(image, 0.0, [0, _pixels(magnitude, height, grid)], 1.0, [0.0, 0.0])
        case "Rotate":
            return F.rotate(image, magnitude)
        case "Brightness":
            return F.adjust_brightness(image, 1.0 + magnitude)
        case "Color":
            return F.adjust_saturation(image, 1.0 + magnitude)
        case "Contrast":
            return F.adjust_contrast(image, 1.0 + magnitude)
        case "Sharpness":
            return F.adjust_sharpness(image, 1.0 + magnitude)
        case "Posterize":
            return F.posterize(image, int(magnitude))
        case "Solarize":
            return F.solarize(image, magnitude)
        case "AutoContrast":
            return F.autocontrast(image)
        case "Equalize":
            return F.equalize(image)
    raise ValueError(f"'{name}' is not an op of the torchvision set")


def _pixels(magnitude: float, side: int, grid: int) -> int:
    """A translation counted on a ``grid``-pixel side, in pixels of this one."""
    return int(magnitude) if side == grid else round(int(magnitude) * side / grid)


def jitter_op(image: Image.Image, name: str, factor: float) -> Image.Image:
    """Scale brightness, contrast or saturation by ``factor``, or rotate the hue by ``factor`` of a full circle.

    Raises:
        ValueError: for another name.
    """
    match name:
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(factor)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(factor)
        case "saturation":
            return ImageEnhance.Color(image).enhance(factor)
        case "hue":
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # wraps around, as an angle does
            return Image.fromarray(hsv, "HSV").convert(image.mode)
    raise ValueError(f"'{name}' is not a colour jitter")


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the upper ``bits`` of each value. Zero bits give black, where newer Pillow raises."""
    return ImageOps.posterize(image, bits) if bits > 0 else image.point([0] * 256 * len(image.getbands()))


def _affine(
    image: Image.Image,
    matrix: tuple[float, float, float, float, float, float],
    resampling: Image.Resampling,
    fill: Fill,
) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=fill)
