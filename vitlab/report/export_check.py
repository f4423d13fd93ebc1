"""What every export is held to: the same logits as the network in memory, on real images."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.eval_mode import eval_mode

Test = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Opens the labelled images an inexact export is measured on: (image [B, 3, S, S], label in the
order of the logits)."""


class Exported(TypedDict):
    """One file (or the weights of one folder) that was written."""

    format: str
    path: str
    bytes: int
    max_diff: float  # largest |exported - torch| of a logit over the sample images
    note: NotRequired[str]  # what else was measured, or what there is to know


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
