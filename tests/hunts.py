"""Property tests of two lengths: the quick part is the same at every run, the complete one is ``slow``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


def quick(cases: int) -> settings:
    """Always the same cases: what they find must not depend on the day."""
    return settings(max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=CHECKS)


def complete(cases: int) -> settings:
    """New cases at every run."""
    return settings(max_examples=cases, deadline=None, database=None, suppress_health_check=CHECKS)


slow = pytest.mark.slow
