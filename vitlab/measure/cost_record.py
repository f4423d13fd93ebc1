"""Cost of a network as plain numbers, written to and read from JSON; without torch and NumPy, as reports import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Milliseconds a forward pass of one batch takes: median and the tenth and ninetieth percentile of the repeats."""

    batch: int
    median_ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    repeats: int | None = None

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch / self.median_ms


@dataclass(frozen=True)
class Memory:
    """Peak memory of a forward pass of one batch in bytes, without the weights."""

    batch: int
    bytes: int


@dataclass
class Cost:
    """Size and speed of a network; unknown values are None.

    Attributes:
        params: number of parameters.
        macs: multiply-adds of one image, one multiplication with its addition counted as 1.
        bytes: of the weights file.
        latency: of each batch size that was timed.
        device: of the latency: ``cpu``, the name of a GPU, or a description, e.g. ``CPU, 2 threads``.
        memory: of each batch size that was measured.
        size: side of the input in pixels, or [height, width].
        threads: of the CPU, during the timing.
        extra_macs: further counts of multiply-adds of one image, by name: a paper's own convention, or those that
            remain when a network drops tokens.
        busy: "load 5.2 on 2 cores", where other processes competed for the cores during the timing; else empty.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency: list[Latency] = field(default_factory=list)
    device: str = ""
    memory: list[Memory] = field(default_factory=list)
    size: int | list[int] | None = None
    threads: int | None = None
    extra_macs: dict[str, int] = field(default_factory=dict)
    busy: str = ""

    def at(self, batch: int) -> Latency | None:
        """The latency measured at this batch size."""
        return next((each for each in self.latency if each.batch == batch), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. ``size``, ``threads``, ``repeats``, ``extra_macs`` and ``busy`` are left out where they are empty,
        as in records that were written before these keys existed."""
        plain = asdict(self)
        for name in ("size", "threads", "extra_macs", "busy"):
            if not plain[name]:
                del plain[name]
        for each in plain["latency"]:
            if each["repeats"] is None:
                del each["repeats"]
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cost:
        """The inverse of :meth:`to_dict`.

        Raises:
            TypeError: a key that no cost record has.
        """
        latency = [Latency(**each) for each in value.get("latency", [])]
        memory = [Memory(**each) for each in value.get("memory", [])]
        return cls(**{**value, "latency": latency, "memory": memory})
