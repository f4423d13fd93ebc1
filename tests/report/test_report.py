"""The written report: complete, self-contained, and with the numbers it was given."""

from __future__ import annotations

import base64
import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.report.sample import CLASSES, make
from vitlab.measure.classification import Evaluation, wilson_interval
from vitlab.measure.cost_record import Cost
from vitlab.report import page, style
from vitlab.report.compare import DASH, SYNTHETIC
from vitlab.report.data import Example, ModelRow, PaperRow, ReportData, curves_of
from vitlab.report.markdown import plain
from vitlab.report.write import ReportPaths, write_report
from vitlab.tasks.base import find_task
from vitlab.tasks.classification import Classification

TASK = Classification()

EMPTY = {"meta", "img", "br", "source", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects what the checks need, and insists that every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.table: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th") and self.table:
            self.table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open) and "small" not in self.open:
            self.table[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def html(written: ReportPaths) -> Page:
    return Page(written.html.read_text())


def markdown_rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose heading begins with ``first``."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [table[0], *table[2:]]


def unescaped(cell: str) -> str:
    """A cell without the backslashes that keep its words from being markup."""
    return re.sub(r"\\(.)", r"\1", cell)


def test_the_page_needs_nothing_but_itself(html: Page, written: ReportPaths) -> None:
    images = [attrs["src"] for tag, attrs in html.tags if tag == "img"]
    images += [attrs["srcset"] for tag, attrs in html.tags if tag == "source"]
    assert len(images) > 20
    for image in images:
        head, _, body = image.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(body, validate=True).startswith(b"\x89PNG\r\n")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in html.tags}
    assert not re.search(r"https?:|@import|url\(", written.html.read_text())
    targets = {attrs["href"][1:] for tag, attrs in html.tags if tag == "a"}
    assert targets <= {attrs["id"] for _, attrs in html.tags if "id" in attrs}
    assert all(attrs.get("alt") for tag, attrs in html.tags if tag == "img")


def test_markdown_shows_every_figure_that_was_written(written: ReportPaths) -> None:
    text = written.markdown.read_text()
    linked = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", text)
    assert sorted(written.markdown.parent / name for name in linked) == sorted(written.figures)
    for file in written.figures:
        head = file.read_bytes()[:24]
        width, height = struct.unpack(">II", head[16:24])
        assert 500 < width < 2500 and 200 < height < 2500


def test_numbers_of_the_table_are_the_data(data: ReportData, written: ReportPaths, html: Page) -> None:
    text = written.markdown.read_text()
    head, *lines = markdown_rows(text, "Model")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "kB": 1e3, "MB": 1e6, "": 1.0}
    models = [line for line in lines if not line[0].startswith("*")]
    assert [line[0] for line in models] == [row.name for row in data.rows]
    for line, row in zip(models, data.rows, strict=True):
        shown = {}
        for title, cell in zip(head[1:], line[1:], strict=True):
            number, _, unit = cell.strip("*").partition(" ")
            if number == DASH:
                continue
            shown[title] = float(number) * scale[unit]
        latency = {each.batch: each.median_ms for each in row.cost.latency}
        quality = {
            "Top-1 %": 100 * row.metrics["top1"],
            "Top-5 %": 100 * row.metrics["top5"],
            "NLL": row.metrics["nll"],
            "ECE %": 100 * row.metrics["ece"],
        }
        cost = {
            "Params": row.cost.params,
            "MACs": row.cost.macs,
            "ms, batch 1": latency[1],
            "ms, batch 32": latency[32],
            "Weights": row.cost.bytes,
        } | {f"Memory, batch {each.batch}": each.bytes for each in row.cost.memory}
        assert {title: shown.pop(title) for title in quality} == pytest.approx(quality, rel=0, abs=0.00501)
        assert shown == pytest.approx(cost, rel=0.00501)
    stripped = [[cell.strip() for cell in line] for line in html.table]
    on_page = [line for line in stripped if line[0] in [row.name for row in data.rows] and len(line) == len(head)]
    assert [[cell.strip("*") for cell in line] for line in models] == on_page


def test_numbers_of_the_classes_and_mistakes_are_the_data(data: ReportData, written: ReportPaths) -> None:
    found = data.main.evaluation
    assert isinstance(found, Evaluation)
    text = written.markdown.read_text()
    scores = {score.name: score for score in found.per_class}
    lines = markdown_rows(text, "Class")[1:]
    assert sorted(unescaped(line[0]) for line in lines) == sorted(CLASSES)
    for line in lines:
        score = scores[unescaped(line[0])]
        assert score.recall is not None and score.precision is not None
        assert [int(line[1]), float(line[2]), float(line[3])] == [
            score.n,
            pytest.approx(100 * score.recall, abs=0.005),
            pytest.approx(100 * score.precision, abs=0.005),
        ]
    recalls = [float(line[2]) for line in lines]
    assert recalls == sorted(recalls)
    pairs = markdown_rows(text, "Label")[1:]
    off = found.confusion - np.diag(np.diag(found.confusion))
    for label, predicted, count, _ in pairs:
        row, column = (CLASSES.index(unescaped(name)) for name in (label, predicted))
        assert int(count) == off[row, column]
    assert int(pairs[0][2]) == off.max()


def test_one_number_has_one_interval(data: ReportData) -> None:
    """What the evaluation drew is what the headline, its figure and the prompt's table give, by its name."""
    found = data.main.evaluation
    assert isinstance(found, Evaluation)
    before = dict(found.intervals)
    found.intervals["top1"] = [0.512, 0.634]
    try:
        tile = page.tiles(data, TASK)[0]
        drawing = next(
            one for one in TASK.figures(data, style.slots(data.rows, data.primary)) if one.name == "accuracy"
        )
        with style.themed(style.LIGHT):
            figure = drawing.draw(style.LIGHT)
        table = TASK.summary_table([("model", found)])
    finally:
        found.intervals = before
    assert tile.detail.startswith("51.2 to 63.4 (95 % bootstrap interval)")
    assert "Wilson or bootstrap intervals" in drawing.caption
    assert figure is not None
    bars = [line.get_xdata() for line in figure.axes[0].lines]
    assert any(np.allclose(np.asarray(ends, float), [51.2, 63.4]) for ends in bars if len(np.asarray(ends)) == 2)
    assert table[1][2] == "51.20 to 63.40" or table[1][2].startswith("51.2")


def test_headline_and_findings_are_the_data(data: ReportData, html: Page) -> None:
    found, other = data.main.evaluation, data.rows[2].evaluation
    assert isinstance(found, Evaluation) and isinstance(other, Evaluation)
    lo, hi = wilson_interval(round(found.top1 * found.n), found.n)
    tile = page.tiles(data, TASK)[0]
    assert (tile.value, tile.detail) == (
        f"{100 * found.top1:.2f}",
        f"{100 * lo:.1f} to {100 * hi:.1f} (95 % Wilson interval), 240 images",
    )
    assert [each.value for each in page.tiles(data, TASK)[2:]] == ["301", "21.5", "2.34", "1.22"]
    sentences = page.findings(data, TASK)
    assert f"{100 * (found.top1 - other.top1):.2f} points above that of same student, labels alone" in sentences[1]
    assert "10.7 % of its parameters and 6.89 % of its multiply-adds" in sentences[0]
    assert sentences[0].endswith("the difference may be chance.")
    assert sentences[1].endswith(
        "On 41 images it is right where same student, labels alone is wrong, and on 12 the other way round (McNemar "
        "p = 0.00034): that is more than chance explains."
    )
    one = replace(data.comparisons[0], only_second=1, only_first=2)
    assert (
        " On 1 image it is right where same student, labels alone is wrong, and on 2 "
        in page.findings(replace(data, comparisons=[one]), TASK)[1]
    )
    assert sentences[3].startswith("Dividing the logits by 1.23 changes the calibration error")
    for sentence in sentences:
        assert sentence in html.text.replace("\u00a0", " ")


def test_everything_asked_for_stands_on_the_page(data: ReportData, html: Page, written: ReportPaths) -> None:
    text = written.markdown.read_text()
    for words in (
        data.title,
        data.summary,
        data.command,
        data.run,
        "Table 5",
        "One note.",
        "1 min 15 s",
        "1 min 48 s in all",
    ):
        assert words in html.text, words
        assert words in text or plain(words) in text, words
    for words in ("b: <c>", "3.6e-07", "torch", 'vitlab.load_model("outputs/tinyvit/digits-1a2b3c4d/pretrain")'):
        assert words in html.text, words
        assert words in text, words
    compile(page.load_code(data, TASK), "load_code", "exec")


def test_synthetic_data_is_said_at_every_number(tmp_path: Path) -> None:
    data = replace(make(synthetic=True), curves=[], examples=[], rows=make().rows[:2])
    paths = write_report(tmp_path, data, TASK)
    html = Page(paths.html.read_text())
    assert SYNTHETIC in html.text and paths.markdown.read_text().count(SYNTHETIC) == 2
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", paths.html.read_text())
    marked = [text for text in headings if "synthetic data" in text]
    assert len(headings) - len(marked) == 2  # "do it again" and "notes" carry no numbers
    assert (
        SYNTHETIC
        not in (
            Page(write_report(tmp_path / "real", replace(data, dataset=make().dataset), TASK).html.read_text())
        ).text
    )


def test_a_report_is_rebuilt_from_its_json_without_torch(
    data: ReportData, written: ReportPaths, tmp_path: Path
) -> None:
    assert ReportData.load(written.json, find_task) == data
    code = (
        "import sys; from pathlib import Path; from vitlab.report.write import ReportData, write_report\n"
        "from vitlab.tasks.base import find_task\n"
        "data = ReportData.load(Path(sys.argv[1]), find_task)\n"
        "write_report(Path(sys.argv[2]), data, find_task(data.task))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(written.json), str(tmp_path)], check=True)
    assert (tmp_path / "report.html").read_bytes() == written.html.read_bytes()
    assert (tmp_path / "report.md").read_bytes() == written.markdown.read_bytes()


def test_the_smallest_report_is_a_report(tmp_path: Path) -> None:
    full = make()
    row = ModelRow("only", "train", "student", {"top1": 0.5})
    data = ReportData("t", "s", "c", "r", full.created, full.dataset, [row], "only")
    paths = write_report(tmp_path, data, TASK)
    html = Page(paths.html.read_text())
    assert "50.00" in html.text and not paths.figures
    assert "None" not in html.text.replace(")[None])", "") and "Undefined" not in html.text
    assert "50.00" in paths.markdown.read_text()


def test_without_figures_every_table_is_there(data: ReportData, html: Page, tmp_path: Path) -> None:
    paths = write_report(tmp_path, data, TASK, figures=False)
    plain = Page(paths.html.read_text())
    assert plain.table == html.table and len(plain.table) > 20
    assert not paths.figures and not (tmp_path / "figures").exists()
    assert "](figures/" not in paths.markdown.read_text()
    assert not {"picture", "source"} & {tag for tag, _ in plain.tags}
    targets = {attrs["href"][1:] for tag, attrs in plain.tags if tag == "a"}
    assert targets <= {attrs["id"] for _, attrs in plain.tags if "id" in attrs}


def test_contradictions_are_refused() -> None:
    full = make()
    with pytest.raises(ValueError, match="primary row 'x'"):
        replace(full, primary="x")
    with pytest.raises(ValueError, match="different names"):
        replace(full, rows=[full.rows[0], full.rows[0]])
    with pytest.raises(ValueError, match="stand beside"):
        replace(full, paper_rows=[PaperRow("p", "Table 1", "unknown", {}, Cost())])
    with pytest.raises(ValueError, match="uint8"):
        Example.of(np.zeros((2, 2, 3)), "a", "b", 0.5, 0.5)  # type: ignore[arg-type]


def test_examples_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert np.array_equal(Example.of(pixels, "a", "b", 0.5, 0.4).pixels(), pixels)


def test_curves_take_numbers_and_leave_words() -> None:
    rows = [
        {"stage": "a", "step": 1, "loss": 2.0, "lr": 0.1, "note": "x", "ok": True},
        {"stage": "b", "step": 1, "loss": "NaN"},
        {"stage": "a", "step": 2, "loss": 1.0},
        {"stage": "a", "seconds": 3.0},
    ]
    found = curves_of(rows, {"a": "first"})
    assert [(c.stage, c.title, len(c.points)) for c in found] == [("a", "first", 2), ("b", "b", 1)]
    assert found[0].points[0] == {"step": 1.0, "loss": 2.0, "lr": 0.1}
    assert found[1].points == [{"step": 1.0}]
