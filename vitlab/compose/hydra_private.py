"""The private names of Hydra that vitlab uses, in one file, since a new version of Hydra may move them.

Hydra's public Compose API gives neither the defaults list (which file chose what) nor the configuration before the
overrides, and no sweep without a launcher. ``tests/compose/test_hydra_private.py`` reports a name that has moved; raise
the upper bound of ``hydra-core`` in ``pyproject.toml`` only after it passes.
"""

from __future__ import annotations

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.utils import create_automatic_config_search_path

__all__ = [
    "BasicSweeper",
    "CachingConfigRepository",
    "ConfigLoaderImpl",
    "DefaultsList",
    "create_automatic_config_search_path",
    "create_defaults_list",
]
