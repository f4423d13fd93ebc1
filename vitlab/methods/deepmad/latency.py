"""Latency that can be designed for: measured costs of single layers, put together for any structure.

A :class:`CostTable` holds the time of a 1x1 convolution for pairs of channels at each side, of the kxk convolution of
a unit for its channels, and of the stem, each with its batch norm and activation, on one device at one batch size.
Between the measured channels the logarithm of the time is interpolated linearly in the logarithm of the channels. A
network's latency is taken as the sum of its layers'; how far that is from the truth is measured on whole networks and
kept in the table (``error``). Timing, smoothing and interpolation are those of :mod:`vitlab.measure.latency_table`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial as bind
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitlab.errors import UserError
from vitlab.files import read_json, stable_dict, write_json
from vitlab.measure.grids import Floats, interpolate, make_monotone
from vitlab.measure.latency_table import ROUNDS, HeldOut, forward_call, spread_of
from vitlab.measure.timing import Call, Conditions, block_size, forward_pass, synchronize, time_block, time_in_rounds
from vitlab.methods.deepmad.evaluate import squeezed
from vitlab.methods.deepmad.problem import LatencyModel, Problem, Space
from vitlab.methods.deepmad.structure import Conv, Structure

if TYPE_CHECKING:
    from torch import nn

    from vitlab.measure.latency_table import Work

Numbers = NDArray[np.integer[Any]]

CHANNELS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Where layers are measured; structures reach further only in depthwise spaces, and there the last slope goes on."""


LEAST = 0.004
"""Seconds of calls that one sample of a layer is the mean of."""


@dataclass
class CostTable:
    """Milliseconds of layers.

    Attributes:
        device: what it was measured on, in words.
        batch: images at a time; the times are those of a whole batch.
        kind: of the superblocks it is for.
        channels: the grid, ascending.
        pointwise: of each output side (as text), times [in][out].
        spatial: of ``kernel/stride/output side``, times [channels].
        stem: of each output side, times [out].
        scale: measured time of whole networks over the sum of their layers (median); predictions are multiplied by it.
        error: largest relative error of a prediction on the networks that were measured.
        measured: how: ``conditions``, ``repeats``, ``busy``, ``spread`` (median over layers) and ``held_out`` networks,
            each predicted with the scale that the others give. None in tables that were written without it.
    """

    device: str
    batch: int
    kind: str
    channels: list[int]
    pointwise: dict[str, list[list[float]]] = field(default_factory=dict)
    spatial: dict[str, list[float]] = field(default_factory=dict)
    stem: dict[str, list[float]] = field(default_factory=dict)
    scale: float = 1.0
    error: float | None = None
    measured: dict[str, Any] | None = None

    FIRST: ClassVar[tuple[str, ...]] = (
        *("device", "batch", "kind", "channels", "pointwise"),
        *("spatial", "stem", "scale", "error"),
    )
    """Never changed: tables of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Short hash of the content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``measured`` is left out where it is None, so that older tables keep their fingerprint."""
        return stable_dict(self)

    def save(self, path: Path) -> None:
        """Write JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: no such file, or it is no cost table.
        """
        if not path.is_file():
            raise UserError(f"There is no cost table '{path}'.", "Give method.costs=measure, or a costs.json.")
        try:
            return cls(**read_json(path))
        except (TypeError, ValueError) as error:
            raise UserError(f"'{path}' is no cost table: {error}.", "Measure one with method.costs=measure.") from error

    def pointwise_ms(self, into: Numbers, out: Numbers, side: int) -> Floats:
        """Of 1x1 convolutions [n] at ``side`` pixels, before scaling."""
        times: Floats = np.exp(self._between(self._find(self.pointwise, str(side)), into, out))
        return times

    def stem_ms(self, out: Numbers, side: int) -> Floats:
        """Of stems [n] with outputs of ``side`` pixels, before scaling."""
        times: Floats = np.exp(self._between(self._find(self.stem, str(side)), out))
        return times

    def spatial_ms(self, channels: Numbers, kernels: Numbers, stride: int, side: int) -> Floats:
        """Of the kxk convolutions [n] of units, ``side`` that of the output, before scaling."""
        times = np.zeros(len(channels))
        for kernel in np.unique(kernels):
            found = np.exp(self._between(self._find(self.spatial, f"{kernel}/{stride}/{side}"), channels))
            times = np.where(kernels == kernel, found, times)
        return times

    def superblock_ms(
        self, kind: str, i: Numbers, o: Numbers, b: Numbers, k: Numbers, depth: Numbers, stride: int, side: int
    ) -> Floats:
        """Of superblocks [n] with inputs of ``side`` pixels, before scaling."""
        after = side // stride
        again = self.pointwise_ms(b, o, after)
        first = self.pointwise_ms(i, b, side) + self.spatial_ms(b, k, stride, after) + again
        more = self.pointwise_ms(o, b, after) + self.spatial_ms(b, k, 1, after) + again
        if kind == "K1KXK1":
            first = first + self.pointwise_ms(i, o, after)
        if kind == "K1DWSEK1":
            inner = np.array([squeezed(int(one)) for one in b])
            squeeze = self.pointwise_ms(b, inner, 1) + self.pointwise_ms(inner, b, 1)
            first, more = first + squeeze, more + squeeze
        total: Floats = first + (depth - 1) * more
        return total

    def predict(self, structure: Structure, resolution: int) -> float:
        """Milliseconds of one batch through ``structure``."""
        total, channels, side = 0.0, 3, resolution

        def one(value: int) -> Numbers:
            return np.array([value])

        for number, unit in enumerate(structure.units):
            if isinstance(unit, Conv):
                side //= unit.stride
                if number == 0:
                    total += float(self.stem_ms(one(unit.out), side)[0])
                else:
                    total += float(self.pointwise_ms(one(channels), one(unit.out), side)[0])
            else:
                i, o, b, k, depth = map(one, (channels, unit.out, unit.bottleneck, unit.kernel, unit.depth))
                total += float(self.superblock_ms(unit.kind, i, o, b, k, depth, unit.stride, side)[0])
                side //= unit.stride
            channels = unit.out
        return total * self.scale

    def predict_many(
        self, problem: Problem, stem: Numbers, outs: Numbers, narrow: Numbers, kernels: Numbers, depths: Numbers
    ) -> Floats:
        """Milliseconds [n] of a population, as :class:`~vitlab.methods.deepmad.population.Population` splits it."""
        space, side, i = problem.space, problem.resolution // 2, stem
        total = self.stem_ms(stem, side)
        for j, stride in enumerate(space.strides):
            total = total + self.superblock_ms(
                space.kind, i, outs[j], narrow[j], kernels[j], depths[j], stride=stride, side=side
            )
            i, side = outs[j], side // stride
        if space.tail is not None:
            total = total + self.pointwise_ms(i, np.full(len(i), space.tail), side)
        return total * self.scale

    def predict_edges(self, problem: Problem, block: int, edges: Numbers) -> Floats:
        """Milliseconds of edges, rows (block, into, out, bottleneck, kernel, depth); stem and tail are added to the
        first and the last superblock's, as in :mod:`vitlab.methods.deepmad.edges`."""
        space = problem.space
        side = space.sides(problem.resolution)[block]
        _, i, o, b, k, depth = edges
        total = self.superblock_ms(space.kind, i, o, b, k, depth, stride=space.strides[block], side=side)
        if block == 0:
            total = total + self.stem_ms(i, side)
        if block == len(space.strides) - 1 and space.tail is not None:
            total = total + self.pointwise_ms(o, np.full(len(o), space.tail), side // space.strides[block])
        return total * self.scale

    def _between(self, times: Any, *channels: Numbers) -> Floats:
        """The logarithm of ``times`` (one axis for each of ``channels``), linear in the logarithm of the channels."""
        grid = [np.log(self.channels)] * len(channels)
        return interpolate(grid, np.log(times), [np.log(one) for one in channels])

    def _find(self, table: dict[str, Any], key: str) -> Any:
        if key not in table:
            raise UserError(
                f"The cost table has no layer {key} (kernel/stride/side); it was measured for other sides.",
                "Measure one for this resolution and these strides: method.costs=measure.",
            )
        return table[key]


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(
    space: Space,
    resolution: int,
    *,
    batch: int,
    device: str,
    networks: list[Structure],
    say: Callable[[str], None],
    channels: tuple[int, ...] = CHANNELS,
    affordable: Callable[[int, int], bool] = lambda weights, side: True,
    partial: Path | None = None,
) -> CostTable:
    """Time every layer that structures of ``space`` may need at ``resolution``, and whole ``networks`` among them.

    Layers and networks take turns in rounds; a time is the median over rounds, and those that are measured are made to
    increase with the channels. Layers beyond every budget are not timed: they are taken to cost so much more as they
    have more weights.

    Args:
        batch: images at a time.
        device: of torch, e.g. ``cpu`` or ``cuda``.
        networks: structures to compare prediction and truth on.
        channels: the grid.
        affordable: whether a layer of so many weights and that output side may be part of a network; the smallest of
            each kind are timed whatever it says.
        say: called with a line of progress now and then.
        partial: file that keeps what is measured while it goes on, for a call after an interruption. Delete it when
            the table is saved.

    Raises:
        UserError: ``partial`` is of another measurement.
    """
    import torch
    from torch import nn

    from vitlab.models.deepmad import ConvNorm, DeepMAD

    where = torch.device(device)
    act = nn.SiLU if space.kind == "K1DWSEK1" else nn.ReLU
    dense = space.kind == "K1KXK1"
    cells: dict[str, Callable[[], Call]] = {}

    def add(name: str, layer: Callable[[], nn.Module], into: int, side: int) -> None:
        def build() -> Work:
            return layer(), torch.randn(batch, into, side, side)

        cells[name] = forward_call(build, where)

    sides = space.sides(resolution)
    last = sides[-1] // space.strides[-1]
    for c in channels:
        add(f"stem/{sides[0]} {c}", bind(ConvNorm, 3, c, 3, 2, act=nn.ReLU), 3, 2 * sides[0])
    points = sorted({*sides, last, *((1,) if space.kind == "K1DWSEK1" else ())})
    for side in points:
        for i, o in product(channels, channels):
            if affordable(i * o, side) or i == o == channels[0]:
                add(f"pointwise/{side} {i} {o}", bind(ConvNorm, i, o, 1, act=act), i, side)
    kernels: dict[str, int] = {}
    for side, stride in sorted({(s, t) for s, t in zip(sides, space.strides, strict=True)}):
        for pace, after in {(stride, side // stride), (1, side // stride)}:
            for kernel in space.kernels_at(side):
                kernels[f"{kernel}/{pace}/{after}"] = after * pace
    for key, side in kernels.items():
        kernel, pace, after = map(int, key.split("/"))
        for c in channels:
            if affordable(kernel**2 * c * (c if dense else 1), after) or c == channels[0]:
                layer = bind(ConvNorm, c, c, kernel, pace, 1 if dense else c, act)
                add(f"spatial/{key} {c}", layer, c, side)
    layers = len(cells)
    for number, structure in enumerate(networks):
        add(f"network {number}", bind(DeepMAD, structure.to_list(), num_classes=0), 3, resolution)

    conditions = Conditions.of(where, batch)
    say(f"{layers} layers and {len(networks)} networks, in {ROUNDS} rounds")

    def progress(done: int, total: int) -> None:
        if done % len(cells) == 0:
            say(f"round {done // len(cells)} of {ROUNDS}")

    samples = time_in_rounds(
        cells,
        ROUNDS,
        LEAST,
        wait=lambda: synchronize(where),
        partial=partial,
        spec={"kind": space.kind, "resolution": resolution, **asdict(conditions)},
        progress=progress,
    )
    times = {name: 1e3 * float(np.median(found)) for name, found in samples.seconds.items()}
    spread = {name: spread_of(found) for name, found in samples.seconds.items()}

    def grid(name: str, *more: Sequence[int]) -> Floats:
        """Medians of one layer, increasing along both axes of channels; NaN where it was not timed."""
        found = [times.get(f"{name} {' '.join(map(str, one))}", np.nan) for one in product(*more)]
        return make_monotone(np.reshape(found, [len(one) for one in more]))

    table = CostTable(_device_name(device), batch, space.kind, list(channels))
    table.stem[str(sides[0])] = grid(f"stem/{sides[0]}", channels).tolist()
    for side in points:
        table.pointwise[str(side)] = _extend(grid(f"pointwise/{side}", channels, channels), channels)
    for key in kernels:
        known = grid(f"spatial/{key}", channels)
        for at in range(1, len(channels)):
            if np.isnan(known[at]):
                known[at] = known[at - 1] * (channels[at] / channels[at - 1]) ** (2 if dense else 1)
        table.spatial[key] = known.tolist()
    truth = [times[f"network {number}"] for number in range(len(networks))]
    ratios = np.array([ms / table.predict(one, resolution) for ms, one in zip(truth, networks, strict=True)])
    for ms, ratio in zip(truth, ratios, strict=True):
        say(f"a network takes {ms:.3g} ms, {ratio:.2f} times the sum of its layers")
    if len(ratios):
        table.scale = float(np.median(ratios))
        table.error = float(max(abs(table.scale / one - 1) for one in ratios))
    table.measured = {
        "conditions": asdict(conditions),
        "repeats": ROUNDS,
        "busy": samples.busy,
        "spread": float(np.median(list(spread.values()))),
        "held_out": [one.to_dict() for one in _left_out(networks, truth, ratios)],
    }
    if samples.busy:
        say(f"the machine was busy (load {samples.load:.1f}): times may be too long")
    return table


def _extend(rows: Floats, channels: Sequence[int]) -> list[list[float]]:
    """Times [in][out], those that are NaN made of their neighbours' by the number of weights."""
    for i, o in product(range(len(channels)), range(len(channels))):
        if np.isnan(rows[i, o]):
            narrower = (i, o - 1) if o else (i - 1, 0)
            more = channels[o] / channels[o - 1] if o else channels[i] / channels[i - 1]
            rows[i, o] = rows[narrower] * more
    found: list[list[float]] = rows.tolist()
    return found


def _left_out(networks: Sequence[Structure], truth: Sequence[float], ratios: Floats) -> list[HeldOut]:
    """Each network predicted with the scale of the others, in seconds; nothing where there are no others."""
    if len(networks) < 2:
        return []
    found = []
    for number, structure in enumerate(networks):
        scale = float(np.median(np.delete(ratios, number)))
        ms = truth[number]
        found.append(HeldOut(structure.to_list(), 1e-3 * ms / ratios[number] * scale, 1e-3 * ms))
    return found


def whole_ms(network: nn.Module, resolution: int, table: LatencyModel) -> float:
    """Measured milliseconds of a batch through ``network`` on the kind of device that ``table`` is of: the median of
    seven blocks of passes."""
    import torch

    device = torch.device("cpu" if table.device.startswith("cpu") else "cuda")
    image = torch.randn(table.batch, 3, resolution, resolution, device=device)
    call = forward_pass(network.to(device).eval(), image, wait=False)

    def wait() -> None:
        synchronize(device)

    count = block_size(call, 0.03, wait)
    return 1e3 * float(np.median([time_block(call, count, wait) for _ in range(7)]))


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
