"""The files of ``conf/``, read and parsed once: a sweep composes each of its runs from the same files."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path

from vitlab.compose.hydra_private import (
    CachingConfigRepository,
    ConfigLoaderImpl,
    create_automatic_config_search_path,
)

State = tuple[tuple[str, int, int], ...]
"""Path, time of the last change in ns and size in bytes of every file and folder."""


def repository(conf: Path) -> tuple[ConfigLoaderImpl, CachingConfigRepository]:
    """Hydra's loader for the folder ``conf``, and the files that it has read. They are read anew when one has changed;
    Hydra and OmegaConf copy what they take from them."""
    return _repository(conf, _state(conf))


@functools.lru_cache(maxsize=2)
def _repository(conf: Path, state: State) -> tuple[ConfigLoaderImpl, CachingConfigRepository]:
    loader = ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf)))
    return loader, CachingConfigRepository(loader.repository)


def _state(conf: Path) -> State:
    found: list[tuple[str, int, int]] = []
    for folder, _, files in os.walk(conf):
        for name in (".", *files):
            path = os.path.join(folder, name)
            with suppress(OSError):  # removed meanwhile, or a link to nothing
                status = os.stat(path)
                found.append((path, status.st_mtime_ns, status.st_size))
    return tuple(found)
