"""TinyViT's architecture as numbers, its costs in closed form, and the factors that contraction changes.

The sums hold exactly for every shape, so a search may use them as its constraint without building a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

STEP = 32
"""Channels by which one move lowers an embedding dimension."""

LEAST_WINDOW, LEAST_HEAD = 4, 16
"""Smallest window side and head dimension that a move may reach."""

REFERENCE = 224
"""Windows are divisors of a stage's side at this many pixels."""


@dataclass(frozen=True, order=True)
class Shape:
    """Factors of the paper's section on model scaling.

    ``dims`` D1..D4, ``depths`` N1..N4, ``windows`` W2..W4 (the first stage is convolutional), ``expand`` R of MBConv,
    ``ratio`` M of the MLP, ``head_dim`` E of attention.
    """

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    windows: tuple[int, int, int]
    expand: float = 4.0
    ratio: float = 4.0
    head_dim: int = 32

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Shape:
        """From the arguments of timm's network.

        Raises:
            ValueError: stages of different head dimension.
        """
        dims, heads = tuple(args["embed_dims"]), tuple(args["num_heads"])
        found = {dim // count for dim, count in zip(dims[1:], heads[1:], strict=True)}
        if len(found) != 1:
            raise ValueError(f"dims {dims} and heads {heads} give no common head dimension")
        return cls(
            dims,
            tuple(args["depths"]),
            tuple(args["window_sizes"][1:]),
            float(args.get("mbconv_expand_ratio", 4.0)),
            float(args.get("mlp_ratio", 4.0)),
            found.pop(),
        )

    @property
    def heads(self) -> tuple[int, int, int]:
        """Attention heads of stages 2 to 4."""
        two, three, four = (dim // self.head_dim for dim in self.dims[1:])
        return two, three, four

    def args(self) -> dict[str, Any]:
        """Arguments of timm's network; its first stage reads neither heads nor window."""
        return {
            "embed_dims": list(self.dims),
            "depths": list(self.depths),
            "num_heads": [1, *self.heads],
            "window_sizes": [self.windows[0], *self.windows],
            "mbconv_expand_ratio": self.expand,
            "mlp_ratio": self.ratio,
        }

    def params(self, classes: int) -> int:
        """Parameters with a head of ``classes``: stem, MBConv stage, three downsamplings, attention stages, head."""
        first, *_ = self.dims
        hidden = int(self.expand * first)
        half = first // 2
        total = 27 * half + 2 * half + 9 * half * first + 2 * first
        total += self.depths[0] * (2 * first * hidden + 13 * hidden + 2 * first)
        for a, b in zip(self.dims, self.dims[1:], strict=False):
            total += a * b + b * b + 15 * b
        for d, n, h, w in zip(self.dims[1:], self.depths[1:], self.heads, self.windows, strict=True):
            wide = int(self.ratio * d)
            total += n * (4 * d * d + 2 * d * wide + 20 * d + wide + h * w * w)
        last = self.dims[3]
        return total + 2 * last + classes * last + classes

    def macs(self, size: int, classes: int) -> int:
        """Multiply-adds of one image of ``size`` pixels: convolutions, linear layers, both products of attention."""
        first, *_ = self.dims
        hidden = int(self.expand * first)
        half = first // 2
        side = ceil(ceil(size / 2) / 2)
        total = 27 * half * ceil(size / 2) ** 2 + 9 * half * first * side**2
        total += self.depths[0] * side**2 * (2 * first * hidden + 9 * hidden)
        stages = zip(self.dims, self.dims[1:], self.depths[1:], self.windows, strict=False)
        for a, b, n, w in stages:
            before, side = side, ceil(side / 2)
            wide, padded = int(self.ratio * b), (ceil(side / w) * w) ** 2
            total += before**2 * a * b + side**2 * (9 * b + b * b)
            attention = 4 * b * b * padded + 2 * padded * w * w * b
            total += n * (attention + 9 * b * side**2 + 2 * b * wide * side**2)
        return total + classes * self.dims[3]

    def smaller(self) -> Iterator[tuple[str, Shape]]:
        """Each shape that is one move away, with the move's name.

        A move is: D_s less 32 (a multiple of E, no stage narrower than the one before), N_s less 1 (at least 1), W_s to
        the next smaller divisor of the stage's side at 224 px (at least 4), R or M less 1 (at least 1), E to E / 2 (at
        least 16).
        """
        for s in range(4):
            dims = _changed(self.dims, s, self.dims[s] - STEP)
            legal = dims[s] > 0 and all(a <= b for a, b in pairwise(dims))
            if legal and (s == 0 or dims[s] % self.head_dim == 0):
                yield f"D{s + 1}", replace(self, dims=dims)
        for s in range(4):
            if self.depths[s] > 1:
                yield f"N{s + 1}", replace(self, depths=_changed(self.depths, s, self.depths[s] - 1))
        for s in range(3):
            side = REFERENCE // 8 >> s
            fits = [w for w in range(LEAST_WINDOW, self.windows[s]) if side % w == 0]
            if fits:
                yield f"W{s + 2}", replace(self, windows=_changed(self.windows, s, fits[-1]))
        if self.expand >= 2:
            yield "R", replace(self, expand=self.expand - 1)
        if self.ratio >= 2:
            yield "M", replace(self, ratio=self.ratio - 1)
        if self.head_dim >= 2 * LEAST_HEAD and self.head_dim % 2 == 0:
            yield "E", replace(self, head_dim=self.head_dim // 2)


def _changed(values: tuple[int, ...], position: int, value: int) -> Any:
    return (*values[:position], value, *values[position + 1 :])
