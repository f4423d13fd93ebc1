"""Arithmetic on grids of measured values: isotonic smoothing and multilinear interpolation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def grid_points(axes: Mapping[str, Sequence[int]]) -> Iterator[tuple[tuple[int, ...], dict[str, int]]]:
    """Index and values of every point of a grid, the last axis fastest."""
    for index in product(*(range(len(points)) for points in axes.values())):
        yield index, {name: points[at] for at, (name, points) in zip(index, axes.items(), strict=True)}


def make_monotone(values: Floats) -> Floats:
    """``values`` made non-decreasing along every axis: isotonic least squares along one axis after the other.

    Isotonic regression preserves the order of two lines, so that a later axis does not undo an earlier one; values that
    are already non-decreasing do not change. NaN stands for a point that was not measured, and stays.
    """
    from scipy.optimize import isotonic_regression

    def line(one: Floats) -> Floats:
        known = np.isfinite(one)
        if known.any():
            one = one.copy()
            one[known] = isotonic_regression(one[known]).x
        return one

    found = np.array(values, dtype=np.float64)
    for axis in range(found.ndim):
        found = np.apply_along_axis(line, axis, found)
    return found


def locate(points: Floats, at: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The cell of the ascending ``points`` in which each value of ``at`` lies: index of its lower end, and the fraction
    of the way to the upper one. Values beyond the ends are extrapolated from the last cell; a single point has no cell,
    and the fraction is 0."""
    low = np.clip(np.searchsorted(points, at, side="right") - 1, 0, max(len(points) - 2, 0))
    if len(points) == 1:
        return low, np.zeros(np.shape(at))
    return low, (at - points[low]) / (points[low + 1] - points[low])


def interpolate(points: Sequence[Floats], values: Floats, at: Sequence[Floats]) -> Floats:
    """Multilinear interpolation.

    Args:
        points: of each axis, ascending.
        values: at the grid of ``points``.
        at: of each axis where, all of one shape.

    Returns:
        Values of the shape of each of ``at``.
    """
    places = [locate(one, where) for one, where in zip(points, at, strict=True)]

    def along(axis: int, index: tuple[NDArray[np.intp], ...]) -> Floats:
        if axis == len(places):
            return np.asarray(values[index])
        low, share = places[axis]
        high = np.minimum(low + 1, len(points[axis]) - 1)
        found: Floats = (1 - share) * along(axis + 1, (*index, low)) + share * along(axis + 1, (*index, high))
        return found

    return along(0, ())
