"""Write a run's report: ``report.md`` with PNGs, one self-contained ``report.html``, and ``report.json``.

The page needs nothing but itself: styles are inline, figures are data URIs drawn once for a light and once for a
dark screen, and there is no script. ``report.json`` holds the :class:`ReportData`, from which
``write_report(folder, ReportData.load(folder / "report.json", find_task), task)`` makes the same report again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitlab.files import atomic_write
from vitlab.measure.cost_record import Cost, Latency
from vitlab.report import page, style
from vitlab.report.data import (
    Curve,
    DatasetInfo,
    Example,
    ExportFile,
    ModelRow,
    PaperRow,
    ReportData,
    StageRow,
    curves_of,
)
from vitlab.report.figures import drawings
from vitlab.report.pieces import Picture
from vitlab.report.stage_figures import data_uri, stage_pictures
from vitlab.report.task import ReportTask

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


def write_report(folder: Path, data: ReportData, task: ReportTask, figures: bool = True) -> ReportPaths:
    """Write the report of ``data`` into ``folder``; an earlier report there is replaced.

    Args:
        folder: of the run.
        data: what the report is about.
        task: of its models.
        figures: draw them; without, the pages are tables and words, and matplotlib is not imported.

    Returns:
        The paths of what was written.
    """
    plan = drawings(data, task) if figures else []
    drawn: dict[str, dict[str, bytes]] = {}
    for theme in (style.LIGHT, style.DARK) if figures else ():
        with style.themed(theme):
            for each in plan:
                figure = each.draw(theme) if each.page or theme is style.LIGHT else None
                if figure is not None:
                    if data.dataset.synthetic:
                        style.mark_synthetic(figure, theme)
                    drawn.setdefault(each.name, {})[theme.name] = style.png(figure)
    pictures, files = [], []
    for each in plan:
        if each.name not in drawn:
            continue
        light = drawn[each.name]["light"]
        dark = drawn[each.name].get("dark", light)
        width, height = (int.from_bytes(light[at : at + 4], "big") * 96 // style.DPI for at in (16, 20))
        file = f"figures/{each.name}.png"
        atomic_write(folder / file, light)
        files.append(folder / file)
        pictures.append(
            Picture(each.section, file, each.title, each.caption, data_uri(light), data_uri(dark), width, height)
        )
    if figures:
        pictures += stage_pictures(folder, [stage.name for stage in data.stages])
    markdown, html = page.render(data, pictures, task)
    paths = ReportPaths(folder / "report.md", folder / "report.html", folder / "report.json", files)
    atomic_write(paths.markdown, markdown)
    atomic_write(paths.html, html)
    data.save(paths.json)
    return paths
