"""Write a run's report: ``report.md`` with PNGs, one self-contained ``report.html``, and ``report.json``.

The page needs nothing but itself: styles are inline, figures are data URIs drawn once for a light and once for a
dark screen, and there is no script. ``report.json`` holds the :class:`ReportData`, from which
``write_report(folder, ReportData.load(folder / "report.json"))`` makes the same report again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.files import atomic_write
from vitlab.measure.cost_record import Cost, Latency
from vitlab.report import curves, page, plots, robust_plots, style
from vitlab.report.backend_figure import latency_bars
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
from vitlab.report.robust import of_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

EXAMPLES = 24  # worst mistakes shown
RELIABILITY = 3  # diagrams shown: the primary model's and the first others'


@dataclass
class ReportPaths:
    """What was written."""

    markdown: Path
    html: Path
    json: Path
    figures: list[Path]


@dataclass
class Drawing:
    """A figure still to be drawn: where it stands, what it is called, and how it is drawn in a theme."""

    section: str
    name: str  # file name without .png
    title: str
    caption: str
    draw: Callable[[style.Theme], Figure | None]
    page: bool = True  # False: for the Markdown only, the page shows the same without a figure


def drawings(data: ReportData) -> list[Drawing]:
    """Every figure that this report may have; those without data draw None."""
    val = data.dataset.val
    validated = f"{val:,} validation images" if val else "evaluated split"
    rows, slots = data.rows, style.slots(data.rows, data.primary)
    stages = {row.stage: slots[row.name] for row in rows}
    out = [
        Drawing(
            "compare",
            "accuracy",
            "Top-1 accuracy of the compared models with 95 % intervals",
            "Dots are measured, bars are Wilson's 95 % intervals for this number of images.",
            lambda theme: plots.accuracy_intervals(rows, theme, slots),
        ),
        Drawing(
            "compare",
            "accuracy-cost",
            "Top-1 accuracy against cost",
            "Further up is better, further left is cheaper; the cost is on a logarithmic scale.",
            lambda theme: plots.cost_accuracy(rows, theme, slots),
        ),
        Drawing(
            "curves",
            "validation",
            "Validation top-1 during training",
            f"Measured on the {validated} as training went; the axis does not begin at zero.",
            lambda theme: curves.accuracy(data.curves, theme, stages),
        ),
        Drawing(
            "curves",
            "loss",
            "Training loss",
            "Faint: single records; strong: running mean. Losses of different objectives do not compare in height.",
            lambda theme: curves.loss(data.curves, theme, stages),
        ),
        Drawing(
            "curves",
            "learning-rate",
            "Learning rate during training",
            "The rate in force at each step.",
            lambda theme: curves.learning_rate(data.curves, theme, stages),
        ),
    ]
    measured = [data.main, *(row for row in rows if row.name != data.primary)]
    for number, row in enumerate([row for row in measured if row.evaluation is not None][:RELIABILITY]):
        slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
        out.append(
            Drawing(
                "reliability",
                f"reliability-{number + 1}-{slug}"[:60],
                f"Reliability diagram of {row.name}",
                "",
                lambda theme, row=row: plots.reliability(row.name, row.evaluation, theme, slots[row.name]),  # type: ignore[misc]
            )
        )
    found = data.main.evaluation
    if found is not None:
        out.append(
            Drawing(
                "confusion",
                "confusion",
                f"Confusion matrix of {data.primary}",
                "Rows are labels, columns predictions, both coloured by their share of the row: blue what is right, "
                "orange what is wrong, each on its own scale.",
                lambda theme: plots.confusion(found, theme),
            )
        )
    robust, shifted = of_rows(rows), [(row.name, row.shifted) for row in rows if row.shifted is not None]
    if robust:
        out.append(
            Drawing(
                "robust",
                "corruptions",
                "Top-1 under each corruption",
                "Mean over the severities; further out is better. Dashed rings: the same images, not corrupted.",
                lambda theme: robust_plots.radar(robust, theme, slots),
            )
        )
        out.append(
            Drawing(
                "robust",
                "severities",
                "Top-1 and calibration error by severity",
                "Means over the corruptions; severity 0 is the image as it is.",
                lambda theme: robust_plots.by_severity(robust, theme, slots),
            )
        )
    if shifted:
        out.append(
            Drawing(
                "shifted",
                "shifted",
                "Top-1 on shifted sets",
                "The answer is the largest of all logits.",
                lambda theme: robust_plots.shifted_bars(shifted, theme, slots),
            )
        )
    for batch in sorted({each.batch for row in rows for each in row.cost.latency}):
        out.append(
            Drawing(
                "cost",
                f"latency-{batch}",
                f"Latency of a batch of {batch}",
                "Median of one forward pass; the line spans 10 to 90 % of the repetitions.",
                lambda theme, batch=batch: plots.latency(rows, theme, slots, batch),  # type: ignore[misc]
            )
        )
    titles = {row.name: row.name for row in rows}
    backends = len({one.backend for one in data.timings}) > 1
    for batch in sorted({one.batch for one in data.timings}) if backends else []:
        here = [one for one in data.timings if one.batch == batch and one.name in titles]
        out.append(
            Drawing(
                "cost",
                f"backends-{batch}",
                f"Backends, a batch of {batch}",
                "Every round timed each bar once, in random order; the line spans 10 to 90 % of the rounds.",
                lambda theme, here=here: latency_bars(here, titles, theme) if here else None,  # type: ignore[misc]
            )
        )
    out.append(
        Drawing(
            "mistakes",
            "mistakes",
            f"Worst mistakes of {data.primary}",
            "Wrong, and most sure of it: below each image its label, and what it was taken for.",
            lambda theme: plots.mistakes(data.examples[:EXAMPLES], theme),
            page=False,
        )
    )
    return out


def write_report(folder: Path, data: ReportData, figures: bool = True) -> ReportPaths:
    """Write the report of ``data`` into ``folder``; what an earlier report left under the same names is replaced.

    Args:
        folder: of the run.
        data: what the report is about.
        figures: draw them; without, the pages are tables and words, and matplotlib is not imported.

    Returns:
        The paths of what was written.
    """
    plan = drawings(data) if figures else []
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
            page.Picture(each.section, file, each.title, each.caption, _uri(light), _uri(dark), width, height)
        )
    markdown, html = page.render(data, pictures)
    paths = ReportPaths(folder / "report.md", folder / "report.html", folder / "report.json", files)
    atomic_write(paths.markdown, markdown)
    atomic_write(paths.html, html)
    data.save(paths.json)
    return paths


def _uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
