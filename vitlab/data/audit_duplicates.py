"""Duplicate pictures: identical files, and files saved again at another size or quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitlab.data.audit_files import FileInfo

MEAN_APART = 3.0  # of 255: largest mean difference of two thumbnails that look alike
MOST_APART = 24  # of 255: largest difference of one of their values
BITS_APART = 12  # of 128: largest difference of their gradients
PLAIN = 3.0  # of 255: a thumbnail whose channels all have a smaller standard deviation is too plain to be compared
NEIGHBOURS = 128  # comparisons of a picture with those of equal gradient bytes, nearest in brightness first


def find_identical(looks: Sequence[FileInfo]) -> list[list[int]]:
    """Groups (two or more positions) of files with equal content."""
    groups: dict[bytes, list[int]] = {}
    for position, one in enumerate(looks):
        if one.content:
            groups.setdefault(one.content, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def find_similar(looks: Sequence[FileInfo]) -> list[list[int]]:
    """Groups of files that show the same picture; of identical files only the first is listed.

    Candidates share two bytes of their gradient (one of eight bands); they are then compared by all of their gradient
    and by their thumbnails. Plain pictures, which all look alike, are left out. Pictures that were cropped, flipped or
    rotated are not found.
    """
    # All pairs of 100,000 files would be 5e9 comparisons. Two gradients of 128 bits that differ in at most 7 have one
    # of the eight 16-bit bands in common, and most of those that differ in up to BITS_APART = 12 have as well.
    first: dict[bytes, int] = {}
    for position, one in enumerate(looks):
        if one.content and one.content not in first:
            first[one.content] = position
    at = np.array(sorted(first.values()), dtype=np.int64)
    if len(at) < 2:
        return []
    thumbs = np.frombuffer(b"".join(looks[i].thumbnail for i in at), np.uint8).reshape(len(at), -1)
    seen = thumbs.reshape(len(at), -1, 3).std(axis=1).max(axis=1) >= PLAIN
    at, thumbs = at[seen], thumbs[seen]
    if len(at) < 2:
        return []
    gradient = np.frombuffer(b"".join(looks[i].gradient for i in at), np.uint8).reshape(len(at), 16)
    bright = thumbs.mean(axis=1)
    pairs = [_pairs(band, bright, thumbs, gradient) for band in gradient.view("<u2").T]
    return _join(np.unique(np.concatenate(pairs), axis=0), at)


def _pairs(
    band: npt.NDArray[np.uint16],
    bright: npt.NDArray[np.float64],
    thumbs: npt.NDArray[np.uint8],
    gradient: npt.NDArray[np.uint8],
) -> npt.NDArray[np.int64]:
    """``[P, 2]`` pairs with an equal band that look alike.

    Sorted by (band, brightness), such a pair is close together, since the mean brightness of the two differs by no more
    than their thumbnails do.
    """
    order = np.lexsort((bright, band))
    band, bright = band[order], bright[order]
    found = []
    start = np.arange(len(order) - 1)
    for step in range(1, NEIGHBOURS + 1):
        start = start[start + step < len(order)]
        near = (band[start] == band[start + step]) & (bright[start + step] - bright[start] <= MEAN_APART)
        start = start[near]
        if len(start) == 0:
            break
        a, b = order[start], order[start + step]
        alike = np.bitwise_count(gradient[a] ^ gradient[b]).sum(1) <= BITS_APART
        a, b = a[alike], b[alike]
        apart = np.abs(thumbs[a].astype(np.int16) - thumbs[b])
        alike = (apart.mean(1) <= MEAN_APART) & (apart.max(1, initial=0) <= MOST_APART)
        found.append(np.sort(np.stack([a[alike], b[alike]], axis=1), axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _join(pairs: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> list[list[int]]:
    """Groups of positions that pairs connect, in order (union-find with path halving)."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for a, b in pairs.tolist():
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    groups: dict[int, list[int]] = {}
    for one in sorted(parent):
        groups.setdefault(root(one), []).append(int(at[one]))
    return list(groups.values())
