"""Robustness in tables: corrupted images and shifted sets for the prompt, the Markdown and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitlab.measure.robustness import Robustness, Shifted
from vitlab.measure.robustness_names import FAMILIES
from vitlab.report import markdown
from vitlab.report.compare import DASH
from vitlab.report.compare import percent as digits
from vitlab.report.data import ModelRow
from vitlab.report.text_tables import text_table

Named = Sequence[tuple[str, Robustness]]

FROST = "Frost is drawn: at severities 3 and 5 it has a quarter less fine structure than the published photographs."


def percent(share: float | None) -> str:
    """A share in percent, a dash where it was not measured."""
    return DASH if share is None else digits(share)


@dataclass
class Table:
    """A header and rows of text."""

    head: list[str]
    rows: list[list[str]]
    words: int = 1  # columns that hold words; the others hold numbers

    def text(self) -> str:
        """For the prompt."""
        return text_table([self.head, *self.rows])

    def markdown(self) -> str:
        """As a Markdown table."""
        return markdown.table([self.head, *self.rows], self.words)


def describe_corruptions(state: Robustness) -> str:
    """What was measured, in a sentence."""
    many = f"{state.n:,} images" if state.n == state.whole else f"{state.n:,} of {state.whole:,} images"
    where = "the published files of ImageNet-C" if state.published else "made on the fly"
    levels = ", ".join(map(str, state.severities))
    text = f"{len(state.names)} corruptions of severity {levels}, {where}, {many} each."
    if state.alexnet and not state.published and state.mce is not None:
        text += " mCE is a share of AlexNet's published errors, which are on the published files."
    if not state.published and "frost" in state.names:
        text += f" {FROST}"
    return text


def summary(rows: Named) -> Table:
    """A row for each model: accuracy, error and calibration, means over corruptions and severities."""
    mce = any(state.mce is not None for _, state in rows)
    clean = any(state.clean is not None for _, state in rows)
    families = [name for name in FAMILIES if any(state.family(name) is not None for _, state in rows)]
    head = ["model", *(["clean %"] if clean else []), "corrupted %", "mean error %", *(["mCE %"] if mce else [])]
    head += [f"{name} %" for name in families] + ["NLL", "Brier", "ECE %", "max. ECE %"]
    out = []
    for name, state in rows:
        row = [name, *([percent(state.clean.top1 if state.clean else None)] if clean else [])]
        row += [percent(state.mean("top1")), percent(state.mean_error)]
        row += [percent(state.mce)] if mce else []
        row += [percent(state.family(one)) for one in families]
        row += [f"{state.mean('nll'):.3f}", f"{state.mean('brier'):.3f}"]
        out.append([*row, percent(state.mean("ece")), percent(state.mean("max_ece"))])
    return Table(head, out)


def by_corruption(state: Robustness) -> Table:
    """Top-1 of one model, corruptions down, severities across, and the means of top-1, ECE and NLL."""
    head = ["corruption", *(f"severity {level}" for level in state.severities), "mean top-1 %", "ECE %", "NLL"]
    rows = []
    for name in state.names:
        cells = [state.at(name, level) for level in state.severities]
        title = "frost (drawn)" if name == "frost" and not state.published else name.replace("_", " ")
        row = [title, *(percent(one.top1) if one is not None else DASH for one in cells)]
        row += [percent(state.mean("top1", name=name)), percent(state.mean("ece", name=name))]
        rows.append([*row, f"{state.mean('nll', name=name):.3f}"])
    means = [percent(state.mean("top1", severity=level)) for level in state.severities]
    last = [percent(state.mean("top1")), percent(state.mean("ece")), f"{state.mean('nll'):.3f}"]
    return Table(head, [*rows, ["mean", *means, *last]])


def sets(rows: Sequence[tuple[str, Shifted]]) -> Table:
    """A row for each model and set."""
    bins = [int(b) for b, *_ in next((s.sets[0].full.calibrations for _, s in rows if s.sets), [])]
    head = ["model", "set", "images", "top-1 %", "among its classes %", "NLL", "Brier"]
    head += [f"ECE %, {b} bins" for b in bins] + ["max. ECE %"]
    out = []
    for name, state in rows:
        for one in state.sets:
            full = one.full
            many = f"{full.n:,}" if full.n == one.whole else f"{full.n:,} of {one.whole:,}"
            row = [name, one.title, many, percent(full.top1), percent(one.restricted.top1 if one.restricted else None)]
            row += [f"{full.nll:.3f}", f"{full.brier:.3f}", *(percent(ece) for _, ece, _ in full.calibrations)]
            out.append([*row, percent(full.max_ece)])
        c = state.corrupted
        if c is not None and c.cells:
            row = [name, "ImageNet-C", f"{c.n:,} × {len(c.cells)}", percent(c.mean("top1")), DASH]
            row += [f"{c.mean('nll'):.3f}", f"{c.mean('brier'):.3f}"]
            means = [sum(one.calibrations[i][1] for one in c.cells) / len(c.cells) for i in range(len(bins))]
            out.append([*row, *map(percent, means), percent(c.mean("max_ece"))])
    return Table(head, out, words=2)


def describe_sets(rows: Sequence[tuple[str, Shifted]]) -> list[str]:
    """Averages, mCE, what was left out and what was not found, a sentence each."""
    lines = []
    for name, state in rows:
        if state.average is not None:
            lines.append(f"{name}: mean top-1 of the shifted sets {percent(state.average)} %.")
        if state.corrupted is not None and state.corrupted.mce is not None:
            lines.append(f"{name}: mCE {percent(state.corrupted.mce)} % on the published files of ImageNet-C.")
        for one in state.sets:
            if one.left_out:
                lines.append(f"{name}: {one.left_out:,} images of {one.title} are of classes that it does not know.")
    absent = dict.fromkeys((one.title, one.absent) for _, state in rows for one in state.sets if one.absent)
    lines += [
        f"{title}: {number:,} of its classes have no image here. The copy is incomplete; it is answered among all "
        "classes of the set, and its number is not the published set's."
        for title, number in absent
    ]
    missing = dict.fromkeys(title for _, state in rows for title in state.missing)
    return [*lines, *([f"Not found: {', '.join(missing)}."] if missing else [])]


def robust_text(rows: Named) -> str:
    """For the prompt."""
    lines = ["under corruptions: " + describe_corruptions(rows[0][1]), "", summary(rows).text()]
    if len(rows) == 1:
        lines += ["", by_corruption(rows[0][1]).text()]
    return "\n".join(lines)


def shifted_text(rows: Sequence[tuple[str, Shifted]]) -> str:
    """For the prompt."""
    return "\n".join(["shifted sets", "", sets(rows).text(), "", *describe_sets(rows)])


def of_rows(rows: Sequence[ModelRow]) -> list[tuple[str, Robustness]]:
    """The models of a report that were measured under the same corruptions as the first that was."""
    found = [(row.name, row.robust) for row in rows if row.robust is not None]
    return [one for one in found if alike(one[1], found[0][1])]


@dataclass
class Section:
    """The report's section on robustness; empty where nothing was measured."""

    description: str
    summary: Table | None
    details: list[tuple[str, Table]]  # a model's name, and its table by corruption
    sets: Table | None
    notes: list[str]


def section(rows: Sequence[ModelRow]) -> Section | None:
    """Of the models of a report; None where none was measured on anything but its test images."""
    robust, shifted = of_rows(rows), [(row.name, row.shifted) for row in rows if row.shifted is not None]
    robust = [(name, state) for name, state in robust if state.cells]
    if not robust and not shifted:
        return None
    left = [row.name for row in rows if row.robust is not None and row.name not in dict(robust)]
    notes = describe_sets(shifted)
    if left:
        notes.append(f"Measured under other corruptions, images or seeds, and not shown: {', '.join(left)}.")
    return Section(
        describe_corruptions(robust[0][1]) if robust else "",
        summary(robust) if robust else None,
        [(name, by_corruption(state)) for name, state in robust],
        sets(shifted) if shifted else None,
        notes,
    )


def alike(one: Robustness, other: Robustness) -> bool:
    """Whether two measurements belong into one table: the same images, corruptions and severities."""
    mine, its = ((x.images, x.seed, x.names, x.severities) for x in (one, other))
    return mine == its
