"""Classification in reports: columns, headline numbers, findings in words, what the templates show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitlab.measure.bootstrap import Comparison
from vitlab.measure.classification import ClassScore, Evaluation, top1_interval
from vitlab.report import plots
from vitlab.report.compare import Column, count, metric, percent
from vitlab.report.data import ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Tile
from vitlab.report.text_tables import CHANCE, p_equation
from vitlab.tasks.parts import classification_figures as figures

CLASSES_SHOWN = 100  # rows of the per-class table; the rest is in report.json
PAIRS_SHOWN = 10
EXAMPLES = 24  # worst mistakes shown
TO_TRY = "What helps: a lower recipe.lr, a longer recipe.warmup, a longer training; the loss is in metrics.jsonl."
RELIABILITY = 3  # diagrams shown: the primary model's and the first others'


def columns(rows: Sequence[ModelRow | PaperRow]) -> list[Column]:
    """Accuracy and calibration."""
    found = (row.evaluation for row in rows if isinstance(row, ModelRow))
    top_k = next((one.top_k for one in found if isinstance(one, Evaluation)), 5)
    return [
        Column("Top-1 %", metric("top1"), percent, +1, "images whose label has the largest logit"),
        Column(f"Top-{top_k} %", metric("top5"), percent, +1, f"label among the {top_k} largest logits"),
        Column("NLL", metric("nll"), lambda v: f"{v:.3f}", -1, "mean negative log-likelihood of the label, in nats"),
        Column("ECE %", metric("ece"), percent, -1, "expected calibration error: how far confidence is from accuracy"),
    ]


def drawings(data: ReportData, slots: Mapping[str, int]) -> list[Drawing]:
    """Accuracy with intervals, reliability diagrams, the confusion matrix and the worst mistakes."""
    rows, found = data.rows, data.main.evaluation
    out = [
        Drawing(
            "compare",
            "accuracy",
            "Top-1 accuracy of the compared models with 95 % intervals",
            f"Dots are measured, bars are 95 % {_kinds(rows)} intervals for this number of images.",
            lambda theme: figures.accuracy_intervals(rows, theme, slots),
        )
    ]
    measured = [data.main, *(row for row in rows if row.name != data.primary)]
    for number, row in enumerate([row for row in measured if isinstance(row.evaluation, Evaluation)][:RELIABILITY]):
        slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
        out.append(
            Drawing(
                "reliability",
                f"reliability-{number + 1}-{slug}"[:60],
                f"Reliability diagram of {row.name}",
                "",
                lambda theme, row=row: figures.reliability(row.name, row.evaluation, theme, slots[row.name]),  # type: ignore[misc]
            )
        )
    if isinstance(found, Evaluation):
        out.append(
            Drawing(
                "confusion",
                "confusion",
                f"Confusion matrix of {data.primary}",
                "Rows are labels, columns predictions, both coloured by their share of the row: blue what is right, "
                "orange what is wrong, each on its own scale.",
                lambda theme: figures.confusion(found, theme),
            )
        )
    out.append(
        Drawing(
            "mistakes",
            "mistakes",
            f"Worst mistakes of {data.primary}",
            "Wrong with the highest confidence: below each image its label, and the prediction.",
            lambda theme: plots.mistakes(data.examples[:EXAMPLES], theme),
            page=False,
        )
    )
    return out


def warnings(found: Evaluation) -> list[str]:
    """That the network names one class for all images, or is no better than one that would."""
    largest = max(found.per_class, key=lambda one: one.n)
    share = largest.n / found.n
    if len(found.classes) < 2 or found.top1 > share:
        return []
    always = f"always naming {largest.name}, the most frequent class, is right for {percent(share)} %"
    named = [one.name for one in found.per_class if one.predicted]
    if len(named) == 1:
        return [f"the network names one class, {named[0]}, for all {found.n:,} images: {always}. {TO_TRY}"]
    missing = len(found.classes) - len(named)
    some = f" and {count(missing, 'class').replace('classs', 'classes')} never named" if missing else ""
    return [f"top-1 of {percent(found.top1)} % is no better than chance: {always}{some}. {TO_TRY}"]


def interval(found: Evaluation) -> tuple[float, float]:
    """95 % interval of top-1, in percent; the one that prompt, report and card give, see :func:`top1_interval`."""
    lo, hi, _ = top1_interval(found)
    return 100 * lo, 100 * hi


def _kinds(rows: Sequence[ModelRow]) -> str:
    kinds = [top1_interval(row.evaluation)[2] for row in rows if isinstance(row.evaluation, Evaluation)]
    return " or ".join(dict.fromkeys(kinds)) or "Wilson"


def tiles(row: ModelRow) -> list[Tile]:
    """Accuracy with its interval, and the calibration error."""
    found = row.evaluation
    if not isinstance(found, Evaluation):
        return [Tile("Top-1 accuracy", percent(row.metrics["top1"]), "%", "")] if "top1" in row.metrics else []
    lo, hi, kind = top1_interval(found)
    images = f"{100 * lo:.1f} to {100 * hi:.1f} (95 % {kind} interval), {found.n:,} images"
    after = f", {percent(found.temperature.ece)} % with temperature" if found.temperature is not None else ""
    detail = f"ECE of {found.bins} bins{after}; NLL {found.nll:.3f}"
    return [
        Tile("Top-1 accuracy", percent(found.top1), "%", images),
        Tile("Calibration error", percent(found.ece), "%", detail),
    ]


def findings(data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]:
    """Accuracy beside the other models, the gap between confidence and accuracy, what a temperature changes."""
    out = []
    main = data.main
    for row in data.rows:
        if row.name == main.name or "top1" not in row.metrics or "top1" not in main.metrics:
            continue
        points = 100 * (main.metrics["top1"] - row.metrics["top1"])
        word = "above that of" if points > 0 else "below that of"
        place = f"{abs(points):.2f} points {word}" if f"{abs(points):.2f}" != "0.00" else "level with that of"
        size = shares(main, row) if row.role == "teacher" else ""
        paired = next((one for one in data.comparisons if {one.first, one.second} == {main.name, row.name}), None)
        chance = _chance(main, row) if paired is None else _paired(paired, main.name, row.name)
        out.append(f"top-1 is {place} {row.name} ({percent(row.metrics['top1'])} %){size}.{chance}")
    found = main.evaluation
    if isinstance(found, Evaluation):
        gap = 100 * (found.mean_confidence - found.top1)
        manner = "overconfident" if gap > 0 else "underconfident"
        verdict = f"{manner} by {abs(gap):.2f} points" if abs(gap) >= 1 else "the two agree to within a point"
        out.append(
            f"mean confidence is {percent(found.mean_confidence)} %, accuracy {percent(found.top1)} %: {verdict}."
        )
        fitted = found.temperature
        if fitted is not None:
            out.append(
                f"dividing the logits by {fitted.value:.3g} changes the calibration error from {percent(found.ece)} to "
                f"{percent(fitted.ece)} % (temperature scaling, fitted on the {fitted.fitted_on})."
            )
    return out


def _paired(one: Comparison, main: str, other: str) -> str:
    """McNemar's test of two models on the same images."""
    verdict = "the difference may be chance" if one.p_value >= CHANCE else "that is more than chance explains"
    own, others = (one.only_first, one.only_second) if one.first == main else (one.only_second, one.only_first)
    where = f"On {count(own, 'image')} it is right where {other} is wrong, and on {others:,} the other way round"
    return f" {where} (McNemar {p_equation(one.p_value)}): {verdict}."


def _chance(main: ModelRow, row: ModelRow) -> str:
    if not isinstance(main.evaluation, Evaluation) or not isinstance(row.evaluation, Evaluation):
        return ""
    (a, b), (c, d) = interval(main.evaluation), interval(row.evaluation)
    if a > d or c > b:
        return ""
    return f" Their 95 % intervals overlap: on {main.evaluation.n:,} images the difference may be chance."


def describe_comparison(one: Comparison) -> str:
    """A comparison of two models on the same images in one sentence that claims no more than it shows."""
    top1 = one.differences["top1"]
    points = f"{100 * top1.value:+.2f} points of top-1 ({100 * top1.lo:+.2f} to {100 * top1.hi:+.2f}, 95 % bootstrap)"
    counts = f"right where the other is not: {one.only_second:,} against {one.only_first:,}"
    verdict = "the difference may be chance" if one.p_value >= CHANCE else "more than chance explains"
    return f"{one.second} against {one.first}: {points}; {counts}; McNemar {p_equation(one.p_value)}, {verdict}."


def page_values(data: ReportData) -> dict[str, Any]:
    """What the templates of this task show beside the figures."""
    found = data.main.evaluation
    return {
        "class_word": "classes",
        "pairs": confused_pairs(found) if isinstance(found, Evaluation) else [],
        "weakest": weakest(found) if isinstance(found, Evaluation) else [],
        "calibrated": [
            row for row in data.rows if isinstance(row.evaluation, Evaluation) and row.evaluation.calibrations
        ],
    }


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


def summary_table(rows: Sequence[tuple[str, Evaluation]]) -> list[list[str]]:
    """Models side by side, with the calibration errors of the usual numbers of bins."""
    from vitlab.report.text_tables import span

    first = rows[0][1]
    bins = [int(b) for b, *_ in first.calibrations]
    kinds = dict.fromkeys(top1_interval(one)[2] for _, one in rows)
    out = [["model", "Top-1 %", f"95 % {' or '.join(kinds)}", f"Top-{first.top_k} %", "NLL", "Brier"]]
    out[0] += [f"ECE{b} %" for b in bins] + [f"max-ECE{first.bins} %"]
    for title, e in rows:
        row = [title, percent(e.top1), span(top1_interval(e)[:2]), percent(e.top5), f"{e.nll:.3f}", f"{e.brier:.3f}"]
        out.append([*row, *(percent(ece) for _, ece, _ in e.calibrations), percent(e.max_ece)])
    return out


def summary_notes(rows: Sequence[tuple[str, Evaluation]], main: tuple[str, Evaluation]) -> list[str]:
    """What temperatures change, the weakest classes and the most frequent mistakes."""
    from vitlab.report.text_tables import text_table

    lines = []
    fitted = [(title, t) for title, one in rows if (t := one.temperature) is not None]
    if fitted:
        table = [["with its temperature", "logits /", f"ECE{rows[0][1].bins} %", "NLL", "Brier"]]
        for title, t in fitted:
            table.append([title, f"{t.value:.3g}", percent(t.ece), f"{t.nll:.3f}", f"{t.brier:.3f}"])
        lines += ["", text_table(table)]
        lines += [f"fitted on the {images}" for images in dict.fromkeys(t.fitted_on for _, t in fitted)]
    for why in dict.fromkeys(one.no_temperature for _, one in rows if one.no_temperature):
        lines.append(f"no temperature is fitted: {why}")
    title, found = main
    weak = [f"{c.name} {percent(c.recall, 1)} %" for c in weakest(found)[:5] if c.recall is not None and c.recall < 1]
    lines += [f"{name}: {sentence}" for name, one in rows for sentence in warnings(one)]
    lines += ["", f"weakest classes of {title}: {', '.join(weak) or 'none, all images are right'}"]
    pairs = [f"{a} taken for {b} ({count})" for a, b, count, _ in confused_pairs(found)[:5]]
    lines += [f"most frequent mistakes: {', '.join(pairs)}"] if pairs else []
    return lines
