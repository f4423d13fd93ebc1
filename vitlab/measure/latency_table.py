"""Latency of parts of networks on a grid of their dimensions: measured, stored, and interpolated between.

A :class:`LatencyTable` has one grid or several, each over named axes; the latency of a block is the sum over the grids
(a transformer's block is attention, over embed, heads, qk, v, and MLP, over embed and hidden width, so that 375 + 75
measurements replace 9375), and that of a network the sum over its blocks. Each point is timed once in every round, in
random order, after warm-up, and its time is the median over rounds. Before use the medians are made to increase along
every axis (:func:`make_monotone`), for noise makes about 4 % of neighbours decrease (Yang et al., CVPR 2023, official
table). How far the sums are from the truth is measured on networks that the table was not made of.

The file is JSON: ``format``, ``what``, ``conditions`` (device, threads, batch, precision, backend, versions),
``repeats``, ``busy``, ``grids`` (of each name ``axes``, ``seconds``, ``spread``) and ``held_out``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.measure.grids import grid_points, interpolate, make_monotone
from vitlab.measure.timing import Call, Conditions, forward_pass, synchronize, time_in_rounds

if TYPE_CHECKING:
    import torch
    from torch import nn

    Work = tuple[nn.Module, torch.Tensor]
    """What is timed: a module and its input."""

FORMAT = 1
ROUNDS = 5
PRECISIONS = {"32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of parameters and inputs; the names are torch's."""

Floats = NDArray[np.float64]
Dims = Mapping[str, int]


# ------------------------------------------------------------------------------------------------------------- a table


@dataclass(frozen=True, eq=False)
class Grid:
    """Times of one part.

    Attributes:
        axes: of each dimension, the measured values, ascending.
        seconds: medians over rounds, one axis of the array for each of ``axes``.
        spread: 90 % minus 10 % quantile over rounds, divided by the median; same shape.
    """

    axes: Mapping[str, tuple[int, ...]]
    seconds: Floats
    spread: Floats

    def points(self) -> Iterator[tuple[tuple[int, ...], dict[str, int]]]:
        """Index and dimensions of every point."""
        yield from grid_points(self.axes)


@dataclass(frozen=True)
class HeldOut:
    """A network that the table was not made of: its blocks' dimensions, and its seconds predicted and measured."""

    structure: Any  # JSON
    predicted: float
    measured: float

    @property
    def relative_error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the relative error."""
        return {**asdict(self), "relative_error": self.relative_error}


@dataclass(eq=False)
class LatencyTable:
    """Seconds of one batch through parts of a network.

    Attributes:
        what: description of the measured parts.
        conditions: on what and how.
        repeats: rounds that each median is of.
        busy: others used the machine meanwhile; the times may be too long.
        grids: of each part's name, its times as measured; interpolation makes them monotone first.
        held_out: networks that predictions were compared on.
    """

    what: str
    conditions: Conditions
    repeats: int
    busy: bool
    grids: dict[str, Grid]
    held_out: list[HeldOut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._smooth = {name: make_monotone(grid.seconds) for name, grid in self.grids.items()}

    @property
    def axes(self) -> dict[str, tuple[int, int]]:
        """Of each dimension, the smallest and the largest value that every grid with it reaches."""
        found: dict[str, tuple[int, int]] = {}
        for grid in self.grids.values():
            for name, points in grid.axes.items():
                low, high = found.get(name, (points[0], points[-1]))
                found[name] = max(low, points[0]), min(high, points[-1])
        return found

    @property
    def mean_error(self) -> float | None:
        """Mean |relative error| on the held-out networks; None where there are none."""
        return float(np.mean([abs(one.relative_error) for one in self.held_out])) if self.held_out else None

    @property
    def fingerprint(self) -> str:
        """Short hash of the content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def seconds(self, dims: Mapping[str, ArrayLike]) -> Floats:
        """Latency of a block, multilinear between the measured points: the sum over the grids.

        Args:
            dims: of every axis a number or an array; arrays must broadcast. Other names are refused.

        Returns:
            Seconds, of the broadcast shape.

        Raises:
            ValueError: an axis is missing, or a name is no axis.
            UserError: a dimension beyond the measured ones, where nothing is known.
        """
        if set(dims) != set(self.axes):
            raise ValueError(f"the table's axes are {', '.join(self.axes)}, not {', '.join(dims)}")
        given = dict(zip(dims, np.broadcast_arrays(*(np.asarray(x, float) for x in dims.values())), strict=True))
        for name, (low, high) in self.axes.items():
            beyond = given[name][~((given[name] >= low) & (given[name] <= high))]
            if beyond.size:
                raise UserError(
                    f"The latency table was measured for {name} from {low} to {high}; {beyond.flat[0]:g} is outside.",
                    "Measure one whose grid reaches there; times are not extrapolated.",
                )
        total = np.zeros(next(iter(given.values())).shape)
        for key, grid in self.grids.items():
            points = [np.array(one, float) for one in grid.axes.values()]
            total = total + interpolate(points, self._smooth[key], [given[name] for name in grid.axes])
        return total

    def network_seconds(self, blocks: Sequence[Mapping[str, ArrayLike]]) -> float:
        """Latency of a network: the sum over its blocks."""
        return float(sum(self.seconds(dims) for dims in blocks))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        grids = {
            name: {
                "axes": {axis: list(points) for axis, points in grid.axes.items()},
                "seconds": grid.seconds.tolist(),
                "spread": grid.spread.tolist(),
            }
            for name, grid in self.grids.items()
        }
        return {
            "format": FORMAT,
            "what": self.what,
            "conditions": asdict(self.conditions),
            "repeats": self.repeats,
            "busy": self.busy,
            "grids": grids,
            "held_out": [one.to_dict() for one in self.held_out],
        }

    @classmethod
    def from_dict(cls, value: Any) -> LatencyTable:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: saying which key holds what it should not.
        """
        _require(isinstance(value, Mapping) and "format" in value, "it has no key 'format'")
        _require(value["format"] == FORMAT, f"its format is {value['format']!r}, and {FORMAT} is what is read")
        kinds: dict[str, type] = {
            "what": str, "conditions": Mapping, "repeats": int, "busy": bool, "grids": Mapping, "held_out": list,
        }  # fmt: skip
        _require_keys(value, "", {"format": int, **kinds})
        types = {"threads": int, "batch": int, "tf32": bool}
        fields = {name: types.get(name, str) for name in Conditions.__dataclass_fields__}
        _require_keys(value["conditions"], "conditions.", fields)
        _require(value["repeats"] >= 1, "repeats is below 1")
        _require(len(value["grids"]) > 0, "grids is empty")
        held = []
        for number, one in enumerate(value["held_out"]):
            at = f"held_out.{number}."
            _require_keys(
                one, at, {"structure": object, "predicted": float, "measured": float, "relative_error": float}
            )
            _require(one["measured"] > 0, f"{at}measured is not above 0")
            held.append(HeldOut(one["structure"], one["predicted"], one["measured"]))
        grids = {str(name): _grid(f"grids.{name}.", one) for name, one in value["grids"].items()}
        conditions = Conditions(**value["conditions"])
        return cls(value["what"], conditions, value["repeats"], value["busy"], grids, held)

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: no such file, or it is no latency table of this format.
        """
        if not path.is_file():
            raise UserError(f"There is no latency table '{path}'.", "Measure one, or name the file of one.")
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:  # of JSON as well
            raise UserError(f"'{path}' is no latency table: {error}.", "Measure it again.") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _require_keys(value: Any, at: str, kinds: Mapping[str, type]) -> None:
    _require(isinstance(value, Mapping), f"{at.rstrip('.')} is no mapping")
    for key in {*value, *kinds}:
        _require(key in value, f"{at}{key} is missing")
        _require(key in kinds, f"{at}{key} is no key of it")
        kind, found = kinds[key], value[key]
        right = isinstance(found, (int, float) if kind is float else kind)
        _require(right and (kind in (bool, object) or not isinstance(found, bool)), f"{at}{key} is {found!r}")


def _grid(at: str, value: Any) -> Grid:
    _require_keys(value, at, {"axes": Mapping, "seconds": list, "spread": list})
    axes: dict[str, tuple[int, ...]] = {}
    for name, points in value["axes"].items():
        integers = isinstance(points, list) and len(points) > 0 and all(type(one) is int for one in points)
        _require(integers and points == sorted(set(points)), f"{at}axes.{name} is no ascending list of integers")
        axes[str(name)] = tuple(points)
    _require(len(axes) > 0, f"{at}axes is empty")
    shape = tuple(map(len, axes.values()))
    arrays = []
    for key in ("seconds", "spread"):
        try:
            array = np.array(value[key], dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{at}{key} is no array of numbers") from error
        _require(array.shape == shape, f"{at}{key} has the shape {array.shape}, and its axes have {shape}")
        _require(bool(np.isfinite(array).all() and (array >= 0).all()), f"{at}{key} has a value below 0 or none at all")
        arrays.append(array)
    return Grid(axes, arrays[0], arrays[1])


# ----------------------------------------------------------------------------------------------------------- measuring


def spread_of(samples: Sequence[float]) -> float:
    """90 % minus 10 % quantile, divided by the median."""
    p10, median, p90 = np.quantile(samples, [0.1, 0.5, 0.9])
    return float((p90 - p10) / median)


@dataclass(frozen=True)
class Part:
    """What one grid is of.

    Attributes:
        axes: of each dimension, the values to measure, ascending. Where one is 0 there is nothing to run: such a point
            takes no time and is not built.
        build: of dimensions, the module and its input.
    """

    axes: Mapping[str, Sequence[int]]
    build: Callable[[Dims], Work]


@dataclass(frozen=True)
class HeldOutNetwork:
    """A network to compare a prediction with: its blocks' dimensions, and what builds it with its input."""

    blocks: Sequence[Dims]
    build: Callable[[], Work]


def measure_table(
    what: str,
    parts: Mapping[str, Part],
    *,
    device: torch.device,
    batch: int,
    precision: str = "32",
    held_out: Sequence[HeldOutNetwork] = (),
    rounds: int = ROUNDS,
    seconds: float = 0.01,
    partial: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time every point of every part's grid, and the held-out networks among them, in rounds.

    Args:
        what: description, stored in the file.
        parts: of each grid's name.
        device: that modules and inputs are moved to.
        batch: images at a time, stored in the file; the inputs themselves are made by the parts.
        precision: of parameters and inputs, a key of :data:`PRECISIONS`.
        held_out: networks to compare the table's sums with.
        rounds: that each median is of.
        seconds: that one sample takes at least.
        partial: file in which samples are saved during the measurement; a call after an interruption continues from
            it. Delete it when the table is saved.
        progress: called with the samples done and in all; may raise to stop.

    Raises:
        ValueError: no round, or an unknown precision.
        UserError: ``partial`` is of another measurement.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} of {', '.join(PRECISIONS)}")
    conditions = Conditions.of(device, batch, precision)
    cells: dict[str, Callable[[], Call]] = {}
    for name, part in parts.items():
        for _, dims in grid_points(part.axes):
            if all(dims.values()):
                cells[_key(name, dims)] = forward_call(bind(part.build, dims), device, precision)
    for number, network in enumerate(held_out):
        cells[f"held out {number}"] = forward_call(network.build, device, precision)
    samples = time_in_rounds(
        cells,
        rounds,
        seconds,
        wait=lambda: synchronize(device),
        partial=partial,
        spec={"what": what, **asdict(conditions)},
        progress=progress,
    )
    grids = {}
    for name, part in parts.items():
        axes = {axis: tuple(map(int, points)) for axis, points in part.axes.items()}
        grid = Grid(axes, *(np.zeros(tuple(map(len, axes.values()))) for _ in range(2)))
        for index, dims in grid.points():
            if (found := samples.seconds.get(_key(name, dims))) is not None:
                grid.seconds[index], grid.spread[index] = np.median(found), spread_of(found)
        grids[name] = grid
    table = LatencyTable(what, conditions, rounds, samples.busy, grids)
    for number, network in enumerate(held_out):
        structure = [dict(dims) for dims in network.blocks]
        measured = float(np.median(samples.seconds[f"held out {number}"]))
        table.held_out.append(HeldOut(structure, table.network_seconds(structure), measured))
    return table


def forward_call(build: Callable[[], Work], device: torch.device, precision: str = "32") -> Callable[[], Call]:
    """A factory for :func:`~vitlab.measure.timing.time_in_rounds`, of a forward pass in eval mode of the module and
    input that ``build`` makes, on ``device``; the call does not wait for the device."""

    def build_call() -> Call:
        import torch

        kind = getattr(torch, PRECISIONS[precision])
        module, batch = build()
        return forward_pass(module.to(device, kind).eval(), batch.to(device, kind), wait=False)

    return build_call


def _key(name: str, dims: Dims) -> str:
    return f"{name} {' '.join(f'{axis}={value}' for axis, value in dims.items())}"
