"""mode=predict on files, folders, globs, lists and names from standard input; what cannot be read is named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.modes.conftest import ask
from vitlab.config import PredictConfig, TaskConfig
from vitlab.data.decode import read_rgb
from vitlab.data.table import no_formula
from vitlab.distill.views import EvalView
from vitlab.files import read_json, write_json
from vitlab.models.artifact import load_model, read_meta
from vitlab.modes.input_images import expand, read_all
from vitlab.modes.predict import Prediction, Writer, readable
from vitlab.report.compare import clip, wrap
from vitlab.tasks.base import find_task


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve digits of 40 px in two folders, a hidden file, a text file, and an image that is none."""
    root = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(load_digits().images[:12]):
        path = root / ("a" if number < 6 else "b") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((40, 40)).save(path)
    (root / "a/.hidden.png").write_bytes(b"x")
    (root / "b/notes.txt").write_text("x")
    return root


@pytest.fixture
def bad(photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "bad.png").write_text("no image")
    return tmp_path / "bad.png"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def expected(run: Path, paths: list[Path], temperature: float = 1.0) -> torch.Tensor:
    """Probabilities [N, 10] by the model artifact alone."""
    model, meta = load_model(run / "train"), read_meta(run / "train")
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation)
    with torch.no_grad():
        return (model(torch.stack([view(read_rgb(path)) for path in paths])) / temperature).softmax(1)


def test_json_lines_of_a_folder(output: Path, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("predict.format=jsonl", "predict.calibrated=false", "evaluation.batch_size=5")
    code = ask(output, "mode=predict", f"run={run}", f"input={photos}", *words)
    captured = capsys.readouterr()
    rows = lines(captured.out)
    assert code == 0 and captured.err.endswith("probabilities  as the network gives them\n")
    paths = sorted(photos.glob("*/[0-9]*.png"))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    prob = expected(run, paths)
    for row, own in zip(rows, prob, strict=True):
        assert row["class"] == str(int(own.argmax())) and row["probability"] == pytest.approx(
            float(own.max()), abs=1e-5
        )
        top = row["top"]
        assert isinstance(top, list) and len(top) == 5
        values = [one["probability"] for one in top]
        assert values == sorted(values, reverse=True) and values == pytest.approx(own.topk(5).values.tolist(), abs=1e-5)


def test_calibrated_probabilities(output: Path, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The temperature that mode=evaluate wrote for this model divides the logits."""
    path = run / "evaluation/train.json"
    stored = read_json(path)
    write_json(path, {**stored, "temperature": {"value": 2.5, "fitted_on": "val split, 40 images"}})
    try:
        ask(output, "mode=predict", f"run={run}", f"input={photos}/a/00.png", "predict.format=jsonl")
        captured = capsys.readouterr()
        assert "calibrated: logits divided by 2.5, fitted on the val split, 40 images" in captured.err
        own = expected(run, [photos / "a/00.png"], 2.5)[0]
        assert lines(captured.out)[0]["probability"] == pytest.approx(float(own.max()), abs=1e-5)
    finally:
        write_json(path, stored)


def test_bad_files_are_named_counted_and_told_by_the_exit_code(
    output: Path, run: Path, photos: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"input=[{photos}/a/00.png,{bad},{photos}/none.png,{photos}/b/07.png]"
    assert ask(output, "mode=predict", f"run={run}", words, "predict.format=csv", "predict.topk=2") == 2
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    assert [row["error"] for row in rows] == ["", "not an image, in spite of its name", "there is no such file", ""]
    assert rows[1]["class"] == "" and 0 <= float(rows[3]["probability_2"]) <= float(rows[3]["probability"]) <= 1
    assert f"{bad}: not an image" in captured.err and "2 of 4 files could not be read" in captured.err


def test_table_of_a_glob(output: Path, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=predict", f"run={run}", f"input={photos}/*/0[57].png") == 0
    captured = capsys.readouterr()
    assert "no temperature was fitted: digits has no validation split" in captured.err
    rows = captured.out.splitlines()
    assert [Path(row.split()[0]).name for row in rows] == ["05.png", "07.png"] and all(" %" in row for row in rows)


def test_names_that_a_terminal_or_a_spreadsheet_would_run() -> None:
    """Tables escape control characters, CSVs mark what would be a formula, figures and JSON take any name."""
    task, top = find_task(TaskConfig("classification")), [("=1+1", 0.75), ("caf\udce9", 0.25)]
    written = {}
    for form in ("table", "csv", "jsonl"):
        file = io.StringIO()
        writer = Writer(PredictConfig(topk=2, format=form), file, 2, task)
        writer.write([Prediction("-2+3.png", top), Prediction("\x1b[2J\udcff.png", top)])
        written[form] = file.getvalue()
    assert "\\x1b[2J\\udcff.png  =1+1" in written["table"] and "\x1b" not in written["table"]
    head, first, _ = csv.reader(io.StringIO(written["csv"]))
    assert first[:5] == ["'-2+3.png", "'=1+1", "0.750000", "caf\udce9", "0.250000"] and head[0] == "path"
    assert [row["path"] for row in lines(written["jsonl"])] == ["-2+3.png", "\x1b[2J\udcff.png"]
    assert no_formula("-0.5") == "-0.5" and no_formula("@sum") == "'@sum"
    assert clip("caf\udce9", 20) == "caf\\udce9" and wrap("\x1b[31m", 20) == "\\x1b[31m"


def test_names_from_standard_input_and_a_file_of_answers(
    output: Path,
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos}/a/01.png\n\n{photos}/b\n"))
    target = tmp_path / "deep/answers.jsonl"
    code = ask(output, "mode=predict", f"run={run}", "input=-", "predict.format=jsonl", f"predict.output={target}")
    captured = capsys.readouterr()
    assert code == 0 and captured.out == "" and f"written  {target}" in captured.err
    assert [Path(str(row["path"])).name for row in lines(target.read_text())] == [
        "01.png",
        *(f"{number:02d}.png" for number in range(6, 12)),
    ]
    assert [path.name for path in target.parent.iterdir()] == ["answers.jsonl"]


def test_annotated_pictures(output: Path, run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    Image.new("RGB", (30, 50), "red").save(tmp_path / "x/00.png")
    words = f"input=[{photos}/a/00.png,{tmp_path}/x/00.png]"
    assert ask(output, "mode=predict", f"run={run}", words, "predict.topk=3", f"predict.pictures={tmp_path}/out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00-2.png", "00.png"]
    page = Image.open(tmp_path / "out/00-2.png")
    assert page.size == (240, 240 + 3 * 24 + 12) and page.getpixel((120, 100)) == (255, 0, 0)
    legend = np.asarray(page.convert("L"))[242:]
    assert legend.min() < 100 and legend.max() == 255


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=none-*.png"], r"none-*.png matches no file"),
        ([], "No pictures are named"),
        (["input=a.png", "predict.format=jsn"], "predict.format=jsn: 'jsn' is none of table, jsonl, csv"),
        (["input=a.png", "predict.topk=0"], "predict.topk"),
        (["input=a.png", "dataset.sizes=3"], "dataset.sizes"),
    ],
)
def test_mistakes(output: Path, run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=predict", f"run={run}", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_empty_folder_and_a_model_without_weights(
    output: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(output, "mode=predict", f"run={run}", f"input={tmp_path}") == 2
    assert "holds no image" in " ".join(capsys.readouterr().err.split())
    assert ask(output, "mode=predict", "model=resnet18", f"input={tmp_path}", "model.pretrained=false") == 2
    assert "would have random weights" in capsys.readouterr().err


def test_reading_ahead_keeps_the_order(photos: Path, bad: Path) -> None:
    paths = [str(path) for path in sorted(photos.glob("*/*.png"))] * 5
    paths.insert(7, str(bad))
    read = list(read_all(iter(paths), workers=4, ahead=6))
    assert [path for path, _ in read] == paths
    assert [position for position, (_, image) in enumerate(read) if not isinstance(image, Image.Image)] == [
        position for position, path in enumerate(paths) if path == str(bad) or ".hidden" in path
    ]


def test_answers_do_not_wait_for_the_rest_of_a_list(photos: Path) -> None:
    requested: list[int] = []

    def names() -> object:
        for number in range(200):
            requested.append(number)
            yield str(photos / "a/00.png")

    first = next(iter(read_all(names(), workers=1, ahead=4)))  # type: ignore[arg-type]
    assert isinstance(first[1], Image.Image) and len(requested) <= 5


def test_an_interrupted_answer_leaves_no_file(
    output: Path,
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Names(io.StringIO):
        def __next__(self) -> str:  # type: ignore[override]  # Ctrl-C behind the third picture
            if self.tell() >= 3 * len(f"{photos}/a/01.png\n"):
                raise KeyboardInterrupt
            return super().__next__()

    monkeypatch.setattr("sys.stdin", Names(f"{photos}/a/01.png\n" * 9))
    words = ("input=-", "evaluation.batch_size=1", f"predict.output={tmp_path}/answers.csv", "predict.format=csv")
    assert ask(output, "mode=predict", f"run={run}", *words) == 130
    assert "no file is left half-written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_expanded(photos: Path, tmp_path: Path) -> None:
    assert [Path(path).name for path in expand(str(photos / "a"))] == [f"{number:02d}.png" for number in range(6)]
    odd = tmp_path / "[x].png"  # a name that reads like a glob is the file where there is one
    odd.write_bytes(b"x")
    assert list(expand([str(odd), "missing.gif"])) == [str(odd), "missing.gif"]


def test_imagenet_classes_have_names() -> None:
    assert readable(["n01440764", "n01443537"]) == ["tench (n01440764)", "goldfish (n01443537)"]
    assert readable(["n01440764", "cat"]) == ["n01440764", "cat"]
