"""What stands on the page: headline numbers, findings in words, and the pieces that the templates arrange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitlab._version import __version__
from vitlab.config.size import sides_text
from vitlab.report import markdown, robust, style
from vitlab.report.compare import (
    DASH,
    SYNTHETIC,
    capitalised,
    compare,
    duration,
    file_of,
    file_size,
    milliseconds,
    percent,
    si,
)
from vitlab.report.data import ModelRow, ReportData
from vitlab.report.pieces import Picture, Tile
from vitlab.report.task import ReportTask
from vitlab.report.text_tables import p_value, span
from vitlab.report.verdict import verdict


def tiles(data: ReportData, task: ReportTask) -> list[Tile]:
    """The headline numbers of the primary model: what the task measures, then cost."""
    row = data.main
    out = task.tiles(row)
    if row.cost.params is not None:
        out.append(Tile("Parameters", *_split(si(row.cost.params)), row.architecture))
    if row.cost.macs is not None:
        out.append(Tile("Multiply-adds", *_split(si(row.cost.macs)), "for one image"))
    if row.cost.latency:
        least = min(row.cost.latency, key=lambda each: each.batch)
        busy = f"machine busy ({row.cost.busy})" if row.cost.busy else ""
        detail = ", ".join(filter(None, [f"batch of {least.batch}", row.cost.device, busy]))
        out.append(Tile("Latency", milliseconds(least.median_ms), "ms", detail))
    if row.cost.bytes is not None:
        out.append(Tile("Weights", *_split(file_size(row.cost.bytes)), "on disk"))
    return out


def _split(text: str) -> tuple[str, str]:
    number, _, unit = text.partition(" ")
    return number, unit


def findings(data: ReportData, task: ReportTask) -> list[str]:
    """Findings in sentences that claim no more than the numbers show; first what speaks against the result."""
    found = data.main.evaluation
    doubts = [] if found is None else task.warnings(found)
    every = [*doubts, *verdict(data, task), *task.findings(data, _shares)]
    others = [row for row in data.rows if row.name != data.primary and row.evaluation is not None]
    every += [f"{row.name}: {one}" for row in others for one in task.warnings(row.evaluation)]  # type: ignore[arg-type]
    return [capitalised(sentence) for sentence in every]


def _known_sum(parts: Sequence[float | None]) -> float:
    """The sum; 0 where a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else 0.0


def _shares(main: ModelRow, row: ModelRow) -> str:
    parts = [
        f"{100 * own / other:.3g} % of its {name}"
        for name, own, other in (
            ("parameters", main.cost.params, row.cost.params),
            ("multiply-adds", main.cost.macs, row.cost.macs),
        )
        if own and other
    ]
    return f", with {' and '.join(parts)}" if parts else ""


def load_code(data: ReportData, task: ReportTask) -> str:
    """Python that predicts one picture with the primary model."""
    return data.load_code or task.load_code("/".join(filter(None, [data.run, data.main.folder])))


def facts(value: Mapping[str, Any], above: str = "") -> list[tuple[str, list[tuple[str, str]]]]:
    """A nested mapping as groups of name and text; the group of plain values comes first, without a name."""
    plain = [(str(k), _text(v)) for k, v in value.items() if not isinstance(v, Mapping)]
    groups = [(above, plain)] if plain else []
    for k, v in value.items():
        if isinstance(v, Mapping):
            groups += facts(v, f"{above} · {k}" if above else str(k))
    return groups


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return DASH if value is None or value == "" else str(value)


def render(data: ReportData, pictures: Sequence[Picture], task: ReportTask) -> tuple[str, str]:
    """The report as Markdown and as one HTML page."""
    slots = style.slots(data.rows, data.primary)
    table = compare(data.rows, task.columns, data.paper_rows, data.primary, data.dataset.synthetic)
    found = data.main.evaluation
    values: dict[str, Any] = {
        "data": data,
        "main": data.main,
        "found": found,
        "tiles": tiles(data, task),
        "findings": findings(data, task),
        "table": table,
        "table_html": Markup(table.html({name: f"c{slot}" for name, slot in slots.items()})),
        "slots": slots,
        "pictures": lambda section: [each for each in pictures if each.section == section],
        "load_code": load_code(data, task),
        "facts": facts(data.environment),
        "seconds": _known_sum([stage.seconds for stage in data.stages]),
        "robust": robust.section(data.rows),
        "span": span,
        "p_value": p_value,
        "SYNTHETIC": SYNTHETIC,
        "DASH": DASH,
        "light": style.LIGHT,
        "dark": style.DARK,
        "version": __version__,
        **task.page_values(data),
    }
    filters = {
        "percent": percent,
        "sides": sides_text,
        "si": si,
        "file_size": file_size,
        "ms": milliseconds,
        "duration": duration,
        "file_of": file_of,
    }
    texts = []
    for name, html in (("report.md.j2", False), ("report.html.j2", True)):
        jinja = Environment(
            loader=FileSystemLoader([Path(__file__).parent / "templates", task.templates]),
            autoescape=html,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        jinja.filters.update(filters)
        jinja.filters |= {"plain": markdown.plain, "code": markdown.code, "block": markdown.block}
        jinja.filters["together"] = lambda text: str(text).replace(" %", "\u00a0%")
        texts.append(jinja.get_template(name).render(values))
    return texts[0], texts[1]
