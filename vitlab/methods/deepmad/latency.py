"""Latency that can be designed for: measured costs of single layers, put together for any structure.

A :class:`CostTable` holds the time of a 1x1 convolution for pairs of channels at each side, of the kxk convolution of
a unit for its channels, and of the stem, each with its batch norm and activation, on one device at one batch size.
Between the measured channels the logarithm of the time is interpolated linearly in the logarithm of the channels. A
network's latency is taken as the sum of its layers'; how far that is from the truth is measured on whole networks and
kept in the table (``error``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.methods.deepmad.evaluate import squeezed
from vitlab.methods.deepmad.problem import LatencyModel, Problem, Space
from vitlab.methods.deepmad.structure import Conv, Structure

if TYPE_CHECKING:
    import torch
    from torch import nn

Floats = NDArray[np.float64]
Numbers = NDArray[np.integer[Any]]

CHANNELS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Where layers are measured; structures reach further only in depthwise spaces, and there the last slope goes on."""


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

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Short hash of the content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write JSON."""
        write_json(path, asdict(self))

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
        table = np.log(self._find(self.pointwise, str(side)))
        low_i, share_i = self._place(into)
        low_o, share_o = self._place(out)
        rows = [(1 - share_o) * table[low_i + one, low_o] + share_o * table[low_i + one, low_o + 1] for one in (0, 1)]
        times: Floats = np.exp((1 - share_i) * rows[0] + share_i * rows[1])
        return times

    def spatial_ms(self, channels: Numbers, kernels: Numbers, stride: int, side: int) -> Floats:
        """Of the kxk convolutions [n] of units, ``side`` that of the output, before scaling."""
        low, share = self._place(channels)
        times = np.zeros(len(channels))
        for kernel in np.unique(kernels):
            table = np.log(self._find(self.spatial, f"{kernel}/{stride}/{side}"))
            found = np.exp((1 - share) * table[low] + share * table[low + 1])
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
                    low, share = self._place(one(unit.out))
                    table = np.log(self._find(self.stem, str(side)))
                    total += float(np.exp((1 - share) * table[low] + share * table[low + 1])[0])
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
        low, share = self._place(stem)
        table = np.log(self._find(self.stem, str(side)))
        total: Floats = np.exp((1 - share) * table[low] + share * table[low + 1])
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
            low, share = self._place(i)
            table = np.log(self._find(self.stem, str(side)))
            total = total + np.exp((1 - share) * table[low] + share * table[low + 1])
        if block == len(space.strides) - 1 and space.tail is not None:
            total = total + self.pointwise_ms(o, np.full(len(o), space.tail), side // space.strides[block])
        return total * self.scale

    def _place(self, channels: Numbers) -> tuple[Numbers, Floats]:
        grid = np.log(self.channels)
        at = np.log(channels)
        low = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
        return low, (at - grid[low]) / (grid[low + 1] - grid[low])

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
) -> CostTable:
    """Time every layer that structures of ``space`` may need at ``resolution``, then whole ``networks`` as a check.

    Layers beyond every budget are not timed: they are taken to cost so much more as they have more weights.

    Args:
        batch: images at a time.
        device: of torch, e.g. ``cpu`` or ``cuda``.
        networks: structures to compare prediction and truth on.
        channels: the grid.
        affordable: whether a layer of so many weights and that output side may be part of a network; the smallest of
            each kind are timed whatever it says.
        say: told how far it is.
    """
    import torch
    from torch import nn

    from vitlab.models.deepmad import ConvNorm, DeepMAD

    def timed(module: nn.Module, into: int, side: int) -> float:
        return _time(module.to(device).eval(), torch.randn(batch, into, side, side, device=device))

    table = CostTable(_device_name(device), batch, space.kind, list(channels))
    sides = space.sides(resolution)
    last = sides[-1] // space.strides[-1]
    act = nn.SiLU if space.kind == "K1DWSEK1" else nn.ReLU
    table.stem[str(sides[0])] = [timed(ConvNorm(3, c, 3, 2, act=nn.ReLU), 3, 2 * sides[0]) for c in channels]
    for side in sorted({*sides, last, *((1,) if space.kind == "K1DWSEK1" else ())}):
        say(f"layers of {side} px")
        rows: list[list[float]] = []
        table.pointwise[str(side)] = rows
        for at, i in enumerate(channels):
            row: list[float] = []
            for o in channels:
                if affordable(i * o, side) or (not row and not rows):
                    row.append(timed(ConvNorm(i, o, 1, act=act), i, side))
                else:
                    row.append(row[-1] * o / channels[len(row) - 1] if row else rows[-1][0] * i / channels[at - 1])
            rows.append(row)
    for side, stride in sorted({(s, t) for s, t in zip(sides, space.strides, strict=True)}):
        for pace, after in {(stride, side // stride), (1, side // stride)}:
            for kernel in space.kernels_at(side):
                key = f"{kernel}/{pace}/{after}"
                if key in table.spatial:
                    continue
                say(f"kernel {kernel}, stride {pace}, {after} px")
                dense = space.kind == "K1KXK1"
                times: list[float] = []
                table.spatial[key] = times
                for c in channels:
                    if not times or affordable(kernel**2 * c * (c if dense else 1), after):
                        layer = ConvNorm(c, c, kernel, pace, 1 if dense else c, act)
                        times.append(timed(layer, c, after * pace))
                    else:
                        times.append(times[-1] * (c / channels[len(times) - 1]) ** (2 if dense else 1))
    ratios = []
    for structure in networks:
        truth = timed(DeepMAD(structure.to_list(), num_classes=0), 3, resolution)
        ratios.append(truth / table.predict(structure, resolution))
        say(f"a whole network takes {truth:.3g} ms, {ratios[-1]:.2f} times the sum of its layers")
    if ratios:
        table.scale = float(np.median(ratios))
        table.error = float(max(abs(table.scale / one - 1) for one in ratios))
    return table


def whole_ms(network: nn.Module, resolution: int, table: LatencyModel) -> float:
    """Measured milliseconds of a batch through ``network`` on the kind of device that ``table`` is of."""
    import torch

    device = "cpu" if table.device.startswith("cpu") else "cuda"
    image = torch.randn(table.batch, 3, resolution, resolution, device=device)
    return _time(network.to(device).eval(), image, least=0.03, repeats=7)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def _time(module: nn.Module, image: torch.Tensor, least: float = 0.004, repeats: int = 3) -> float:
    """Milliseconds of a forward pass: the best of a few runs of at least ``least`` seconds each."""
    import torch

    def run(count: int) -> float:
        if image.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            module(image)
        if image.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    with torch.inference_mode():
        once = max(run(1), 1e-7)
        once = min(once, run(1))
        count = max(1, min(1000, round(least / once)))
        return 1e3 * min(run(count) for _ in range(repeats))
