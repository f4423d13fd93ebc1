"""Folders of data sets: ``dataset.root`` or ``evaluation.shifted_root``, else ``$VITLAB_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

from vitlab.config import DatasetConfig
from vitlab.errors import UserError


def data_roots(cfg: DatasetConfig) -> list[Path]:
    """Folders in which to look, best first: ``dataset.root``, or ``$VITLAB_DATA/<name>`` and ``$VITLAB_DATA``.

    Raises:
        UserError: if neither is given.
    """
    if cfg.root:
        return [Path(cfg.root).expanduser()]
    base = os.environ.get("VITLAB_DATA")
    if not base:
        raise UserError(
            f"Data set '{cfg.name}' needs a folder, and neither dataset.root nor VITLAB_DATA is set.",
            f"Give dataset.root=/path/to/{cfg.name}, or set VITLAB_DATA to the folder that holds your data sets.",
        )
    return [Path(base).expanduser() / cfg.name, Path(base).expanduser()]


def not_found_error(cfg: DatasetConfig, expected: str, downloadable: bool = False) -> UserError:
    """The error for a data set that was not found: expected files, searched folders, and the cures."""
    places = " or ".join(str(root) for root in data_roots(cfg))
    ways = [f"Give dataset.root=/path (now {'set to ' + cfg.root if cfg.root else 'taken from VITLAB_DATA'})"]
    if downloadable:
        ways.append("add dataset.download=true to fetch it there")
    return UserError(f"Data set '{cfg.name}' was not found: expected {expected} in {places}.", ", or ".join(ways) + ".")


def shifted_root(given: str | None) -> Path:
    """``evaluation.shifted_root``, or ``$VITLAB_DATA``.

    Raises:
        UserError: neither is given, or there is no such folder.
    """
    place = given or os.environ.get("VITLAB_DATA")
    if not place:
        raise UserError(
            "evaluation.shifted needs the folder that holds the shifted sets, and neither evaluation.shifted_root nor "
            "VITLAB_DATA is set.",
            "Give evaluation.shifted_root=PATH.",
        )
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(f"evaluation.shifted_root={root} is not a folder.", "Give the folder that holds the sets.")
    return root
