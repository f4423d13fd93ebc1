"""Fetching a published set with torchvision, which checks its MD5 sums."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vitlab.config import DatasetConfig
from vitlab.data.paths import data_roots
from vitlab.errors import UserError


def find_folder(cfg: DatasetConfig, base: str) -> Path | None:
    """The folder ``base`` in one of the roots, or a root that is this folder itself."""
    for root in data_roots(cfg):
        if (root / base).is_dir():
            return root / base
        if root.name == base and root.is_dir():
            return root
    return None


def fetch_folder(cfg: DatasetConfig, base: str, download: Callable[[str], object]) -> Path | None:
    """The folder ``base``; fetched first if it is missing and ``dataset.download`` is set.

    It is fetched into a temporary folder and renamed, so that an interrupted download is never taken for the data. A
    lock file admits one process at a time, so that several ranks may call this.
    """
    folder = find_folder(cfg, base)
    if folder is not None or not cfg.download:
        return folder
    root = data_roots(cfg)[0]
    scratch = root / f".{base}.download"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{base}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / base).is_dir():  # checked again: another rank may have fetched it meanwhile
            shutil.rmtree(scratch, ignore_errors=True)  # torchvision takes a half-unpacked archive for a complete one
            scratch.mkdir()
            try:
                download(str(scratch))
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"Data set '{cfg.name}' could not be fetched into {root} ({type(error).__name__}: {error}).",
                    "Check the network, or fetch it yourself and give dataset.root.",
                ) from error
            os.rename(scratch / base, root / base)
            shutil.rmtree(scratch)
    return root / base
