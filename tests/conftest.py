"""How the suite is run: one thread a process, and tests that share a fixture in one process."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# Before torch is imported anywhere: small networks on many threads are slower, and processes fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = ("tests/test_readme.py", "tests/contract/", "tests/test_code.py", "tests/modes/")
"""Begun first, so that no process is left with a long file at the end."""

METHODS = re.compile(r"tests/contract/test_methods\.py::.*\[(\w+)")
PARTS = re.compile(r"tests/contract/test_killed_\w+\.py::(test_\w+_every_\w+\[.+)")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the collector of reference cycles away from what the test files import: torch, timm and Lightning have a
    million objects, and to search them takes a second, several times in a minute."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def pytest_unconfigure() -> None:
    """Libraries report what Python cannot release at its end."""
    gc.unfreeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With several processes a file stays together, as its fixtures are costly; of the contract, a method; the parts of
    what takes an hour in one process are spread.

    Groups by marks (``--dist loadgroup``) are not formed under pytest 9.2, which keeps its own names of tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            part = METHODS.match(nodeid) or PARTS.match(nodeid)
            return part[1] if part else nodeid.partition("::")[0]

    return ByFile(config, log)
