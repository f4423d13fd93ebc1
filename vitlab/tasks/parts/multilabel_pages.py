"""Several labels an image in reports: columns, headline numbers, findings in words, what the templates show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitlab.measure.bootstrap import Comparison
from vitlab.measure.multilabel import LabelScore, MultilabelEvaluation
from vitlab.report import plots
from vitlab.report.compare import Column, count, metric, percent
from vitlab.report.data import ModelRow, PaperRow, ReportData
from vitlab.report.pieces import Drawing, Tile
from vitlab.report.text_tables import CHANCE, p_equation, span, text_table
from vitlab.tasks.parts import multilabel_figures as figures

LABELS_SHOWN = 100  # rows of the table by label; the rest is in report.json
EXAMPLES = 24  # worst mistakes shown
TO_TRY = "What helps: a lower recipe.lr, a longer recipe.warmup, a longer training; the loss is in metrics.jsonl."
RELIABILITY = 3  # diagrams shown: the primary model's and the first others'


def columns(rows: Sequence[ModelRow | PaperRow]) -> list[Column]:
    """Ranking, decisions, calibration."""
    return [
        Column("mAP %", metric("map"), percent, +1, "mean over labels of average precision"),
        Column("AUROC %", metric("auroc"), percent, +1, "mean over labels of the area under the ROC curve"),
        Column("F1 %", metric("f1"), percent, +1, "mean over labels of F1 at the thresholds"),
        Column("Subset %", metric("subset_accuracy"), percent, +1, "images all of whose labels are decided right"),
        Column("NLL", metric("nll"), lambda v: f"{v:.3f}", -1, "mean binary cross-entropy of a label, in nats"),
        Column("ECE %", metric("ece"), percent, -1, "mean over labels of the expected calibration error"),
    ]


def drawings(data: ReportData, slots: Mapping[str, int]) -> list[Drawing]:
    """mAP with intervals, reliability, precision-recall curves, average precision by label, the worst mistakes."""
    rows, found = data.rows, data.main.evaluation
    out = [
        Drawing(
            "compare",
            "map",
            "Mean average precision of the compared models with 95 % intervals",
            "Dots are measured, bars are percentile intervals of a bootstrap over images.",
            lambda theme: figures.intervals(rows, theme, slots),
        )
    ]
    measured = [data.main, *(row for row in rows if row.name != data.primary)]
    known = [row for row in measured if isinstance(row.evaluation, MultilabelEvaluation)]
    for number, row in enumerate(known[:RELIABILITY]):
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
    if isinstance(found, MultilabelEvaluation):
        out += [
            Drawing(
                "labels",
                "precision-recall",
                f"Precision and recall of {data.primary}",
                "The labels with the lowest average precision; a dot marks the threshold.",
                lambda theme: figures.precision_recall(found, theme),
            ),
            Drawing(
                "labels",
                "average-precision",
                f"Average precision by label of {data.primary}",
                "Lowest first.",
                lambda theme: figures.average_precisions(found, theme),
            ),
        ]
    out.append(
        Drawing(
            "mistakes",
            "mistakes",
            f"Worst mistakes of {data.primary}",
            "Below each image its labels, and the predicted ones; the share is the confidence of the worst decision.",
            lambda theme: plots.mistakes(data.examples[:EXAMPLES], theme),
            page=False,
        )
    )
    return out


def tiles(row: ModelRow) -> list[Tile]:
    """mAP with its interval, and the images all of whose labels are right."""
    found = row.evaluation
    if not isinstance(found, MultilabelEvaluation):
        return [Tile("Mean average precision", percent(row.metrics["map"]), "%", "")] if "map" in row.metrics else []
    ends = found.intervals.get("map")
    between = f"{span(ends)} (95 % bootstrap interval), " if ends else ""
    return [
        Tile("Mean average precision", percent(found.map), "%", f"{between}{found.n:,} images, {_labels(found)}"),
        Tile(
            "All labels right",
            percent(found.subset_accuracy),
            "%",
            f"of the images; F1 {percent(found.f1)} %, ECE {percent(found.ece)} % a label",
        ),
    ]


def _labels(found: MultilabelEvaluation) -> str:
    return f"{len(found.classes)} labels, {found.cardinality:.1f} an image"


def findings(data: ReportData, shares: Callable[[ModelRow, ModelRow], str]) -> list[str]:
    """mAP beside the other models, where thresholds come from, labels that could not be measured."""
    out = []
    main = data.main
    for row in data.rows:
        if row.name == main.name or "map" not in row.metrics or "map" not in main.metrics:
            continue
        points = 100 * (main.metrics["map"] - row.metrics["map"])
        word = "above that of" if points > 0 else "below that of"
        place = f"{abs(points):.2f} points {word}" if f"{abs(points):.2f}" != "0.00" else "level with that of"
        size = shares(main, row) if row.role == "teacher" else ""
        paired = next((one for one in data.comparisons if {one.first, one.second} == {main.name, row.name}), None)
        chance = "" if paired is None else _paired(paired, main.name, row.name)
        out.append(f"mAP is {place} {row.name} ({percent(row.metrics['map'])} %){size}.{chance}")
    found = main.evaluation
    if isinstance(found, MultilabelEvaluation):
        out.append(describe_thresholds(found))
        if absent := [one.name for one in found.labels if one.n == 0]:
            out.append(f"no measured image has {count(len(absent), 'label')}: {', '.join(absent[:5])}; left out.")
    return out


def warnings(found: MultilabelEvaluation) -> list[str]:
    """That the network decides alike for all images, or ranks them no better than chance."""
    out = []
    if all(one.predicted in (0, found.n) for one in found.labels):
        same = ", ".join(one.name for one in found.labels if one.predicted) or "no label"
        out.append(f"the network predicts the same for all {count(found.n, 'image')}: {same}. {TO_TRY}")
    known = [one for one in found.labels if one.ap is not None]
    chance = sum(one.n / found.n for one in known) / max(len(known), 1)  # what a random order is expected to have
    if known and found.map <= chance:
        out.append(
            f"mAP of {percent(found.map)} % is no better than that of a random order, {percent(chance)} %. {TO_TRY}"
        )
    return out


def describe_thresholds(found: MultilabelEvaluation) -> str:
    """Where the thresholds come from, as a sentence."""
    if not found.thresholds_from:
        why = f": {found.no_thresholds}" if found.no_thresholds else ""
        return f"labels are predicted from a probability of 1/2 on; no thresholds were chosen{why}."
    text = f"thresholds of the labels maximise F1 on the {found.thresholds_from}"
    if found.default_thresholds:
        text += f"; {', '.join(found.default_thresholds[:5])} occur on none of them and keep 1/2"
    return text + "."


def _paired(one: Comparison, main: str, other: str) -> str:
    """McNemar's test of two models on the same images."""
    verdict = "the difference may be chance" if one.p_value >= CHANCE else "that is more than chance explains"
    own, others = (one.only_first, one.only_second) if one.first == main else (one.only_second, one.only_first)
    where = f"On {count(own, 'image')} all its labels are right where some of {other} are wrong"
    return f" {where}, and on {others:,} the other way round (McNemar {p_equation(one.p_value)}): {verdict}."


def describe_comparison(one: Comparison) -> str:
    """A comparison of two models on the same images in one sentence."""
    value = one.differences["map"]
    points = f"{100 * value.value:+.2f} points of mAP ({100 * value.lo:+.2f} to {100 * value.hi:+.2f}, 95 % bootstrap)"
    counts = f"all labels right where the other's are not: {one.only_second:,} against {one.only_first:,}"
    verdict = "the difference may be chance" if one.p_value >= CHANCE else "more than chance explains"
    return f"{one.second} against {one.first}: {points}; {counts}; McNemar {p_equation(one.p_value)}, {verdict}."


def page_values(data: ReportData) -> dict[str, Any]:
    """What the templates of this task show beside the figures."""
    found = data.main.evaluation
    return {
        "class_word": "labels",
        "weakest": weakest(found)[:LABELS_SHOWN] if isinstance(found, MultilabelEvaluation) else [],
        "calibrated": [row for row in data.rows if isinstance(row.evaluation, MultilabelEvaluation)],
        "thresholds": describe_thresholds(found) if isinstance(found, MultilabelEvaluation) else "",
        "largest_ece": lambda one: max(one.labels, key=lambda each: each.ece),
    }


def weakest(found: MultilabelEvaluation) -> list[LabelScore]:
    """Labels by average precision, lowest first, those without images last."""
    return sorted(found.labels, key=lambda one: (one.ap is None, one.ap or 0.0))


def summary_table(rows: Sequence[tuple[str, MultilabelEvaluation]]) -> list[list[str]]:
    """Models side by side."""
    out = [
        ["model", "mAP %", "95 % bootstrap", "AUROC %", "F1 %", "Subset %", "NLL", "Brier", f"ECE{rows[0][1].bins} %"]
    ]
    for title, e in rows:
        ends = span(e.intervals["map"]) if e.intervals else "–"
        shares = (percent(value) for value in (e.auroc, e.f1, e.subset_accuracy))
        out.append([title, percent(e.map), ends, *shares, f"{e.nll:.3f}", f"{e.brier:.3f}", percent(e.ece)])
    return out


def summary_notes(
    rows: Sequence[tuple[str, MultilabelEvaluation]], main: tuple[str, MultilabelEvaluation]
) -> list[str]:
    """Where thresholds come from, and the weakest labels."""
    lines = [f"{name}: {sentence}" for name, one in rows for sentence in warnings(one)]
    lines += list(dict.fromkeys(describe_thresholds(one).rstrip(".") for _, one in rows))
    table = [["label", "images", "AP %", "AUROC %", "F1 %", "threshold", "ECE %"]]
    for one in weakest(main[1])[:10]:
        shares = ("–" if value is None else percent(value) for value in (one.ap, one.auroc, one.f1))
        table.append([one.name, f"{one.n:,}", *shares, f"{one.threshold:.3f}", percent(one.ece)])
    return [*lines, "", f"labels of {main[0]}, lowest average precision first", text_table(table)]
