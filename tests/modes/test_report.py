"""mode=report: pages written anew from files, several runs on one page, the card; all read back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.modes.conftest import ask, train
from vitlab.compose.load import load
from vitlab.measure.classification import Evaluation
from vitlab.report.collect import paper_rows, training_command
from vitlab.report.data import ReportData
from vitlab.run.run import Run
from vitlab.tasks.base import find_task


def words_of(page: Path) -> str:
    class Reader(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

    reader = Reader()
    reader.feed(page.read_text())
    return " ".join(reader.text.split())


def test_a_run_closed_without_figures_gets_them_later(run: Path, output: Path) -> None:
    """``report.figures=false`` in a training leaves out what is drawn and nothing else."""
    page = run / "report.md"
    before = page.read_text()
    assert not (run / "figures").exists() and "](figures/" not in before
    assert "Figures were left out (report.figures=false); mode=report run=" in before
    assert ask(output, "mode=report", f"run={run}", "report.figures=false") == 0
    assert not (run / "figures").exists()
    assert ask(output, "mode=report", f"run={run}") == 0
    drawn = sorted(path.name for path in (run / "figures").iterdir())
    assert {"accuracy.png", "loss.png", "confusion.png"} <= set(drawn)
    assert all(f"](figures/{name})" in page.read_text() for name in drawn)
    one = load(["method=supervised", "dataset=digits"])
    assert one.identity() == load(["method=supervised", "dataset=digits", "report.figures=false"]).identity()


def test_a_page_is_rewritten_with_later_evaluations(run: Path, output: Path) -> None:
    assert ask(output, "mode=evaluate", f"run={run}", "evaluation.resamples=50", "evaluation.bins=12") == 0
    before = (run / "report.html").stat().st_mtime_ns
    assert ask(output, "mode=report", f"run={run}") == 0
    assert (run / "report.html").stat().st_mtime_ns > before
    found = ReportData.load(run / "report.json", find_task).main.evaluation
    assert isinstance(found, Evaluation) and found.bins == 12 and found.temperature is None
    text = words_of(run / "report.html")
    for page in (text, (run / "report.md").read_text()):
        assert "No temperature was fitted: digits has no validation split" in page
    assert "ECE of 12 bins; NLL" in text
    assert "The view that is measured: resized to 32 × 32, nothing cut, bicubic." in text
    assert "Alpaydin" in text, "origin of the data"


def test_the_command_on_the_page_is_the_one_that_trained(run: Path, output: Path) -> None:
    assert ask(output, "mode=report", f"run={run}") == 0
    data = ReportData.load(run / "report.json", find_task)
    assert "method=supervised" in data.command and "mode=" not in data.command
    assert data.command == training_command(Run.at(run))


def test_the_card_has_the_numbers_origin_and_code_that_runs(
    run: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(output, "mode=report", f"run={run}") == 0
    card = (run / "model_card.md").read_text()
    found = ReportData.load(run / "report.json", find_task).main.evaluation
    assert isinstance(found, Evaluation)
    assert f"| Top-1 % | {100 * found.top1:.4g} (" in card
    for text in ("CC BY 4.0", "trained from scratch", "## Limits", "weakest class"):
        assert text in card
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code[1], "model_card.md", "exec"), {"__name__": "__main__"})  # it imports all that it needs
    name, probability = capsys.readouterr().out.splitlines()[0].split()
    assert name in found.classes and 0 < float(probability) <= 1


def test_several_runs_stand_side_by_side(
    run: Path, other: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(output, "mode=report", f"run=[{run},{other}]") == 0
    assert run.name in capsys.readouterr().out
    (folder,) = (output / "report").glob("2-runs-*")
    data = ReportData.load(folder / "report.json", find_task)
    assert [row.name for row in data.rows] == [run.name, other.name]
    assert data.primary == run.name
    single = [json.loads((one / "evaluation" / "done.json").read_text())["metrics"]["train"] for one in (run, other)]
    assert [row.metrics["top1"] for row in data.rows] == [one["top1"] for one in single]
    (comparison,) = data.comparisons
    assert (comparison.first, comparison.second) == (run.name, other.name)
    assert comparison.differences["top1"].value == pytest.approx(single[1]["top1"] - single[0]["top1"])
    assert "debug.max_steps:" in data.config and f"{other.name}: 12" in data.config
    assert "dataset.name" not in data.config, "only what differs"
    second = data.rows[1].evaluation
    assert isinstance(second, Evaluation)
    fitted = second.temperature
    assert fitted is not None and f"{100 * fitted.ece:.2f}" in words_of(folder / "report.html")
    assert len(data.curves) == 2
    text = words_of(folder / "report.html")
    assert "On the same images" in text
    assert "times are of different sessions" in text
    assert 'src="http' not in (folder / "report.html").read_text()


def test_runs_on_other_images_are_refused(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = train(output, "debug.max_images=60", "debug.max_steps=2")
    assert ask(output, "mode=report", f"run=[{run},{small}]") == 2
    assert "their numbers do not belong into one table" in " ".join(capsys.readouterr().err.split())


def test_what_is_missing_is_named(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=report") == 2
    assert "mode=report needs a run" in capsys.readouterr().err
    done = run / "benchmark" / "done.json"
    done.rename(done.with_suffix(".away"))
    try:
        assert ask(output, "mode=report", f"run={run}") == 2
    finally:
        done.with_suffix(".away").rename(done)
    assert f"has no benchmark yet. Do that first: mode=benchmark run={run}." in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_report_needs_no_torch(run: Path, output: Path) -> None:
    script = (
        "import sys\nfrom vitlab.cli.main import main\ncode = main(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"
    )
    words = ["mode=report", f"output={output}", f"run={run}"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0", "False"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("TinyViT-5M", 0.791, 5_400_000)),
        (["dataset=digits"], None),
        (["debug=smoke"], None),
        (["model=deit_tiny"], None),
        (["dataset.size=192"], None),
    ],
)
def test_the_papers_row_stands_only_beside_its_own_data(
    words: list[str], expected: tuple[str, float, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imagenet").mkdir()
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    composed = load(["experiment=tinyvit_5m_scratch", *words])
    run = Run.open(tmp_path, "supervised", "x", composed.identity(), composed.tree)
    rows = paper_rows(run, "model")
    assert [(row.name, round(row.metrics["top1"], 6), row.cost.params) for row in rows] == (
        [expected] if expected else []
    )
    if expected:
        assert rows[0].source == "Wu et al., TinyViT (ECCV 2022), main table"


def test_a_paper_row_names_no_other_run() -> None:
    """It stands in the report and changes nothing of what is learned."""
    one = load(["method=supervised", "dataset=digits"])
    other = load(["method=supervised", "dataset=digits", "paper.name=x", "paper.top1=50"])
    assert one.identity() == other.identity()
