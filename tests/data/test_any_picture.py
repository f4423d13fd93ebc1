"""Any picture file: audit, training and prediction read the same, or all of them refuse it by name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from PIL import Image

from tests import hunts
from tests.data.pictures import Picture, image, pictures
from vitlab.data.audit_files import SIDE, inspect_file
from vitlab.data.decode import Files, limit_pixels, read_rgb
from vitlab.distill.draw import Augmentation, draw
from vitlab.distill.views import EvalView, View
from vitlab.errors import UserError
from vitlab.modes.input_images import read_all

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL.TiffImagePlugin"
)  # of damaged files; limit_pixels does it outside

NEUTRAL = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
AUGMENTATION = Augmentation(8, crop_scale=(0.1, 1.0), flip=0.5, randaug="rand-m9-mstd0.5-inc1", erase=0.5)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = Image.MAX_IMAGE_PIXELS
    limit_pixels(178_956_970)
    yield tmp_path_factory.mktemp("pictures")
    Image.MAX_IMAGE_PIXELS = before


def check_picture(picture: Picture, folder: Path) -> None:
    """Read one file in three ways."""
    path = folder / f"picture{picture.suffix}"
    path.write_bytes(picture.data)
    found = inspect_file(path)  # the audit
    try:
        trained, _ = Files(folder, [path.name], [0], ["a"], "train")[0]
    except UserError as error:
        assert found.error and found.error in str(error) and str(path) in str(error)
        assert "\n" not in str(error)
        ((named, predicted),) = read_all([str(path)], workers=1)
        assert named == str(path) and str(predicted) == str(error)
        return
    assert not found.error
    turned = found.orientation in range(5, 9)
    assert trained.size == ((found.height, found.width) if turned else (found.width, found.height))
    assert trained.mode == "RGB" and found.frames >= 1
    if found.format != "JPEG":  # which an audit decodes at a smaller size
        assert found.thumbnail == trained.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    ((_, predicted),) = read_all([str(path)], workers=1)
    assert isinstance(predicted, Image.Image) and predicted.tobytes() == trained.tobytes()
    view = EvalView(8, 0.875, *NEUTRAL)(trained)
    fresh = View(8, *NEUTRAL)(trained, draw(AUGMENTATION, 7, *trained.size))
    assert view.shape == fresh.shape == (3, 8, 8)
    assert bool(torch.isfinite(view).all() and torch.isfinite(fresh).all())


@pytest.fixture(scope="module")
def here(folder: Path) -> Path:
    return folder


@hunts.quick(60)
@given(picture=pictures())
def test_some_pictures(here: Path, picture: Picture) -> None:
    check_picture(picture, here)


@hunts.slow
@hunts.complete(4000)
@given(picture=pictures())
def test_many_pictures(here: Path, picture: Picture) -> None:
    check_picture(picture, here)


# ------------------------------------------------------------------------------------------- found by the hunt


def saved(format: str, mode: str, orientation: int | None = None, frames: int = 1) -> bytes:
    """A file of 34 × 28 pixels."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    more = [image(mode, 34, 28, seed) for seed in range(1, frames)]
    options: dict[str, object] = {"save_all": True, "append_images": more} if more else {}
    image(mode, 34, 28, 0).save(buffer, format, exif=exif.tobytes(), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_the_stored_size_of_a_turned_picture(format: str, tmp_path: Path) -> None:
    """Pillow gives the upright size of a TIFF, and the stored one of every other format."""
    path = tmp_path / "a.tif"
    path.write_bytes(saved(format, "RGB", orientation=6))
    found = inspect_file(path)
    assert (found.width, found.height, found.orientation) == (34, 28, 6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_a_turned_tiff_is_turned(mode: str, tmp_path: Path) -> None:
    """Pillow maps plain TIFFs into memory when it opens them by name, and reads the turned width in every row."""
    for format in ("TIFF", "PNG"):
        (tmp_path / f"a.{format.lower()}").write_bytes(saved(format, mode, orientation=6))
    assert read_rgb(tmp_path / "a.tiff").tobytes() == read_rgb(tmp_path / "a.png").tobytes()


def test_a_damaged_second_page_is_not_a_damaged_picture(tmp_path: Path) -> None:
    """Only the first is read: the audit may not leave out what a training takes."""
    data, path = saved("TIFF", "P", frames=2), tmp_path / "a.tif"
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    second = int.from_bytes(data[first + 2 + 12 * entries :][:4], "little")
    path.write_bytes(data[:second] + bytes(len(data) - second))  # a page without width and height
    found = inspect_file(path)
    assert (found.error, found.frames, found.width) == ("", 2, 34)
    check_picture(Picture(path.read_bytes(), ".tif", "second page of zeros"), tmp_path)
