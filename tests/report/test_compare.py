"""The comparison table: what is shown, what is marked, and how numbers read."""

from __future__ import annotations

import pytest

from vitlab.measure.cost_record import Cost, Latency
from vitlab.report.compare import (
    DASH,
    SYNTHETIC,
    clip,
    compare,
    duration,
    file_size,
    milliseconds,
    percent,
    si,
    tick,
    wrap,
)
from vitlab.report.data import ModelRow, PaperRow, ReportData
from vitlab.tasks.classification import Classification

COLUMNS = Classification().columns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1.00 k"),
        (1234, "1.23 k"),
        (99_950, "100 k"),
        (999_999, "1.00 M"),
        (5_392_764, "5.39 M"),
        (4.6e9, "4.60 G"),
        (1.2e12, "1.20 T"),
        (0.5, "0.500"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert si(value) == text


def test_sizes_times_and_shares() -> None:
    assert [file_size(v) for v in (0, 512, 27_300, 1_253_312, 2.5e9)] == [
        "0 B",
        "512 B",
        "27.3 kB",
        "1.25 MB",
        "2.50 GB",
    ]
    assert [milliseconds(v) for v in (0.0312, 0.5, 9.996, 12.345, 1234.5)] == [
        "0.0312",
        "0.500",
        "10.0",
        "12.3",
        "1234",
    ]
    assert [duration(v) for v in (0.4, 59.9, 60, 75, 3599.7, 8000)] == [
        "0.4 s",
        "1 min",
        "1 min",
        "1 min 15 s",
        "1 h",
        "2 h 13 min",
    ]
    assert [percent(v) for v in (0.98222, 1.0, 0.0)] == ["98.22", "100.00", "0.00"]
    assert [tick(v) for v in (200_000, 1e6, 2.5e9, 40)] == ["200 k", "1 M", "2.5 G", "40"]


def test_names_are_cut_only_when_too_long() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"
    assert wrap("same student, labels alone", 13) == "same student,\nlabels alone"
    assert len(wrap("word " * 40, 13).splitlines()) == 3


def row(name: str, top1: float, latency: Latency | None = None, params: int | None = None) -> ModelRow:
    return ModelRow(name, name, "student", {"top1": top1}, cost=Cost(params, latency=[latency] if latency else []))


def test_only_known_columns_and_dashes_for_the_rest() -> None:
    table = compare([row("a", 0.9, params=1000), row("b", 0.8)], COLUMNS)
    assert table.titles == ["Top-1 %", "Params"]
    assert [line.cells for line in table.lines] == [["90.00", "1.00 k"], ["80.00", DASH]]


def test_best_is_what_reads_best() -> None:
    table = compare(
        [row("a", 0.90001, params=5000), row("b", 0.90002, params=4000), row("c", 0.5, params=9000)], COLUMNS
    )
    assert [line.best for line in table.lines] == [[True, False], [True, True], [False, False]]


def test_nothing_is_best_among_equals_or_alone() -> None:
    for table in (compare([row("a", 0.9), row("b", 0.9)], COLUMNS), compare([row("a", 0.9)], COLUMNS)):
        assert not any(any(line.best) for line in table.lines)
        assert "*" not in table.text()


def test_times_within_each_others_spread_are_equal() -> None:
    rows = [
        row("a", 0.9, Latency(1, 2.0, 1.8, 2.4)),
        row("b", 0.9, Latency(1, 2.2, 2.0, 2.6)),
        row("c", 0.9, Latency(1, 9.0, 8.8, 9.4)),
    ]
    assert [line.best[1] for line in compare(rows, COLUMNS).lines] == [True, True, False]


def test_published_rows_stand_beside_and_do_not_compete() -> None:
    paper = PaperRow("published", "Table 5", "a", {"top1": 0.99})
    table = compare([row("a", 0.9), row("b", 0.8)], COLUMNS, [paper], primary="a")
    assert [(line.name, line.kind, line.best[0]) for line in table.lines] == [
        ("a", "model", True),
        ("published", "paper", False),
        ("b", "model", False),
    ]
    assert "published: Table 5" in table.text()
    assert "*published* (Table 5)" in table.markdown()


def test_text_is_aligned_and_marks_the_best(data: ReportData) -> None:
    table = compare(data.rows, COLUMNS, data.paper_rows, data.primary)
    lines = table.text().splitlines()
    assert lines[0].startswith("model") and lines[0].endswith("Weights")
    ends = [lines[0].index(title) + len(title) for title in table.titles]
    for line, printed in zip(table.lines, lines[2:], strict=False):
        for end, cell in zip(ends, line.cells, strict=True):
            assert printed[:end].endswith(cell)
    assert "*" in lines[2]
    assert "* best of its column" in lines
    assert "\033[1m" not in table.text() and "\033[1m" in table.text(bold=True)
    assert "*" not in table.text(bold=True)


def test_synthetic_data_is_said_in_every_form(data: ReportData) -> None:
    table = compare(data.rows, COLUMNS, synthetic=True)
    assert SYNTHETIC in table.text() and SYNTHETIC in table.markdown()
    assert SYNTHETIC not in compare(data.rows, COLUMNS).text()


def test_names_are_escaped_for_their_format() -> None:
    table = compare([row("a|b <i>", 0.9)], COLUMNS)
    assert "| a\\|b \\<i> |" in table.markdown()
    assert "a|b &lt;i&gt;" in table.html()
