"""Import of the heavy libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Import torch, timm and Lightning in the block without the collector of reference cycles.

    It would search the classes and functions of these libraries again and again, a quarter of the time of the import.
    Where they are imported already, nothing changes.
    """
    if "lightning" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
