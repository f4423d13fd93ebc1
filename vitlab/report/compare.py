"""Models side by side: one table, shown at the prompt, in Markdown and in HTML.

A column appears when at least one row has a value for it; a missing value is a dash. The best value of a column is
marked among the compared models (published rows are for orientation and never compete), together with every value
that reads the same at the shown precision and every time whose 10 to 90 % range overlaps the fastest one's; nothing
is marked when that would be all of them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from vitlab.errors import printable
from vitlab.measure.cost_record import Cost
from vitlab.report.data import ModelRow, PaperRow
from vitlab.report.markdown import plain

DASH = "\u2013"
SYNTHETIC = "Synthetic data: these numbers show that the code works, not how good the model is."


def si(value: float, digits: int = 3) -> str:
    """A count in words: ``5392764`` is ``5.39 M``; ``digits`` significant figures."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(float(f"{value:.{digits}g}")) >= size:
            return _significant(value / size, digits) + unit
    return _significant(value, digits) if value % 1 else f"{value:.0f}"


def tick(value: float) -> str:
    """A count on an axis: :func:`si` without trailing zeros, ``1000000`` is ``1 M``."""
    number, _, unit = si(value).partition(" ")
    return f"{float(number):g} {unit}".strip()


def file_size(value: float) -> str:
    """Bytes in decimal units: ``1253312`` is ``1.25 MB``."""
    return si(value).replace(" k", " kB").replace(" M", " MB").replace(" G", " GB").replace(" T", " TB") + (
        " B" if value < 999.5 else ""
    )


def milliseconds(value: float) -> str:
    """``0.0312`` is ``0.0312``, ``12.345`` is ``12.3``, ``1234.5`` is ``1234``."""
    return f"{value:.0f}" if value >= 1000 else _significant(value, 3)


def duration(seconds: float) -> str:
    """``0.4`` is ``0.4 s``, ``75`` is ``1 min 15 s``, ``8000`` is ``2 h 13 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def percent(share: float, digits: int = 2) -> str:
    """``0.98222`` is ``98.22`` (the unit stands in the heading)."""
    return f"{100 * share:.{digits}f}"


def count(number: int, what: str) -> str:
    """``1 image``, ``1,347 images``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def device(name: str, threads: int) -> str:
    """What times were measured on: ``CPU, 1 thread``, or the name of a GPU."""
    return f"CPU, {count(threads, 'thread')}" if name == "cpu" else name


def clip(text: str, length: int) -> str:
    """At most ``length`` characters, an ellipsis standing for what is cut; as :func:`vitlab.errors.printable`."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def clip_start(text: str, length: int) -> str:
    """The last ``length`` characters at most: what tells names of files apart stands at their ends."""
    return text if len(text) <= length else "…" + text[1 - length :].lstrip()


def file_of(key: str) -> str:
    """What an image is called below its picture: its file's name, or its number in a set without files."""
    return f"image {key}" if key.isdecimal() else key.rpartition("/")[2]


def capitalised(text: str) -> str:
    """With a capital first letter; the others stay as they are (mAP)."""
    return text[:1].upper() + text[1:]


def wrap(text: str, width: int) -> str:
    """On at most three lines of at most ``width`` characters, for names in figures."""
    return "\n".join(textwrap.wrap(printable(text), width, max_lines=3, placeholder="…"))


def _significant(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    if "e" in text:
        return f"{value:.0f}" if abs(value) >= 1 else text
    integer, _, rest = text.partition(".")
    wanted = digits - len(integer.lstrip("-0"))
    return text if not rest and wanted <= 0 else f"{value:.{max(wanted, len(rest))}f}"


@dataclass(frozen=True)
class Column:
    """One column: where its value comes from, how it reads, and which way is better (+1 larger, -1 smaller)."""

    title: str
    value: Callable[[dict[str, float], Cost], float | None]
    show: Callable[[float], str]
    better: int
    meaning: str
    spread: Callable[[Cost], tuple[float, float] | None] = lambda cost: None  # of a measured time: 10 and 90 %


def metric(key: str) -> Callable[[dict[str, float], Cost], float | None]:
    """The value of a column: one of the metrics of an evaluation."""
    return lambda metrics, cost: metrics.get(key)


def _latency(batch: int) -> Callable[[dict[str, float], Cost], float | None]:
    def value(metrics: dict[str, float], cost: Cost) -> float | None:
        found = cost.at(batch)
        return None if found is None else found.median_ms

    return value


def _memory(batch: int) -> Callable[[dict[str, float], Cost], float | None]:
    return lambda metrics, cost: next((float(each.bytes) for each in cost.memory if each.batch == batch), None)


def _extra_macs(name: str) -> Callable[[dict[str, float], Cost], float | None]:
    return lambda metrics, cost: cost.extra_macs.get(name)


def _spread(batch: int) -> Callable[[Cost], tuple[float, float] | None]:
    def value(cost: Cost) -> tuple[float, float] | None:
        found = cost.at(batch)
        if found is None or found.p10_ms is None or found.p90_ms is None:
            return None
        return found.p10_ms, found.p90_ms

    return value


def columns_for(rows: Sequence[ModelRow | PaperRow], metrics: Sequence[Column]) -> list[Column]:
    """The columns that at least one row can fill: the task's metrics, then cost."""
    batches = sorted({each.batch for row in rows for each in row.cost.latency})
    latency = [
        Column(
            f"ms, batch {b}",
            _latency(b),
            milliseconds,
            -1,
            f"median time of a forward pass of {count(b, 'image')}",
            _spread(b),
        )
        for b in batches
    ]
    held = Counter(each.batch for row in rows for each in row.cost.memory)
    most = max(held, key=lambda batch: (held[batch], batch), default=None)  # the batch that most rows share
    memory = (
        []
        if most is None
        else [
            Column(
                f"Memory, batch {most}",
                _memory(most),
                file_size,
                -1,
                f"held by a forward pass of {count(most, 'image')} at its worst moment, without the weights",
            )
        ]
    )
    counts = [
        Column(f"MACs, {name}", _extra_macs(name), si, -1, f"multiply-adds for one image, counted otherwise: {name}")
        for name in dict.fromkeys(name for row in rows for name in row.cost.extra_macs)
    ]
    every = [
        *metrics,
        Column("Params", lambda m, c: c.params, si, -1, "trainable numbers"),
        Column("MACs", lambda m, c: c.macs, si, -1, "multiply-adds for one image"),
        *counts,
        *latency,
        *memory,
        Column("Weights", lambda m, c: c.bytes, file_size, -1, "size of the weights on disk"),
    ]
    return [column for column in every if any(column.value(row.metrics, row.cost) is not None for row in rows)]


@dataclass
class Line:
    """One row of the table, ready to be printed."""

    name: str
    kind: str  # model | paper
    role: str  # of a model; of a published row: where it was published
    primary: bool
    cells: list[str]
    best: list[bool]


def busy_note(rows: Sequence[ModelRow | PaperRow]) -> str:
    """That other processes competed with the timing, where they did."""
    loads = dict.fromkeys(row.cost.busy for row in rows if row.cost.busy)
    return f"The machine was busy while times were taken ({'; '.join(loads)}): they are too long." if loads else ""


@dataclass
class Table:
    """A comparison that can be printed three ways."""

    columns: list[Column]
    lines: list[Line]
    synthetic: bool
    busy: str = ""  # a sentence on the times, see :func:`busy_note`

    @property
    def titles(self) -> list[str]:
        return [column.title for column in self.columns]

    def text(self, bold: bool = False) -> str:
        """For the prompt; the best values are bold on a terminal (``bold``), else they carry a star."""
        names = ["model", *(f"  {line.name}" if line.kind == "paper" else line.name for line in self.lines)]
        left = max(map(len, names))
        star = any(any(line.best) for line in self.lines) and not bold
        columns = [[title, *(line.cells[c] for line in self.lines)] for c, title in enumerate(self.titles)]
        widths = [max(map(len, column)) for column in columns]
        out = []
        for r, name in enumerate(names):
            parts = [name.ljust(left)]
            for c, width in enumerate(widths):
                best = r > 0 and self.lines[r - 1].best[c]
                cell = columns[c][r].rjust(width)
                parts.append(
                    f"\033[1m{cell}\033[0m" if best and bold else cell + ("*" if best and star else " " * star)
                )
            out.append("  ".join(parts).rstrip())
            if r == 0:
                out.append("─" * (left + sum(width + 2 + star for width in widths)))
        notes = ["* best of its column"] if star else []
        notes += [f"{line.name}: {line.role}" for line in self.lines if line.kind == "paper"]
        notes += [self.busy] if self.busy else []
        notes += [SYNTHETIC] if self.synthetic else []
        return "\n".join([*out, *notes])

    def markdown(self) -> str:
        """GitHub's table syntax; best values bold, published rows in italics."""
        out = [_md_row(["Model", *self.titles]), _md_row(["---", *["---:"] * len(self.columns)])]
        for line in self.lines:
            name = plain(line.name)
            name = f"*{name}* ({plain(line.role)})" if line.kind == "paper" else name
            cells = [f"**{cell}**" if best else cell for cell, best in zip(line.cells, line.best, strict=True)]
            out.append(_md_row([name, *cells]))
        text = "\n".join(out) + "\n"
        text += f"\n{self.busy}\n" if self.busy else ""
        return f"{text}\n> {SYNTHETIC}\n" if self.synthetic else text

    def html(self, colours: dict[str, str] | None = None) -> str:
        """A ``<table class="compare">``; ``colours`` maps a model's name to the CSS class of its dot."""
        head = "".join(f'<th scope="col" title="{escape(c.meaning)}">{escape(c.title)}</th>' for c in self.columns)
        body = []
        for line in self.lines:
            dot = f'<i class="dot {colours[line.name]}"></i>' if colours and line.name in colours else ""
            about = f" <small>{escape(line.role)}</small>"
            marks = f'class="{line.kind}{" primary" if line.primary else ""}"'
            cells = "".join(
                f"<td>{'<b>' if best else ''}{escape(cell)}{'</b>' if best else ''}</td>"
                for cell, best in zip(line.cells, line.best, strict=True)
            )
            body.append(f'<tr {marks}><th scope="row">{dot}{escape(line.name)}{about}</th>{cells}</tr>')
        return (
            f'<table class="compare"><thead><tr><th scope="col">Model</th>{head}</tr></thead>\n'
            + f"<tbody>\n{chr(10).join(body)}\n</tbody></table>"
        )


def _overlap(column: Column, one: ModelRow | PaperRow, other: ModelRow | PaperRow) -> bool:
    a, b = column.spread(one.cost), column.spread(other.cost)
    return a is not None and b is not None and a[0] <= b[1] and b[0] <= a[1]


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def compare(
    rows: Sequence[ModelRow],
    metrics: Callable[[Sequence[ModelRow | PaperRow]], list[Column]],
    paper_rows: Sequence[PaperRow] = (),
    primary: str = "",
    synthetic: bool = False,
) -> Table:
    """The table of ``rows``, each followed by the published rows that stand beside it.

    Args:
        metrics: gives the columns of what the task measures (``task.columns``); those of cost follow.
    """
    order: list[ModelRow | PaperRow] = []
    for row in rows:
        order += [row, *(paper for paper in paper_rows if paper.beside == row.name)]
    columns = columns_for(order, metrics(order))
    values = [[column.value(row.metrics, row.cost) for column in columns] for row in order]
    cells = [
        [DASH if v is None else column.show(v) for v, column in zip(line, columns, strict=True)] for line in values
    ]
    ours = [r for r, row in enumerate(order) if isinstance(row, ModelRow)]
    best = [[False] * len(columns) for _ in order]
    for c, column in enumerate(columns):
        known = [(column.better * v, r) for r in ours if (v := values[r][c]) is not None]
        if not known:
            continue
        winner = max(known)[1]
        equal = [r for _, r in known if cells[r][c] == cells[winner][c] or _overlap(column, order[r], order[winner])]
        if len(equal) < len(known):
            for r in equal:
                best[r][c] = True
    lines = [
        Line(
            name=row.name,
            kind="model" if isinstance(row, ModelRow) else "paper",
            role=row.role if isinstance(row, ModelRow) else row.source,
            primary=row.name == primary,
            cells=cells[r],
            best=best[r],
        )
        for r, row in enumerate(order)
    ]
    return Table(columns, lines, synthetic, busy_note(order))
