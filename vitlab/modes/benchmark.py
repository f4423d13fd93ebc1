"""mode=benchmark: what models cost, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitlab.modes.subject import Subject


def costs(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Parameters, multiply-adds, size and latency of every model, by stage."""
    from vitlab.measure.cost import measure_cost

    found = {}
    for subject in subjects:
        assert subject.artifact is not None
        spec = subject.config.evaluation
        cost = measure_cost(
            subject.network().to(subject.device),
            subject.meta.size,
            spec.latency_batches if spec.latency else (),
            spec.latency_repeats,
            subject.artifact / "model.safetensors",
        )
        found[subject.name] = asdict(cost)
    return found
