"""What a run and its modes state beside numbers: files of mistakes, names of networks and data, which model an export
holds, what is being done; and records that lack a key."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.modes.conftest import ask, signals_put_back
from tests.modes.test_evaluate import digit_folder
from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.config import DatasetConfig
from vitlab.config.words import dataset_title, describe_network, describe_own_images
from vitlab.files import read_json, write_json
from vitlab.launch.plan import lengths, plan
from vitlab.launch.start import find_run
from vitlab.training.schedule import describe_length


def test_every_prediction_stands_in_a_table(run: Path, output: Path) -> None:
    """Its numbers are those of the evaluation; the worst mistakes of the report are its files."""
    with open(run / "evaluation/train-predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found, kept = read_json(run / "evaluation/train.json"), np.load(run / "evaluation/train.npz")
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "loss"] and len(rows) == found["n"]
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True) and np.mean(losses) == pytest.approx(found["nll"], abs=1e-6)
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(found["top1"])
    assert sorted(row["path"] for row in rows) == sorted(kept["key"].tolist())
    label = dict(zip(kept["key"].tolist(), kept["label"].tolist(), strict=True))
    assert all(row["label"] == found["classes"][label[row["path"]]] for row in rows)
    assert ask(output, "mode=report", f"run={run}", "report.figures=false") == 0
    mistakes = read_json(run / "evaluation/mistakes.json")
    page, text = ((run / name).read_text() for name in ("report.html", "report.md"))
    assert mistakes and all(f"image {one['key']}</span>" in page for one in mistakes)
    assert all(f"| {one['key']} | {one['label']} | {one['predicted']} |" in text for one in mistakes)
    assert "`evaluation/train-predictions.csv`" in text


def test_network_and_data_have_their_own_names(run: Path, output: Path) -> None:
    assert ask(output, "mode=report", f"run={run}", "report.figures=false") == 0
    params = read_json(run / "benchmark/done.json")["costs"]["train"]["params"]
    changed = "with embed_dims, depths, num_heads, window_sizes of its own"
    assert f"tiny_vit_5m_224 {changed}" in (run / "report.html").read_text()
    assert f"A `tiny_vit_5m_224` {changed}, {params:,} parameters, that sorts" in (run / "model_card.md").read_text()
    composed = load(["method=supervised", "dataset=digits", "model=tiny_vit_digits", f"output={output}/none"])
    assert f"tiny_vit_5m_224 {changed}" in plan(find_run(composed), composed)
    assert describe_network("resnet18", {"drop_path_rate": 0.1, "img_size": 32, "norm_layer": None}) == "resnet18"


def test_a_users_images_are_called_by_their_folder(output: Path) -> None:
    assert dataset_title("folder", "/data/birds/", None) == "birds" and dataset_title("digits", "/x", None) == "digits"
    assert dataset_title("folder", "/data", "lists/wings.csv") == "wings.csv"
    assert describe_own_images(DatasetConfig(name="folder", root="/data/birds")) == "The images in the folder birds."


def test_a_designed_network_gives_the_run_its_name(output: Path) -> None:
    words = ["method=deepmad", "dataset=digits", f"output={output}/designed"]
    assert find_run(load(words)).name.startswith("digits-deepmad-")
    run = find_run(load([*words, "name=mine"]))
    assert run.name.startswith("mine-")


def test_an_export_beside_other_images_leaves_the_runs_own(
    run: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = digit_folder(tmp_path / "birds", 0)
    assert ask(output, "mode=export", f"run={run}", "export.formats=[timm]") == 0
    said = capsys.readouterr()
    assert "This is the model of stage train (model), the run's result." in said.out
    assert "export: train as timm" in said.err
    assert "the run's result. In the order of the outputs" in (run / "export/README.md").read_text()
    before = {path: path.read_bytes() for path in (run / "export").rglob("*") if path.is_file()}
    words = ("dataset=folder", f"dataset.root={root}", "dataset.size=32", "dataset.crop_pct=1.0")
    assert ask(output, "mode=export", f"run={run}", *words, "export.formats=[hub]") == 0
    assert "its exports stay as they are" in " ".join(capsys.readouterr().out.split())
    assert {path: path.read_bytes() for path in (run / "export").rglob("*") if path.is_file()} == before
    (folder,) = run.glob("export-folder-*")
    card = (folder / "hub/README.md").read_text()
    assert "The images in the folder birds." in card and "Nothing was measured before this export." in card


def test_what_is_being_done_is_printed(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last steps of a training again, from its files: no step works for long without a line."""
    last = json.loads((run / "commands.jsonl").read_text().splitlines()[0])["command"]
    words = [word for word in shlex.split(last)[3:] if not word.startswith("output=")]
    for marker in ("finished.json", "benchmark/done.json", "evaluation/done.json"):
        (run / marker).unlink()
    with signals_put_back():
        assert main([*words, f"output={output}"]) == 0
    said = capsys.readouterr().err
    for line in ("first    a check of images", "evaluation: train", "benchmark: train", "report: tables"):
        assert line in said


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("evaluation/train.json", {"temperature": {"fitted_on": "x"}}, ("mode=predict", "input=PICTURE")),
        ("evaluation/train.json", {"n": 5}, ("mode=export", "export.formats=[timm]")),
        ("evaluation/train.json", {}, ("mode=export", "export.formats=[timm]")),
        ("evaluation/train-robust.json", {"model": "x"}, ("mode=report", "report.figures=false")),
        ("evaluation/train-shifted.json", {}, ("mode=report", "report.figures=false")),
        ("evaluation/mistakes.json", [{"png": ""}], ("mode=report", "report.figures=false")),
        ("evaluation/comparisons.json", [{}], ("mode=report", "report.figures=false")),
        ("benchmark/done.json", {"stage": "benchmark", "time": ""}, ("mode=report", "report.figures=false")),
        ("benchmark/benchmark.json", {"timings": [{}]}, ("mode=report", "report.figures=false")),
        (
            "evaluation/train-robust.json",
            {},
            ("mode=evaluate", "evaluation=robust", "evaluation.robust_images=10", "evaluation.resamples=0"),
        ),
    ],
)
def test_a_record_without_its_keys_is_named(
    file: str,
    content: object,
    words: tuple[str, ...],
    run: Path,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    path, before = run / file, (run / file).read_bytes() if (run / file).exists() else None
    write_json(path, content)
    try:
        given = [word.replace("PICTURE", str(tmp_path / "a.png")) for word in words]
        assert ask(output, f"run={run}", *given) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{path} is damaged (" in said and "Traceback" not in said
        assert "again" in said.partition("is damaged")[2]
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_the_plan_counts_steps_and_unused_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "own" / name / f"{number}.png")
    words = ["method=supervised", "dataset=folder", f"dataset.root={tmp_path / 'own'}", "dataset.val_fraction=0.2"]
    config = load([*words, "recipe=digits", "recipe.batch_size=6", "recipe.duration=30ep"]).config
    text = lengths(config)
    count = int(text.partition(" of ")[2].partition(" images")[0])
    assert 10 < count < 20
    left = count - 6 * (count // 6)
    assert text == (
        f"steps    recipe: {30 * (count // 6)} steps in all, {count // 6} an epoch; each epoch leaves out {left} of "
        f"{count} images, which do not fill a batch of 6"
    ) or (left == 0 and text.endswith("an epoch"))
    assert lengths(load([*words, "recipe=digits", "recipe.batch_size=128"]).config) == ""  # refused with its cure
    assert describe_length(30, 1, 128, 230) == (
        "30 steps in all, 1 an epoch; each epoch leaves out 102 of 230 images, which do not fill a batch of 128"
    )
    assert describe_length(1, 1, 8, 8) == "1 step in all, 1 an epoch"
