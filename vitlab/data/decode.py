"""Image files to RGB, as an image viewer shows them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vitlab.data.sources import Labels, Strings
from vitlab.errors import UserError

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # a line for each file; the exception says it too

HEIF = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
"""Suffixes of HEIC pictures, which Pillow reads with the package pillow-heif."""

EXTENSIONS = HEIF | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
}
"""Suffixes (lower case) that count as an image: the raster formats that Pillow decodes by itself, and HEIC. Every other
file is foreign."""


def limit_pixels(pixels: int) -> None:
    """Refuse images of more than ``pixels`` in this process and those that it forks, without Pillow's warnings."""
    Image.MAX_IMAGE_PIXELS = max(pixels // 2, 1)  # Pillow warns from here on, and refuses twice as many
    # Of damaged EXIF and the like: what cannot be read is an error of its own, which names the file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class NeedsPackageError(Exception):
    """A format that Pillow reads only with a package that is not installed; the text names it."""


def register_format(path: str | Path) -> None:
    """Have Pillow know the format of ``path``, judged by its suffix.

    Raises:
        NeedsPackageError: an HEIC picture without pillow-heif.
    """
    if Path(path).suffix.lower() in HEIF and not _register_heif():
        raise NeedsPackageError('HEIC needs the package pillow-heif: pip install "vitlab[heic]"')


@cache
def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits, upright.

    The EXIF orientation is applied; transparent pixels lie on white; 16-bit grey keeps its upper byte; palette, grey,
    CMYK and the other modes are converted by Pillow. Of an animation this is the first frame.

    Raises:
        ValueError: for floating-point and 32-bit integer images, whose range the file does not state.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.filename = ""  # else it may be mapped into memory, in rows of the width that it has after it is turned
    if image.getexif().get(0x0112, 1) != 1:  # Orientation; exif_transpose copies the image even where it is 1
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"the file holds {image.mode} pixels of unstated range; save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def stored_depth(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Bits per channel and channels as the file holds them, of an image that is not loaded yet.

    Pillow's mode does not show them: of 16-bit colour it keeps the upper 8 bits, of a TIFF with more than three
    channels the first three, and calls both RGB. Depths above 8 are known for PNG, TIFF, PPM and HEIC.
    """
    bits, channels = 8, len(image.getbands())
    for tile in image.tile:
        # The raw mode, such as RGB;16B, then the decoder's own arguments.
        args: tuple[Any, ...] = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if depth := re.search(r";(\d+)", str(args[0])):
            bits = max(bits, int(depth[1]))
        if image.format == "PPM" and len(args) > 1:
            bits = max(bits, int(args[1]).bit_length())  # of the largest value
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        bits = max(bits, *tags.get(258, (8,)))
        channels = max(channels, int(tags.get(277, 1)))
    return max(bits, int(image.info.get("bit_depth") or 8)), channels


def read_rgb(path: Path, upright: bool = True, content: bytes | None = None) -> Image.Image:
    """The image file ``path`` as RGB; ``upright=False`` ignores its EXIF orientation. ``content``: the bytes of a file
    that lies in an archive.

    Raises:
        UserError: naming the file, if it is missing or does not decode.
    """
    try:
        register_format(path)
        if content is None:
            require_regular(path)
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            rgb = to_rgb(image) if upright else image.convert("RGB")
            rgb.load()  # while the file is open: Pillow decodes lazily
    # Pillow's decoders raise exceptions of any type on damaged data, SyntaxError and struct.error among them.
    except Exception as error:
        empty = content == b"" or (content is None and path.is_file() and path.stat().st_size == 0)
        raise UserError(
            f"{path} cannot be read as an image ({'the file is empty' if empty else describe_error(error, path)}).",
            "Install it, or take the file out of the data set."
            if isinstance(error, NeedsPackageError)
            else "Repair the file, or take it out of the data set.",
        ) from error
    return rgb


def require_regular(path: str | Path) -> None:
    """Refuse what is no regular file before it is opened: reading a FIFO or a device may never end.

    Raises:
        OSError: no such file, or not a regular one.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")


def describe_error(error: Exception, path: str | Path | None = None) -> str:
    """The cause of an exception raised while reading the image ``path``, in short."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; if it is sound, raise dataset.max_pixels"
    if isinstance(error, UnidentifiedImageError) and path is not None and (channels := _tiff_channels(path)) > 4:
        return f"a TIFF of {channels} channels, which Pillow does not read; save three of them"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, in spite of its name"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _tiff_channels(path: str | Path) -> int:
    """Channels that a TIFF states; 0 for another file."""
    with contextlib.suppress(Exception), open(path, "rb") as file:  # of any kind, from a damaged head
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        return int(directory.get(277, 0))
    return 0


def walk_files(folder: Path, loops: list[str] | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` through symbolic links to folders, without those that lead back to a folder above the link or above
    ``folder``: its pictures would be listed again and again, under the label of the folder that holds the link.

    Args:
        loops: collects the paths of the links that are left out.
    """
    real = Path(os.path.realpath(folder))
    above = {os.fspath(folder): frozenset(map(str, (real, *real.parents)))}  # of each folder to come, itself included
    for path, folders, names in os.walk(folder, followlinks=True):
        yield path, folders, names  # the caller may sort and remove in place
        here, kept = above.pop(path), []
        for name in folders:
            at = os.path.join(path, name)
            target = os.path.realpath(at)
            if target in here:
                if loops is not None:
                    loops.append(at)
                continue
            above[at] = here | {target}
            kept.append(name)
        folders[:] = kept


class Files:
    """A source of image files under one root.

    ``upright=False`` opens files as torchvision does (mode converted, EXIF orientation ignored): the published sets are
    measured that way, and the crops stored with released labels are in such pixels.
    """

    in_memory = False

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | Labels,
        classes: list[str],
        split_name: str,
        upright: bool = True,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.root = root
        self.keys = Strings(paths)
        self.labels: Labels = np.asarray(labels, dtype=np.int64)
        self.groups = None if groups is None else Strings(groups)
        self.classes = classes
        self.split_name = split_name
        self.upright = upright
        self.ignored: dict[str, int] = {}  # files passed over while listing, by kind
        self.held_out = False  # taken from the training images, not a split that the set came with
        if len(self.keys) != len(self.labels):
            raise ValueError(f"{len(self.keys)} paths and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Decode image ``index``.

        Raises:
            UserError: naming the file, if it is missing or does not decode.
        """
        return read_rgb(self.root / self.keys[index], self.upright), int(self.labels[index])
