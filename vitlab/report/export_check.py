"""What every export is held to: the same logits as the network in memory, on real images."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.eval_mode import eval_mode

Test = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Opens the labelled images an inexact export is measured on: (image [B, 3, S, S], label [B] as a logit's number)."""


class Exported(TypedDict):
    """One file (or the weights of one folder) that was written."""

    format: str
    path: str
    bytes: int
    max_diff: float  # largest |exported - torch| of a logit over the sample images
    note: NotRequired[str]  # what else was measured, or what there is to know


@dataclass
class Accuracy:
    """An exported network beside the one in memory, on the same labelled images."""

    n: int
    exported: float  # top-1, a share
    memory: float
    agreement: float  # share of the images that both call the same

    def __str__(self) -> str:
        return (
            f"top-1 {100 * self.exported:.2f} % instead of {100 * self.memory:.2f} %, the same answer on "
            f"{100 * self.agreement:.2f} % of {self.n:,} test images"
        )


def compare(
    name: str, exported: Callable[[Tensor], Tensor], model: nn.Module, sample: Tensor, tolerance: float
) -> float:
    """Largest difference of a logit at batch 1, 3 and all of ``sample``.

    Raises:
        UserError: it is above ``tolerance``, or not a number.
    """
    with eval_mode(model):
        differences = [exported(sample[:batch]) - model(sample[:batch]) for batch in (1, 3, len(sample))]
    difference = float(torch.cat(differences).abs().max())  # NaN if there is one
    if not difference <= tolerance:  # not >, so that NaN is refused
        raise UserError(
            f"Logits of the {name} export differ from torch's by {difference:.2g}; export.tolerance allows "
            f"{tolerance:.2g}.",
            "The trained model itself is safe. Raise export.tolerance if that is small for your use, or leave the "
            "format out of export.formats.",
        )
    return difference


def accuracy(exported: Callable[[Tensor], Tensor], model: nn.Module, test: Test) -> Accuracy:
    """Both networks on all of ``test``.

    Raises:
        ValueError: there are no images.
    """
    right = [0, 0]
    n = same = 0
    with eval_mode(model):
        for image, label in test():
            mine, theirs = model(image).argmax(1), exported(image).argmax(1)
            right[0] += int((theirs == label).sum())
            right[1] += int((mine == label).sum())
            same += int((mine == theirs).sum())
            n += len(label)
    if n == 0:
        raise ValueError("no images to measure on")
    return Accuracy(n, right[0] / n, right[1] / n, same / n)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter's progress lines, warnings and log records from the screen; errors are raised anyhow."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
