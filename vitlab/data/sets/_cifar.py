"""CIFAR's "python version": pickled dictionaries, read by an unpickler that allows NumPy arrays and nothing else.

torchvision downloads them; it is not used to read them, because its reader unpickles any object.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.data.paths import not_found_error
from vitlab.data.sets._download import fetch_folder
from vitlab.data.sources import Arrays, Source
from vitlab.errors import UserError


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numbers, text and numpy arrays; any other name in the file is refused."""

    allowed = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"the file names {module_name}.{global_name}, which no CIFAR file does")
        # NumPy 2 still accepts numpy.core, with a warning.
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _read_cifar(path: Path) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", "The download is incomplete: fetch the data set again.") from None
    except Exception as error:
        raise UserError(
            f"{path} is not a CIFAR file ({type(error).__name__}: {error}).", "Fetch the data set again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR file (it holds no dictionary).", "Fetch the data set again.")
    return content


def open_cifar(
    cfg: DatasetConfig, base: str, files: dict[str, list[str]], meta: str, names: str, labels: str
) -> dict[str, Source]:
    def download(root: str) -> object:
        from torchvision.datasets import CIFAR10, CIFAR100

        return (CIFAR10 if base == "cifar-10-batches-py" else CIFAR100)(root, download=True)

    folder = fetch_folder(cfg, base, download)
    if folder is None:
        raise not_found_error(cfg, f"the folder {base}", downloadable=True)
    classes = list(_read_cifar(folder / meta)[names])
    sources: dict[str, Source] = {}
    for split, parts in files.items():
        content = [_read_cifar(folder / part) for part in parts]
        pixels = np.concatenate([np.asarray(one["data"], dtype=np.uint8).reshape(-1, 3, 32, 32) for one in content])
        targets = np.concatenate([np.asarray(one[labels], dtype=np.int64) for one in content])
        images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        sources[split] = Arrays(images, targets, classes, [f"{split}/{i}" for i in range(len(targets))], split)
    return sources
