"""The data sets: one module each, named as ``dataset.name`` names it.

``vitlab/data/sets/<name>.py`` has one function ``splits(cfg) -> {"train": source, "test": source}``; ``train`` is
required; where ``val`` or ``test`` is missing, the other is used in its place. ``conf/dataset/<name>.yaml`` has the
sizes and the normalisation. A module with ``DOWNLOADABLE = True`` supports ``dataset.download``. Modules whose name
begins with an underscore are shared by several sets.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from vitlab.errors import UserError, nearest


def set_names() -> list[str]:
    """Names of all data sets: the modules beside this file, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def find_set(name: str) -> ModuleType:
    """The module ``vitlab/data/sets/<name>.py``.

    Raises:
        UserError: there is none.
    """
    known = set_names()
    if name not in known:
        close = nearest(name, known)
        raise UserError(
            f"dataset.name={name} is unknown.",
            (f"Did you mean {close}? " if close else "") + f"There are: {', '.join(known)}.",
        )
    return importlib.import_module(f"vitlab.data.sets.{name}")
