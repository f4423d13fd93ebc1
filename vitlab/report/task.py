"""What a report, a comparison and an export take from the task of the network (:mod:`vitlab.tasks` implements it).

The report stands below the tasks, so that a task may draw with its figures; it is handed the task as a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vitlab.measure.bootstrap import Comparison
from vitlab.measure.record import Record
from vitlab.report.compare import Column
from vitlab.report.data import ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Headline, Shown, Tile

if TYPE_CHECKING:
    import torch


class ReportTask(Protocol):
    """The part of a task that pages, tables, cards and exports read."""

    name: ClassVar[str]
    headline: ClassVar[Headline]
    metrics: ClassVar[tuple[Shown, ...]]  # in the tables of sweeps, in this order
    card_metrics: ClassVar[Mapping[str, tuple[str, float]]]  # key: (heading, factor) of a model card's table
    pipeline: ClassVar[str]  # the hub's word for the task

    # -- pages
    templates: ClassVar[Path]  # folder of comparisons, calibration and mistakes, each .md.j2 and .html.j2

    def read_evaluation(self, value: dict[str, Any]) -> Record: ...

    def columns(self, rows: Sequence[ModelRow | PaperRow]) -> list[Column]: ...

    def figures(self, data: ReportData, slots: Mapping[str, int]) -> list[Drawing]: ...

    def tiles(self, row: ModelRow) -> list[Tile]: ...

    def warnings(self, found: Record) -> list[str]: ...

    def findings(self, data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]: ...

    def page_values(self, data: ReportData) -> dict[str, Any]: ...

    def load_code(self, folder: str) -> str: ...

    def card_sentences(self, found: Record) -> list[str]: ...

    def card_purpose(self, classes: int) -> str: ...

    def card_limits(self) -> list[str]: ...

    def compare_logits(
        self, first: str, second: str, a: Mapping[str, Any], b: Mapping[str, Any], found: Record, resamples: int
    ) -> Comparison: ...

    # -- exports
    outputs: ClassVar[tuple[str, ...]]  # names of the tensors that an exported file gives

    def export_metadata(self, fitted: Mapping[str, Any]) -> dict[str, str]: ...

    def activation_code(self, fitted: Mapping[str, Any]) -> str: ...

    def agreement(
        self,
        exported: Callable[[torch.Tensor], torch.Tensor],
        model: torch.nn.Module,
        test: Iterable[tuple[torch.Tensor, torch.Tensor]],
        fitted: Mapping[str, Any],
    ) -> str: ...
