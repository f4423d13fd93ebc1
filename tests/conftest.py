"""How the suite is run: one thread a process, and tests that share a fixture in one process."""

from __future__ import annotations

import os

import pytest

# Before torch is imported anywhere: small networks on many threads are slower, and processes fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, a file stays together (its fixtures are costly) unless it says otherwise itself."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
