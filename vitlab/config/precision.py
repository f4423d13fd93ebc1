"""Precisions of a training that depend on the device."""

from __future__ import annotations

from vitlab.errors import UserError

HALF = ("16-mixed", "16-true")
"""Precisions for GPUs: torch has no autocast to float16 on a CPU, and Lightning would take bfloat16 instead."""


def no_half_on_cpu(place: str) -> UserError:
    """The message for one of :data:`HALF` on a CPU; ``place``: key and value as given."""
    return UserError(
        f"{place} needs a GPU, and this training runs on the CPU.",
        "Give trainer.precision=bf16-mixed, or leave it out (32-true).",
    )
