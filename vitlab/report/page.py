"""What the page says: headline numbers, findings in words, and the pieces that the templates arrange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitlab._version import __version__
from vitlab.config.size import sides_text
from vitlab.measure.bootstrap import Comparison
from vitlab.measure.classification import ClassScore, Evaluation, wilson
from vitlab.report import robust, style
from vitlab.report.compare import DASH, SYNTHETIC, compare, count, duration, file_size, milliseconds, percent, si
from vitlab.report.data import ModelRow, ReportData
from vitlab.report.text_tables import CHANCE, p_value, span

CLASSES_SHOWN = 100  # rows of the per-class table; the rest is in report.json
PAIRS_SHOWN = 10


@dataclass
class Tile:
    """One headline number."""

    label: str
    value: str
    unit: str
    detail: str


@dataclass
class Picture:
    """A figure as it stands on the page."""

    section: str  # compare | curves | reliability | robust | shifted | confusion | cost | mistakes
    file: str  # relative to the report's folder
    title: str
    caption: str
    light: str  # data: URI
    dark: str
    width: int  # CSS pixels
    height: int


def interval(found: Evaluation) -> tuple[float, float]:
    """95 % interval of top-1, in percent."""
    lo, hi = wilson(round(found.top1 * found.n), found.n)
    return 100 * lo, 100 * hi


def tiles(data: ReportData) -> list[Tile]:
    """The numbers that a hurried reader takes away, of the primary model."""
    row, found = data.main, data.main.evaluation
    out = []
    if found is not None:
        lo, hi = interval(found)
        images = f"{lo:.1f} to {hi:.1f} (95 % interval), {found.n:,} images"
        out.append(Tile("Top-1 accuracy", percent(found.top1), "%", images))
        after = f", {percent(found.temperature.ece)} % with temperature" if found.temperature is not None else ""
        detail = f"ECE of {found.bins} bins{after}; NLL {found.nll:.3f}"
        out.append(Tile("Calibration error", percent(found.ece), "%", detail))
    elif "top1" in row.metrics:
        out.append(Tile("Top-1 accuracy", percent(row.metrics["top1"]), "%", ""))
    if row.cost.params is not None:
        out.append(Tile("Parameters", *_split(si(row.cost.params)), row.architecture))
    if row.cost.macs is not None:
        out.append(Tile("Multiply-adds", *_split(si(row.cost.macs)), "for one image"))
    if row.cost.latency:
        least = min(row.cost.latency, key=lambda each: each.batch)
        detail = ", ".join(filter(None, [f"batch of {least.batch}", row.cost.device]))
        out.append(Tile("Latency", milliseconds(least.median_ms), "ms", detail))
    if row.cost.bytes is not None:
        out.append(Tile("Weights", *_split(file_size(row.cost.bytes)), "on disk"))
    return out


def _split(text: str) -> tuple[str, str]:
    number, _, unit = text.partition(" ")
    return number, unit


def findings(data: ReportData) -> list[str]:
    """What the numbers say, in sentences that claim no more than the numbers do."""
    out = []
    main = data.main
    for row in data.rows:
        if row.name == main.name or "top1" not in row.metrics or "top1" not in main.metrics:
            continue
        points = 100 * (main.metrics["top1"] - row.metrics["top1"])
        word = "above that of" if points > 0 else "below that of"
        place = f"{abs(points):.2f} points {word}" if f"{abs(points):.2f}" != "0.00" else "level with that of"
        shares = _shares(main, row) if row.role == "teacher" else ""
        paired = next((one for one in data.comparisons if {one.first, one.second} == {main.name, row.name}), None)
        chance = _chance(main, row) if paired is None else _paired(paired, main.name, row.name)
        out.append(f"top-1 is {place} {row.name} ({percent(row.metrics['top1'])} %){shares}.{chance}")
    found = main.evaluation
    if found is not None:
        gap = 100 * (found.mean_confidence - found.top1)
        manner = "it is too sure of itself" if gap > 0 else "it is too modest"
        verdict = manner if abs(gap) >= 1 else "the two agree to within a point"
        out.append(
            f"mean confidence {percent(found.mean_confidence)} % where {percent(found.top1)} % are right: {verdict}."
        )
        fitted = found.temperature
        if fitted is not None:
            out.append(
                f"dividing the logits by {fitted.value:.3g} changes the calibration error from {percent(found.ece)} to "
                f"{percent(fitted.ece)} % (temperature scaling, fitted on the {fitted.fitted_on})."
            )
    return [sentence[0].upper() + sentence[1:] for sentence in out]


def _whole(parts: Sequence[float | None]) -> float:
    """The sum, or 0 while a part is not known."""
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


def _paired(one: Comparison, main: str, other: str) -> str:
    """What McNemar's test says of two models on the same images."""
    verdict = "the difference may be chance" if one.p_value >= CHANCE else "that is more than chance explains"
    own, others = (one.only_first, one.only_second) if one.first == main else (one.only_second, one.only_first)
    where = f"On {count(own, 'image')} it is right where {other} is wrong, and on {others:,} the other way round"
    return f" {where} (McNemar p = {p_value(one.p_value)}): {verdict}."


def _chance(main: ModelRow, row: ModelRow) -> str:
    if main.evaluation is None or row.evaluation is None:
        return ""
    (a, b), (c, d) = interval(main.evaluation), interval(row.evaluation)
    if a > d or c > b:
        return ""
    return f" Their 95 % intervals overlap: on {main.evaluation.n:,} images the difference may be chance."


def load_code(data: ReportData) -> str:
    """Python that names the class of a picture with the primary model."""
    folder = "/".join(filter(None, [data.run, data.main.folder]))
    return f"""\
import torch
import vitlab
from PIL import Image
from vitlab.distill.views import EvalView

model = vitlab.load_model("{folder}")
meta = model.meta
view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
with torch.inference_mode():
    probability = model(view(Image.open("picture.png").convert("RGB"))[None]).softmax(1)[0]
print(meta.classes[int(probability.argmax())], float(probability.max()))
"""


def confused_pairs(found: Evaluation) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: label, prediction, images, share of the class."""
    own = {score.name: score.n for score in found.per_class}
    wrong = sorted((row for row in found.counts if row[0] != row[1]), key=lambda row: (-row[2], row[0], row[1]))
    return [
        (found.classes[label], found.classes[predicted], count, count / own[found.classes[label]])
        for label, predicted, count in wrong[:PAIRS_SHOWN]
    ]


def weakest(found: Evaluation) -> list[ClassScore]:
    """Classes by recall, worst first, those without images last; at most CLASSES_SHOWN."""
    order = sorted(found.per_class, key=lambda score: (score.recall is None, score.recall or 0.0))
    return order[:CLASSES_SHOWN]


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


def render(data: ReportData, pictures: Sequence[Picture]) -> tuple[str, str]:
    """The report as Markdown and as one HTML page."""
    slots = style.slots(data.rows, data.primary)
    table = compare(data.rows, data.paper_rows, data.primary, data.dataset.synthetic)
    found = data.main.evaluation
    values: dict[str, Any] = {
        "data": data,
        "main": data.main,
        "found": found,
        "tiles": tiles(data),
        "findings": findings(data),
        "table": table,
        "table_html": Markup(table.html({name: f"c{slot}" for name, slot in slots.items()})),
        "slots": slots,
        "pictures": lambda section: [each for each in pictures if each.section == section],
        "pairs": confused_pairs(found) if found else [],
        "weakest": weakest(found) if found else [],
        "load_code": data.load_code or load_code(data),
        "facts": facts(data.environment),
        "seconds": _whole([stage.seconds for stage in data.stages]),
        "calibrated": [row for row in data.rows if row.evaluation is not None and row.evaluation.calibrations],
        "robust": robust.section(data.rows),
        "span": span,
        "p_value": p_value,
        "SYNTHETIC": SYNTHETIC,
        "DASH": DASH,
        "light": style.LIGHT,
        "dark": style.DARK,
        "version": __version__,
    }
    filters = {
        "percent": percent,
        "sides": sides_text,
        "si": si,
        "file_size": file_size,
        "ms": milliseconds,
        "duration": duration,
    }
    texts = []
    for name, html in (("report.md.j2", False), ("report.html.j2", True)):
        jinja = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=html,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        jinja.filters.update(filters)
        jinja.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
        jinja.filters["together"] = lambda text: str(text).replace(" %", "\u00a0%")
        texts.append(jinja.get_template(name).render(values))
    return texts[0], texts[1]
