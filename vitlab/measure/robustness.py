"""Robustness records: metrics under corruptions and on shifted test sets, and their means.

Numpy only, so that a report can be rebuilt without torch. Definitions: Hendrycks and Dietterich (ICLR 2019) for
corruptions; Dataset Reinforcement (ICCV 2023), evaluation protocol, for shifted sets and calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlab.measure.classification import CALIBRATION_BINS, Scores, calibration_error, score_images
from vitlab.measure.corruptions import mean_corruption_error
from vitlab.measure.robustness_names import CORRUPTIONS, FAMILIES, SEVERITIES

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Published errors of AlexNet on ImageNet-C, means over the severities: the denominators of mCE, for ImageNet only."""


@dataclass
class Cell:
    """Metrics of a network on one set of images. Shares lie in [0, 1], nll is in nats."""

    name: str  # corruption, or set
    severity: int  # 1 to 5; 0 where there is none
    n: int  # images
    top1: float
    top5: float  # label among the min(5, C) largest logits
    nll: float
    brier: float
    ece: float  # with evaluation.bins bins
    max_ece: float
    mean_confidence: float
    calibrations: list[list[float]] = field(default_factory=list)  # [bins, ece, max_ece] for CALIBRATION_BINS


class Tally:
    """Scores on several sets, accumulated batch by batch: the terms of each image, not its logits."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Scores]] = {}

    def add(self, logits: ArrayLike, label: ArrayLike, slot: ArrayLike | int = 0) -> None:
        """A batch: logits [B, C], label [B] integers in [0, C), and the number of the set [B] of each image."""
        found, which = score_images(logits, label), np.broadcast_to(np.asarray(slot), np.shape(label))
        for number in np.unique(which).tolist():
            rows = which == number
            part = Scores(**{one.name: getattr(found, one.name)[rows] for one in fields(Scores)})
            self._parts.setdefault(number, []).append(part)

    def cell(self, name: str, severity: int = 0, bins: int = 15, slot: int = 0) -> Cell:
        """Metrics of one set.

        Args:
            bins: of ece and max_ece.

        Raises:
            KeyError: if there was no image of it.
        """
        parts = self._parts[slot]
        found = Scores(**{f.name: np.concatenate([getattr(one, f.name) for one in parts]) for f in fields(Scores)})
        ece, max_ece, _ = calibration_error(found.confidence, found.correct, bins)
        return Cell(
            name,
            severity,
            len(found.correct),
            float(found.correct.mean()),
            float(found.in_top.mean()),
            float(found.nll.mean()),
            float(found.brier.mean()),
            ece,
            max_ece,
            float(found.confidence.mean()),
            [[b, *calibration_error(found.confidence, found.correct, b)[:2]] for b in CALIBRATION_BINS],
        )


def nearest_accepted(logits: ArrayLike, accepted: ArrayLike) -> NDArray[np.int64]:
    """[N] a label for each image where several classes are right: the one of them with the largest logit.

    A prediction is then right if and only if it is one of them. NLL and Brier score refer to this label.

    Args:
        logits: [N, C].
        accepted: [N, C] bool, at least one true in each row.
    """
    return np.where(np.asarray(accepted), np.asarray(logits), -np.inf).argmax(1)


@dataclass
class Robustness:
    """Metrics of a network under corruptions.

    ``published`` distinguishes the files of ImageNet-C from corruptions made on the fly; numbers of the two are not
    comparable. ``alexnet``: the images are ImageNet's, so that errors may be divided by those of AlexNet.
    """

    model: str  # fingerprint of the weights
    images: str  # fingerprint of the measured images
    view: str  # description of resizing and crop
    seed: int  # of the corruptions, and of the choice of images
    bins: int  # of ece and max_ece
    whole: int  # images in the split, of which n were measured
    published: bool = False
    alexnet: bool = False
    clean: Cell | None = None  # the same images without corruption
    cells: list[Cell] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The corruptions, in the paper's order."""
        known = {one.name for one in self.cells}
        return [name for name in CORRUPTIONS if name in known]

    @property
    def severities(self) -> list[int]:
        """All that were measured."""
        return sorted({one.severity for one in self.cells})

    @property
    def n(self) -> int:
        """Images in each cell."""
        return self.cells[0].n

    @property
    def whole_benchmark(self) -> bool:
        """Whether all fifteen corruptions were measured at all five severities."""
        return len({(one.name, one.severity) for one in self.cells}) == len(CORRUPTIONS) * len(SEVERITIES)

    def at(self, name: str, severity: int) -> Cell | None:
        """One cell."""
        return next((one for one in self.cells if (one.name, one.severity) == (name, severity)), None)

    def mean(self, metric: str, *, name: str | None = None, severity: int | None = None) -> float:
        """Mean of a metric over all cells, those of a corruption, or those of a severity.

        Raises:
            ValueError: if there is no such cell.
        """
        chosen = [
            getattr(one, metric) for one in self.cells if name in (None, one.name) and severity in (None, one.severity)
        ]
        if not chosen:
            raise ValueError(f"nothing was measured for corruption {name}, severity {severity}")
        return float(np.mean(chosen))

    @property
    def errors(self) -> dict[str, float]:
        """Error of each corruption, mean over its severities."""
        return {name: 1 - self.mean("top1", name=name) for name in self.names}

    @property
    def mean_error(self) -> float:
        """Mean over the corruptions of their errors, not divided by a reference model's."""
        return float(np.mean(list(self.errors.values())))

    @property
    def mce(self) -> float | None:
        """Mean corruption error relative to AlexNet; None unless all corruptions were measured, on ImageNet."""
        return mean_corruption_error(self.errors, ALEXNET) if self.alexnet and self.whole_benchmark else None

    @property
    def kept(self) -> float | None:
        """Share of the clean accuracy that is left, mean over all cells; None without clean accuracy."""
        return self.mean("top1") / self.clean.top1 if self.clean is not None and self.clean.top1 > 0 else None

    def family(self, family: str) -> float | None:
        """Mean top-1 over the measured corruptions of a family; None where there are none."""
        errors = [error for name, error in self.errors.items() if name in FAMILIES[family]]
        return 1 - float(np.mean(errors)) if errors else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Robustness:
        """The inverse of :meth:`to_dict`."""
        clean = Cell(**value["clean"]) if value.get("clean") else None
        return cls(**{**value, "clean": clean, "cells": [Cell(**one) for one in value["cells"]]})


@dataclass
class ShiftedSet:
    """Metrics of a network on one set of images of ImageNet's classes.

    ``full``: the prediction is the largest of all logits. ``restricted``: the largest among the classes of the set,
    where these are a part of the network's classes (the protocol of the authors of ImageNet-A and ImageNet-R).
    """

    name: str  # key in vitlab.data.shifted.SETS
    title: str
    images: str  # fingerprint of the measured images
    whole: int  # images of the published set
    classes: int  # WordNet ids that are right answers and among the network's classes
    left_out: int  # images of classes that the network does not have
    full: Cell
    restricted: Cell | None = None
    absent: int = 0  # classes of the published set without an image: the copy is incomplete


@dataclass
class Shifted:
    """Metrics of a network on the shifted ImageNet sets that were found."""

    model: str  # fingerprint of the weights
    view: str  # description of resizing and crop
    bins: int  # of ece and max_ece
    sets: list[ShiftedSet] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # titles of the sets that were not found
    corrupted: Robustness | None = None  # ImageNet-C as published

    @property
    def average(self) -> float | None:
        """Mean top-1 over the sets that differ from the validation images, ImageNet-C as one of them; None for one set.

        Of the three variants of ImageNetV2 only the matched frequencies count (Dataset Reinforcement, Table 7).
        """
        shares = [one.full.top1 for one in self.sets if one.name in AVERAGED]
        if self.corrupted is not None:
            shares.append(self.corrupted.mean("top1"))
        return float(np.mean(shares)) if len(shares) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Shifted:
        """The inverse of :meth:`to_dict`."""
        sets = [
            ShiftedSet(
                **{
                    **one,
                    "full": Cell(**one["full"]),
                    "restricted": Cell(**one["restricted"]) if one["restricted"] else None,
                }
            )
            for one in value["sets"]
        ]
        corrupted = Robustness.from_dict(value["corrupted"]) if value.get("corrupted") else None
        return cls(**{**value, "sets": sets, "corrupted": corrupted})


AVERAGED = ("v2", "a", "r", "sketch", "objectnet")
"""Sets whose top-1 enters :attr:`Shifted.average`, beside ImageNet-C."""
