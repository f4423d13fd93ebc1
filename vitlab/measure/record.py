"""The interface of an evaluation record: the measurements of a model on a labelled set, for any task."""

from __future__ import annotations

from typing import Any, Protocol


class Record(Protocol):
    """Metrics of one model on one set of images. Implementations are dataclasses that convert to and from JSON.

    Attributes:
        n: images.
        classes: names, in the order of the logits.
        view: description of resizing and crop.
        intervals: metric to its 95 % interval ``[lo, hi]``; empty where none was computed.
    """

    n: int
    classes: list[str]
    view: str
    intervals: dict[str, list[float]]

    def metrics(self) -> dict[str, float]:
        """The single numbers, as in tables and ``model.json``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
