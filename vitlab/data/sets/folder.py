"""Images of your own: class folders or a CSV, see :mod:`vitlab.data.folder`."""

from __future__ import annotations

from vitlab.config import DatasetConfig
from vitlab.data.folder import folder_sources
from vitlab.data.sources import Source


def splits(cfg: DatasetConfig) -> dict[str, Source]:
    """The splits of ``dataset.root`` or ``dataset.csv``."""
    return folder_sources(cfg)
