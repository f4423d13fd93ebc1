"""How often a training is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlab.training.callbacks.record_and_checkpoint import RecordAndCheckpoint
from vitlab.training.progress import Progress


@pytest.mark.parametrize(("total", "every"), [(1, 1), (3, 1), (12, 1), (39, 3), (40, 20), (1000, 20)])
def test_a_short_training_has_a_curve(total: int, every: int, tmp_path: Path) -> None:
    """With logger.every=20: from two records on it is as given; below, some ten records make a curve."""
    made = RecordAndCheckpoint(
        stage="train",
        folder=tmp_path,
        recorder=None,
        validation=None,
        total=total,
        record_every=20,
        validate_every=1,
        checkpoint_every=1,
        accumulate=1,
        progress=Progress("train", total, quiet=True),
    )
    assert made.record_every == every
