"""task=multilabel end to end: files, page, predictions and exports of one run agree with its logits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from tests.contract.story import run_command, the_run
from tests.contract.test_together import WORDS as PLAIN
from tests.contract.together import run_ranks
from tests.modes.conftest import ask
from tests.tasks.conftest import WORDS, with_words
from vitlab.compose.load import load
from vitlab.data.build import open_splits
from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.measure.multilabel import MultilabelEvaluation, choose_thresholds, sigmoid
from vitlab.models.artifact import ModelMeta, load_model
from vitlab.run.recorder import read_rows
from vitlab.tasks.base import find_task


def evaluation_of(run: Path) -> MultilabelEvaluation:
    return MultilabelEvaluation.from_dict(read_json(run / "evaluation" / "train.json"))


def test_the_files_agree_with_scikit_learn(run: Path) -> None:
    found = evaluation_of(run)
    with np.load(run / "evaluation" / "train.npz", allow_pickle=False) as kept:
        label, logits = kept["label"], kept["logits"]
        assert kept["key"][0] == "test/0" and np.array_equal(kept["index"], np.arange(300))
    assert label.shape == logits.shape == (300, 10)
    assert found.map == pytest.approx(average_precision_score(label, logits), rel=1e-5)
    assert found.map > 0.3, "better than chance, which is the share of the labels: about 0.2"
    with open(run / "evaluation" / "train-classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ap"]) for row in rows] == [one.ap for one in found.labels]
    assert read_rows(run / "metrics.jsonl")[-1].keys() >= {"val_map", "val_nll"}


def test_thresholds_are_chosen_on_validation_and_kept_with_the_model(run: Path) -> None:
    model = load_model(run / "train")
    meta = model.meta
    assert isinstance(meta, ModelMeta) and meta.task == "multilabel"
    found = evaluation_of(run)
    assert found.thresholds_from == "val split, 300 images"
    assert meta.fitted == {"thresholds": found.thresholds}
    composed = load([*WORDS])
    val = open_splits(composed.config.dataset, 0, 640)["val"]
    from vitlab.distill.views import EvalView

    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
    with torch.no_grad():
        logits = model(torch.stack([view(val[i][0]) for i in range(len(val))])).numpy()
    assert val.labels is not None
    assert choose_thresholds(sigmoid(logits), val.labels) == pytest.approx(np.array(found.thresholds), abs=1e-5)


def test_the_page_has_the_tasks_own_numbers_and_figures(run: Path) -> None:
    found = evaluation_of(run)
    for page in ("report.html", "report.md"):
        text = (run / page).read_text()
        assert f"{100 * found.map:.2f}" in text and "mAP" in text and "Top-1" not in text
        for words in ("Label", "Threshold", "AUROC", "maximise F1 on the val split, 300 images"):
            assert words in text, words
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"map", "precision-recall", "average-precision", "reliability-1-model", "mistakes", "validation"} <= drawn
    report = read_json(run / "report.json")
    assert report["task"] == "multilabel"
    with open(run / "evaluation/train-predictions.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == found.n and np.mean(losses) == pytest.approx(found.nll, abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    card = (run / "model_card.md").read_text()
    assert "that finds which of 10 labels an image has" in card and "| Mean average precision % |" in card


def test_a_page_is_written_anew_without_the_data(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.json").read_text()
    assert ask(output, "mode=report", f"run={run}") == 0
    assert "mAP %" in capsys.readouterr().out
    assert json.loads((run / "report.json").read_text())["rows"] == json.loads(before)["rows"]


@pytest.fixture(scope="module")
def pictures(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    test = open_splits(load([*WORDS]).config.dataset, 0, 640)["test"]
    for i in range(4):
        test[i][0].save(folder / f"{i}.png")
    return folder


def test_predictions_list_the_labels_above_their_thresholds(
    run: Path, output: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation_of(run)
    with np.load(run / "evaluation" / "train.npz", allow_pickle=False) as kept:
        prob = sigmoid(kept["logits"][:4])
    expected = [
        {name: p for name, p, t in zip(found.classes, row, found.thresholds, strict=True) if p >= t} for row in prob
    ]
    words = ("mode=predict", f"run={run}", f"input={pictures}")
    assert ask(output, *words, "predict.format=jsonl", f"predict.pictures={tmp_path}") == 0
    said = capsys.readouterr()
    assert "sigmoid; labels from thresholds that maximise F1 on the val split, 300 images" in said.err
    records = [json.loads(line) for line in said.out.splitlines()]
    for record, above in zip(records, expected, strict=True):
        values = {one["label"]: one["probability"] for one in record["labels"]}
        assert values == pytest.approx(above, abs=1e-4)
        assert list(values.values()) == sorted(values.values(), reverse=True)
    assert Image.open(tmp_path / "0.png").width >= 240
    assert ask(output, *words, "predict.format=csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [set(row["labels"].split(";")) - {""} for row in rows] == [set(above) for above in expected]
    assert ask(output, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(("%" in line) == bool(above) for line, above in zip(lines, expected, strict=True))


def test_a_model_folder_alone_keeps_its_thresholds(
    run: Path, output: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("mode=predict", f"input={pictures}", "predict.format=jsonl")
    assert ask(output, *words, f"run={run}") == 0
    of_run = capsys.readouterr().out
    assert ask(output, *words, f"model.checkpoint={run / 'export'}", "model=tiny_vit_digits") == 0
    assert capsys.readouterr().out == of_run


def test_exports_name_sigmoid_and_thresholds(run: Path) -> None:
    found = evaluation_of(run)
    meta = {one.key: one.value for one in onnx.load(str(run / "export" / "model.onnx")).metadata_props}
    assert meta["activation"] == "sigmoid" and meta["task"] == "multilabel"
    assert json.loads(meta["thresholds"]) == found.thresholds
    files = {one["format"]: one for one in read_json(run / "export" / "done.json")["files"]}
    assert files["onnx"]["max_diff"] < 1e-4
    assert files["onnx_int8"]["note"].startswith("mAP ") and "the same decision on" in files["onnx_int8"]["note"]
    assert read_json(run / "export" / "model.json")["task"] == "multilabel"


def test_a_model_is_explained_for_a_label(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mode=explain", f"run={run}", "explain.images=2", "explain.sanity=false", "explain.methods=[gradcam]")
    assert ask(output, *words, "explain.target='3'") == 0
    record = read_json(run / "explain" / "explain.json")
    assert {one["explained"] for one in record["images"]} == {"3"}
    assert ask(output, *words, "explain.target=label") == 2
    assert "images have several labels with task=multilabel" in " ".join(capsys.readouterr().err.split())


def test_two_processes_evaluate_as_one(run: Path, tmp_path: Path) -> None:
    """The trained run, not yet evaluated, is continued by two processes: the same files, byte for byte."""
    copy = tmp_path / run.parent.name / run.name
    shutil.copytree(run, copy)
    for name in ("evaluation", "benchmark", "export"):
        shutil.rmtree(copy / name)
    (copy / "finished.json").unlink()
    assert run_ranks(tmp_path, *with_words("export.formats=[]", "report.figures=false")) == [0, 0]
    assert the_run(tmp_path) == copy
    for name in ("train.json", "train.npz", "train-classes.csv", "mistakes.json"):
        assert (copy / "evaluation" / name).read_bytes() == (run / "evaluation" / name).read_bytes(), name


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    words = [
        *("method=supervised", "dataset=digits_multi", "task.pos_weight=balanced", *PLAIN),
        *("debug.max_steps=6", "recipe.validate_every=3st", "debug.max_images=90", "evaluation.batch_size=64"),
    ]
    assert run_command(tmp_path / "one", *words) == 0
    assert run_ranks(tmp_path / "two", *words) == [0, 0]
    one, two = (
        [row for row in read_rows(the_run(tmp_path / name) / "metrics.jsonl") if "val_map" in row]
        for name in ("one", "two")
    )
    assert len(one) == 2
    for a, b in zip(one, two, strict=True):
        for name in ("val_map", "val_nll"):
            assert a[name] == pytest.approx(b[name], rel=1e-3), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task=multilabel", "dataset=digits"), "task=multilabel needs images with several labels each, and those of"),
        (("task=classification", "dataset=digits_multi"), "have several labels"),
        (("method=tinyvit", "dataset=digits_multi"), "TinyViT stores the teacher's class probabilities"),
        (
            ("method=reinforce", "dataset=digits_multi"),
            "Dataset Reinforcement stores the teacher's class probabilities",
        ),
        (("dataset=digits_multi", "task.pos_weight=-1"), "task.pos_weight=-1: -1 is not valid"),
        (("dataset=digits", "task.pos_weight=2"), "task=classification has no binary cross-entropy"),
        (("dataset=digits_multi", "evaluation=robust"), "need classes, not labels (task=multilabel)"),
        (("dataset=digits_multi", "recipe.balance=weight"), "recipe.balance=weight"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = () if any(word.startswith("method=") for word in words) else ("method=supervised",)
    assert ask(tmp_path, *method, *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.glob("*/*/train/model.safetensors"))


def test_a_list_of_weights_has_one_for_each_label(tmp_path: Path) -> None:
    composed = load(["method=supervised", "dataset=digits_multi", "task.pos_weight=[1,2]"])
    task = find_task(composed.config.task)
    train = open_splits(composed.config.dataset, 0)["train"]
    with pytest.raises(UserError, match=r"task\.pos_weight has 2 numbers for 10 labels"):
        task.objective(composed.config.recipe, train)
    balanced = find_task(load(["method=supervised", "dataset=digits_multi", "task.pos_weight=balanced"]).config.task)
    weights = balanced.objective(composed.config.recipe, train).keywords["pos_weight"]
    assert train.labels is not None
    shares = train.labels.mean(0)
    np.testing.assert_allclose(weights.numpy(), (1 - shares) / shares, rtol=1e-5)


def test_a_table_of_ones_own_is_trained_on(tmp_path: Path) -> None:
    train = open_splits(load([*WORDS]).config.dataset, 0)["train"]
    lines = ["path,labels"]
    for i in range(120):
        image, target = train[i]
        image.save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{';'.join(name for name, own in zip(train.classes, target, strict=True) if own)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words: tuple[str, ...] = (
        "method=supervised",
        "task=multilabel",
        "dataset=folder",
        "model=tiny_vit_digits",
        "recipe=digits",
    )
    words += (f"dataset.csv={tmp_path / 'labels.csv'}", "dataset.size=32", "export=none", "report.figures=false")
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_command(tmp_path / "runs", *words, "debug.max_steps=4") == 0
    found = evaluation_of(the_run(tmp_path / "runs"))
    assert found.classes == sorted(train.classes) and found.no_thresholds, "nothing but the measured images is held out"


def test_runs_of_both_tasks_stand_in_one_picture(run: Path, output: Path, tmp_path: Path) -> None:
    """A panel for each metric; read from the records, as mode=benchmark does."""
    from vitlab.report.accuracy_latency import collect_points, write_accuracy_latency

    shutil.copytree(run.parent.parent, tmp_path / "both")
    other = tmp_path / "both" / "supervised" / "classes"
    shutil.copytree(tmp_path / "both" / "supervised" / run.name, other)
    times = {"batch": 1, "median_ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.2, "repeats": 3}
    for folder in (other, tmp_path / "both" / "supervised" / run.name):
        done = read_json(folder / "benchmark" / "done.json")
        done["costs"]["train"]["latency"] = [times]
        (folder / "benchmark" / "done.json").write_text(json.dumps(done))
    record = read_json(other / "run.json")
    record["tree"]["task"] = {"name": "classification"}
    (other / "run.json").write_text(json.dumps(record))
    done = read_json(other / "evaluation" / "done.json")
    done["metrics"] = {"train": {"top1": 0.5}}
    (other / "evaluation" / "done.json").write_text(json.dumps(done))
    points = collect_points(tmp_path / "both", find_task)
    assert {one.metric for one in points} == {"top-1", "mAP"}
    assert {one.value for one in points} == {0.5, evaluation_of(run).map}
    assert len(write_accuracy_latency(tmp_path / "both", find_task)) == 2
