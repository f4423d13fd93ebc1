"""Picture files as they occur: format × mode × depth × orientation × damage."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from PIL import Image

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "JPEG": (".jpg", ("RGB", "L", "CMYK")),
    "PNG": (".png", ("RGB", "RGBA", "L", "LA", "P", "P+", "1", "I;16", "RGB+")),
    "GIF": (".gif", ("P", "P+", "RGB", "L", "1")),
    "BMP": (".bmp", ("RGB", "L", "P", "1", "RGBA")),
    "TIFF": (".tif", ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "I", "LAB", "YCbCr")),
    "WEBP": (".webp", ("RGB", "RGBA")),
    "PPM": (".ppm", ("RGB", "L", "1", "I;16")),
    "TGA": (".tga", ("RGB", "RGBA", "L", "P")),
    "JPEG2000": (".jp2", ("RGB", "RGBA", "L", "LA", "I;16")),
    "AVIF": (".avif", ("RGB", "RGBA")),
}
"""Pillow's name → suffix and the modes that it stores; ``+``: with a transparent colour."""

ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")


@dataclass(frozen=True)
class Picture:
    """A file.

    Attributes:
        data: its bytes.
        suffix: of its name.
        what: in words.
    """

    data: bytes
    suffix: str
    what: str

    def __repr__(self) -> str:  # the bytes tell nothing
        return f"Picture({self.what}, {len(self.data)} bytes, {self.suffix})"


def image(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours with noise, in a mode of Pillow; ``+``: with a transparent colour."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 4))
    pixels = (ramp + generator.integers(0, 50, (height, width, 4))).astype(np.uint8)
    plain = mode.removesuffix("+")
    if plain == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if plain in ("I", "F"):
        return Image.fromarray(pixels[..., 0].astype(np.int32 if plain == "I" else np.float32))
    colours = Image.fromarray(pixels, "RGBA")
    if plain == "P":
        return colours.convert("RGB").quantize(16)
    if plain in ("LAB", "CMYK", "YCbCr"):
        size = (height, width, 4 if plain == "CMYK" else 3)
        return Image.frombytes(plain, (width, height), pixels[..., : size[2]].tobytes())
    return colours.convert(plain) if plain != "LA" else colours.convert("LA")


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """A file, sound or damaged."""
    format = draw(st.sampled_from(sorted(FORMATS)))
    suffix, modes = FORMATS[format]
    mode = draw(st.sampled_from(modes))
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 40))
    if draw(st.booleans()):
        width, height = height, width
    options: dict[str, object] = {}
    what = [format, mode, f"{width}x{height}"]
    if mode.endswith("+"):
        options["transparency"] = (200, 200, 200) if mode.startswith("RGB") else 3
    first = image(mode, width, height, draw(st.integers(0, 99)))
    orientation = draw(st.sampled_from([None, None, *range(0, 10), 99, 65535]))
    if orientation is not None and format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes() if draw(st.booleans()) or format == "TIFF" else exif.tobytes()[:-2]
        what.append(f"orientation {orientation}")
    if format in ANIMATED and not mode.endswith("+") and draw(st.sampled_from([False, False, True])):
        more = [image(mode, width, height, seed) for seed in range(draw(st.integers(1, 3)))]
        options |= {"save_all": True, "append_images": more}
        what.append(f"{len(more) + 1} frames")
    if format == "JPEG":
        options |= {"quality": draw(st.sampled_from([1, 50, 100])), "progressive": draw(st.booleans())}
    if format == "TIFF" and mode in ("RGB", "L", "CMYK") and orientation in (None, *range(1, 9)):
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "packbits", "jpeg"]))
    buffer = io.BytesIO()
    first.save(buffer, format, **options)
    data, damage = draw(_damaged(buffer.getvalue(), format))
    other = draw(st.sampled_from([None, None, None, ".jpg", ".png", ".JPEG", ".gif", ".heic", ".qoi", ".webp"]))
    return Picture(data, other or suffix, ", ".join([*what, damage]))


@st.composite
def _damaged(draw: st.DrawFn, data: bytes, format: str) -> tuple[bytes, str]:
    kind = draw(st.sampled_from(["sound", "sound", "cut", "cut", "flips", "flips", "zeros", "added", "empty", "huge"]))
    if kind == "cut":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at], f"cut at {at}"
    if kind == "flips":
        changed = bytearray(data)
        for at in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed), "flipped bits"
    if kind == "zeros":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes(len(data) - at), f"zeros from {at}"
    if kind == "added":
        return data + draw(st.binary(min_size=1, max_size=40)), "more bytes at the end"
    if kind == "empty":
        return draw(
            st.sampled_from([b"", b"\0", b"not a picture", b"<html>", b"\xff\xd8\xff", b"GIF89a", b"BM"])
        ), "empty"
    if kind == "huge":
        return _huge(data, format, draw(st.sampled_from([20_000, 65_500, 2**31 - 1])))
    return data, "sound"


def _huge(data: bytes, format: str, side: int) -> tuple[bytes, str]:
    """The file with a header that claims ``side`` × ``side`` pixels."""
    if format == "PNG":
        head = data[12:16] + struct.pack(">II", side, side) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:], f"header of {side} pixels a side"
    if format == "GIF":
        return data[:6] + struct.pack("<HH", 65_500, 65_500) + data[10:], "header of 65500 pixels a side"
    if format == "BMP":
        return data[:18] + struct.pack("<ii", side, side) + data[26:], f"header of {side} pixels a side"
    if format == "JPEG":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return data[: at + 5] + struct.pack(">HH", 65_500, 65_500) + data[at + 9 :], "header of 65500 pixels a side"
    if format == "PPM":
        return b"P6\n%d %d\n255\n" % (side, side) + data[20:], f"header of {side} pixels a side"
    return data, "sound"
