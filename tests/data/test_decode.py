"""Files become what a person sees."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from vitlab.compose.load import load
from vitlab.data.audit_files import inspect_file
from vitlab.data.decode import EXTENSIONS, Files, limit_pixels, read_rgb, to_rgb
from vitlab.errors import UserError


def reopened(image: Image.Image, format: str = "PNG", **options: Any) -> Image.Image:
    """The image as a file holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def pixel(image: Image.Image) -> tuple[int, ...]:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    value = rgb.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 0x80FF), (128, 128, 128)),
        (Image.new("RGB", (4, 4), (1, 200, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 200, 3)),
    ],
)
def test_png_modes(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixel(reopened(image)) == expected


def test_transparent_palette_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    assert pixel(reopened(image, transparency=0)) == (255, 255, 255)
    assert pixel(reopened(image, "GIF")) == (9, 9, 9)


def test_cmyk_jpeg() -> None:
    red, green, blue = pixel(reopened(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240 and green < 15 and blue < 15


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="unstated range"):
        to_rgb(reopened(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((30, 20, 3), np.uint8)
    upright[:10, :10] = 255  # a mark in the upper left corner: no two orientations look the same with the shape
    upright[:10, 10:, 0] = 255
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(upright) if inverse is None else Image.fromarray(upright).transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (np.asarray(to_rgb(reopened(stored, exif=exif))) == upright).all()


def test_published_sets_ignore_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    sizes = {upright: Files(tmp_path, ["a.jpg"], [0], ["a"], "train", upright)[0][0].size for upright in (True, False)}
    assert sizes == {True: (10, 20), False: (20, 10)}


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.jpg cannot be read"):
        Files(tmp_path, ["bad.jpg"], [0], ["a"], "train")[0]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    for upright in (True, False):
        with pytest.raises(UserError, match=r"cut\.jpg cannot be read"):
            Files(tmp_path, ["cut.jpg"], [0], ["a"], "train", upright)[0]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".apng", ".tga", ".jpx", ".pnm", ".dib"])
def test_formats_that_pillow_reads_are_images(tmp_path: Path, suffix: str) -> None:
    """As browsers and cameras name them; in a folder they counted as foreign, without a word."""
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    Image.new("RGB", (8, 6), (250, 0, 0)).save(tmp_path / f"a{suffix}")
    assert suffix in EXTENSIONS and read_rgb(tmp_path / f"a{suffix}").size == (8, 6)
    assert inspect_file(tmp_path / f"a{suffix}").error == ""


def test_heic_names_its_package(tmp_path: Path) -> None:
    """Not "not an image": with the package it is read."""
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(UserError, match=r'HEIC needs the package pillow-heif: pip install "vitlab\[heic\]"\)'):
            read_rgb(path)
        assert "pip install" in inspect_file(path).error
        return
    from pillow_heif import register_heif_opener

    register_heif_opener()
    Image.new("RGB", (32, 16), (250, 0, 0)).save(path)
    assert read_rgb(path).size == (32, 16) and inspect_file(path).format == "HEIF"


def test_the_limit_of_pixels_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large sound picture is not to be repaired: the message names the key."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "wide.png"
    Image.new("RGB", (300, 20)).save(path)
    with warnings.catch_warnings():
        limit_pixels(5998)
        with pytest.raises(UserError, match=r"more than 5,998 pixels; if it is sound, raise dataset\.max_pixels"):
            read_rgb(path)
        refused = inspect_file(path)
        assert "dataset.max_pixels" in refused.error and refused.size != path.stat().st_size  # not cached
        limit_pixels(6000)
        assert read_rgb(path).size == (300, 20) and inspect_file(path).error == ""
    assert load(["dataset.max_pixels=1000000"]).config.dataset.max_pixels == 10**6
