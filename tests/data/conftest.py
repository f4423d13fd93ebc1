"""Small image folders on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImages = Callable[..., Path]


def picture(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    """Noise, the same for the same seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Write noise images at the given paths below a new folder, and return the folder."""

    def make(*paths: str, root: str = "photos") -> Path:
        for number, path in enumerate(paths):
            target = tmp_path / root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(target)
        return tmp_path / root

    return make
