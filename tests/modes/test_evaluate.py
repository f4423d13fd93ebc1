"""mode=evaluate on a small real run: the files agree with each other, with scikit-learn and with what is printed."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

from tests.modes.conftest import QUIET, ask, train
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.files import sha256, write_json
from vitlab.measure.bootstrap import mcnemar_p_value
from vitlab.measure.classification import Evaluation
from vitlab.models.artifact import ModelMeta, read_meta
from vitlab.modes.evaluate import measure
from vitlab.modes.select_model import find_subject
from vitlab.tasks.classification import class_numbers


@pytest.fixture(scope="module")
def printed(run: Path, output: Path) -> str:
    """What the prompt says of one run."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert ask(output, "mode=evaluate", f"run={run}", "evaluation.resamples=200") == 0
    return out.getvalue()


def test_the_files_agree_with_scikit_learn(run: Path, printed: str) -> None:
    kept = np.load(run / "evaluation" / "train.npz")
    images = find_subject(load(["mode=evaluate", f"run={run}", *QUIET])).data.sources["test"]
    assert kept["key"].tolist() == [images.keys[int(i)] for i in kept["index"]] and "group" not in kept
    found = Evaluation.from_dict(json.loads((run / "evaluation" / "train.json").read_text()))
    prob = np.exp(kept["logits"].astype(float))
    prob /= prob.sum(1, keepdims=True)
    assert found.top1 == pytest.approx(accuracy_score(kept["label"], kept["logits"].argmax(1)))
    assert found.nll == pytest.approx(log_loss(kept["label"], prob, labels=range(10)), rel=1e-5)
    assert [row[0] for row in found.calibrations] == [10, 15, 20]
    assert found.intervals["top1"][0] < found.top1 < found.intervals["top1"][1]
    assert f"{100 * found.top1:.2f}" in printed
    assert found.view == "resized to 32 × 32, nothing cut, bicubic"
    assert found.view in printed


def test_no_temperature_is_fitted_without_a_validation_split(run: Path, printed: str) -> None:
    found = Evaluation.from_dict(json.loads((run / "evaluation" / "train.json").read_text()))
    assert found.temperature is None
    assert printed.count("temperature") == 1
    assert f"no temperature is fitted: {found.no_temperature}" in printed
    assert "digits has no validation split" in printed and "dataset.val_fraction=0.1" in printed


def test_a_temperature_is_fitted_on_images_held_out_of_train(
    other: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On all that was held out and nothing else: its value is that of the model's answers to those images."""
    from vitlab.config import DatasetConfig
    from vitlab.data.build import open_splits
    from vitlab.distill.views import EvalView
    from vitlab.measure.temperature import fit_temperature
    from vitlab.models.artifact import load_model

    assert ask(output, "mode=evaluate", f"run={other}", "evaluation.resamples=0") == 0
    found = Evaluation.from_dict(json.loads((other / "evaluation" / "train.json").read_text()))
    assert found.temperature is not None and found.no_temperature == ""
    assert found.temperature.fitted_on == "200 images held out of train"
    assert found.temperature.nll < found.nll
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if f" {found.temperature.value:.3g} " in line)
    assert row[-3:] == [
        f"{100 * found.temperature.ece:.2f}",
        f"{found.temperature.nll:.3f}",
        f"{found.temperature.brier:.3f}",
    ]
    assert "\nfitted on the 200 images held out of train\n" in text
    model = load_model(other / "train")
    meta = model.meta
    assert isinstance(meta, ModelMeta)
    cfg = DatasetConfig(name="digits", size=32, mean=meta.mean, std=meta.std, val_fraction=0.2)
    splits = open_splits(cfg, 0, 200)
    assert not set(splits["val"].keys) & {*splits["train"].keys, *splits["test"].keys}
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
    pairs = [splits["val"][i] for i in range(len(splits["val"]))]
    with torch.no_grad():
        logits = model(torch.stack([view(image) for image, _ in pairs])).numpy()
    assert found.temperature.value == pytest.approx(fit_temperature(logits, [label for _, label in pairs]), rel=1e-3)


def test_images_that_a_run_was_trained_on_are_not_held_out_afterwards(
    run: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(output, "mode=evaluate", f"run={run}", "dataset.val_fraction=0.2") == 2
    assert "was trained with 0, so it has seen images" in " ".join(capsys.readouterr().err.split())
    words = (f"model.checkpoint={run / 'train'}", "dataset=digits", "dataset.val_fraction=0.2", "debug.max_images=40")
    assert ask(output, "mode=evaluate", *words, "evaluation.resamples=0") == 0
    assert "held out of train, and train may have been trained on them" in capsys.readouterr().out


def test_a_run_of_other_training_images_gets_no_temperature(other: Path, output: Path) -> None:
    """Such as one whose images were all trained on, when nothing was held out yet."""
    done = other / "train" / "done.json"
    before = done.read_bytes()
    write_json(done, json.loads(before) | {"images": 160})
    try:
        one = measure(find_subject(load(["mode=evaluate", f"output={output}", f"run={other}", *QUIET])))
    finally:
        done.write_bytes(before)
    assert isinstance(one.evaluation, Evaluation) and one.evaluation.temperature is None
    assert one.evaluation.no_temperature.endswith("was trained on 160 images, not on the 200 left")


def test_the_figures_stand_in_the_models_own_description(run: Path, printed: str) -> None:
    found = Evaluation.from_dict(json.loads((run / "evaluation" / "train.json").read_text()))
    meta = read_meta(run / "train")
    assert {name: meta.metrics[name] for name in found.metrics()} == found.metrics()
    known = {name: meta.metrics[name] for name in ("dataset", "split", "images", "synthetic")}
    assert known == {"dataset": "digits", "split": "test", "images": 200, "synthetic": False}
    assert meta.metrics["date"] >= json.loads((run / "run.json").read_text())["created"]
    assert meta.sha256 == sha256(run / "train" / "model.safetensors")


def test_several_devices_measure_every_image_once(
    run: Path, printed: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven does not divide 200: a set dealt out to seven processes in equal parts would have doubles."""
    before = (run / "evaluation" / "train.json").read_bytes()
    words = (f"run={run}", "evaluation.resamples=200", "trainer.devices=7")
    assert ask(output, "mode=evaluate", *words) == 0
    assert "one, not 7 devices: mode=evaluate runs in one process" in capsys.readouterr().err
    assert (run / "evaluation" / "train.json").read_bytes() == before
    index = np.load(run / "evaluation" / "train.npz")["index"]
    assert sorted(index.tolist()) == list(range(200))


def test_the_class_table_and_pictures(run: Path, printed: str) -> None:
    with open(run / "evaluation" / "train-classes.csv") as file:
        rows = list(csv.DictReader(file))
    found = Evaluation.from_dict(json.loads((run / "evaluation" / "train.json").read_text()))
    assert [row["class"] for row in rows] == found.classes
    assert sum(int(row["images"]) for row in rows) == found.n
    for name in ("reliability", "confusion", "mistakes"):
        with Image.open(run / "evaluation" / f"train-{name}.png") as picture:
            assert min(picture.size) > 200
    assert re.search(r"weakest classes of model: \d", printed)


def test_the_markers_follow(run: Path, printed: str) -> None:
    done = json.loads((run / "evaluation" / "done.json").read_text())
    found = Evaluation.from_dict(json.loads((run / "evaluation" / "train.json").read_text()))
    assert done["metrics"]["train"] == found.metrics()
    assert (run / "finished.json").exists()


def test_two_runs_are_compared_on_the_same_images(
    run: Path, other: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(output, "mode=evaluate", f"run=[{run.name},{other.name}]", "evaluation.resamples=200") == 0
    text = capsys.readouterr().out
    (file,) = (output / "evaluate").glob("*-runs-*/comparisons.json")
    (found,) = json.loads(file.read_text())
    a, b = (np.load(one / "evaluation" / "train.npz") for one in (run, other))
    right = [one["logits"].argmax(1) == one["label"] for one in (a, b)]
    assert found["only_first"] == int((right[0] & ~right[1]).sum())
    assert found["p_value"] == mcnemar_p_value(found["only_first"], found["only_second"])
    difference = found["differences"]["top1"]
    assert difference["value"] == pytest.approx(right[1].mean() - right[0].mean())
    assert difference["lo"] <= difference["value"] <= difference["hi"]
    assert f"{other.name}: model against {run.name}: model: " in text
    assert re.search(r"McNemar p [=<] [\d.]+", text)
    assert file.with_name("evaluation.txt").read_text().strip() in text


def test_other_images_go_beside_the_runs_own_record(run: Path, output: Path) -> None:
    files = (run / "evaluation" / "train.json", run / "train" / "model.json")
    before = [file.read_bytes() for file in files]
    assert ask(output, "mode=evaluate", f"run={run}", "debug.max_images=50", "evaluation.resamples=20") == 0
    (folder,) = run.glob("evaluation-digits-*")
    assert json.loads((folder / "train.json").read_text())["n"] == 50
    assert [file.read_bytes() for file in files] == before


def digit_folder(root: Path, start: int, count: int = 60, split: str = "test") -> Path:
    """Real digits as class folders; the names do not depend on which digits they are."""
    from vitlab.config import DatasetConfig
    from vitlab.data.sets.digits import splits as digits

    source = digits(DatasetConfig(name="digits", size=32, mean=[0.3] * 3, std=[0.3] * 3))["test"]
    numbers = {str(label): 0 for label in range(10)}
    for i in range(start, start + count):
        image, label = source[i]
        place = root / split / str(label) / f"{numbers[str(label)]}.png"
        numbers[str(label)] += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    return root


def test_measurements_elsewhere_leave_the_runs_own_result(
    run: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two roots with one layout are two measurements; data that moved without a change are the run's own."""
    first, second = digit_folder(tmp_path / "a", 0), digit_folder(tmp_path / "b", 60)
    own = [run / "evaluation" / "train.json", run / "evaluation" / "train.npz", run / "train" / "model.json"]
    before = [file.read_bytes() for file in own]
    folders = set(run.glob("evaluation-folder-*"))
    for root in (first, second):
        words = ("dataset=folder", f"dataset.root={root}", "dataset.size=32", "dataset.crop_pct=1.0")
        assert ask(output, "mode=evaluate", f"run={run}", *words, "evaluation.resamples=0") == 0
        assert "not the images of" in capsys.readouterr().out
    made = sorted(set(run.glob("evaluation-folder-*")) - folders)
    assert len(made) == 2 and [file.read_bytes() for file in own] == before
    copy = Path(shutil.copytree(first, tmp_path / "moved"))
    words = ("dataset=folder", f"dataset.root={copy}", "dataset.size=32", "dataset.crop_pct=1.0")
    assert ask(output, "mode=evaluate", f"run={run}", *words, "evaluation.resamples=0") == 0
    assert sorted(set(run.glob("evaluation-folder-*")) - folders) == made
    assert ask(output, "mode=report", f"run={run}") == 0
    page = (run / "report.md").read_text()
    assert page.count("Measured on other images, model: ") >= 2 and f"images of {second} (test split)" in page


def test_another_root_of_a_folder_run_is_another_measurement(output: Path, tmp_path: Path) -> None:
    """The case in which only dataset.root differs; and the same images under another root."""
    root = digit_folder(digit_folder(tmp_path / "own", 0), 60, 120, "train")
    other = digit_folder(digit_folder(tmp_path / "other", 60), 60, 120, "train")
    words = ("dataset=folder", f"dataset.root={root}", "model=tiny_vit_digits", "recipe=digits", "dataset.size=32")
    quick = ("recipe.batch_size=16", "recipe.duration=3st", "recipe.warmup=0st", "debug.max_images=null")
    made = train(output, *words, *quick)
    own = [made / "evaluation" / "train.json", made / "train" / "model.json", made / "evaluation" / "done.json"]
    before = [file.read_bytes() for file in own]
    assert ask(output, "mode=evaluate", f"run={made}", f"dataset.root={other}", "evaluation.resamples=0") == 0
    assert [file.read_bytes() for file in own] == before and len(list(made.glob("evaluation-folder-*"))) == 1
    moved = shutil.copytree(root, tmp_path / "moved")
    assert ask(output, "mode=evaluate", f"run={made}", f"dataset.root={moved}", "evaluation.resamples=0") == 0
    assert len(list(made.glob("evaluation-folder-*"))) == 1 and own[0].read_bytes() != before[0]


def test_a_flat_folder_is_measured_whole(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New pictures without split folders: all are measured. Of the folder of the training only the held-out part is,
    and a fraction that is typed counts."""
    flat, new = digit_folder(tmp_path, 0, 120, "own"), digit_folder(tmp_path, 120, 40, "new")
    words: tuple[str, ...] = (
        "dataset=folder",
        f"dataset.root={flat / 'own'}",
        "model=tiny_vit_digits",
        "recipe=digits",
    )
    words += ("dataset.size=32", "recipe.batch_size=16", "recipe.duration=3st", "recipe.warmup=0st")
    made = train(output, *words, "debug.max_images=null")

    def measured(*given: str) -> int:
        capsys.readouterr()
        assert ask(tmp_path / "measured", "mode=evaluate", *given, "evaluation.resamples=0") == 0
        (count,) = re.findall(r"split, (\d+) images", capsys.readouterr().out.splitlines()[0])
        return int(count)

    held_out = measured(f"run={made}")
    assert 10 <= held_out <= 40
    place = f"dataset.root={new / 'new'}"
    assert measured(f"run={made}", place) == 40
    model = (f"model.checkpoint={made / 'train'}", "dataset=folder")
    assert measured(*model, place) == 40
    assert measured(*model, f"dataset.root={flat / 'own'}") == held_out
    assert measured(*model, place, "dataset.val_fraction=0.5") < 40
    moved = shutil.copytree(flat / "own", tmp_path / "moved")
    assert measured(f"run={made}", f"dataset.root={moved}") == held_out
    with open(made / "splits.csv") as file:
        first = next(row["path"] for row in csv.DictReader(file) if row["split"] == "val")
    (moved / first).unlink()  # no longer the run's own images
    capsys.readouterr()
    assert ask(output, "mode=evaluate", f"run={made}", f"dataset.root={moved}", "evaluation.resamples=0") == 0
    assert "have the names of images that the run was trained on" in capsys.readouterr().out


def test_different_images_do_not_compare(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = train(output, "debug.max_images=120", "debug.max_steps=3")
    assert ask(output, "mode=evaluate", f"run=[{run},{small}]", "evaluation.resamples=0") == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "were not measured on the same images" in text


def test_a_model_folder_on_typed_data_with_a_validation_split(run: Path, output: Path, tmp_path: Path) -> None:
    """Digits as class folders with val and test: the temperature comes from val alone."""
    from vitlab.config import DatasetConfig
    from vitlab.data.sets.digits import splits as digits

    source = digits(DatasetConfig(name="digits", size=32, mean=[0.3] * 3, std=[0.3] * 3))["test"]
    for i in range(120):
        image, label = source[i]
        place = tmp_path / "photos" / ("train", "val", "test")[i % 3] / str(label) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    words = (f"model.checkpoint={run / 'train'}", "dataset=folder", f"dataset.root={tmp_path / 'photos'}")
    assert ask(output, "mode=evaluate", *words, "evaluation.resamples=20") == 0
    (file,) = (output / "evaluate").glob("train-folder-*/model.json")
    found = Evaluation.from_dict(json.loads(file.read_text()))
    assert found.n == 40
    assert found.temperature is not None
    assert found.temperature.fitted_on == "val split, 40 images"


def test_classes_in_another_order_or_fewer_are_found_by_name() -> None:
    np.testing.assert_array_equal(class_numbers(["b", "a"], ["a", "b", "c"], "m"), [1, 0])
    with pytest.raises(UserError, match="does not know 1 of the 2 classes of the data, the first is 'z'"):
        class_numbers(["a", "z"], ["a", "b"], "m")


@pytest.mark.parametrize(("classes", "code", "words"), [(10, 0, "resnet"), (7, 2, "are of other classes than the 10")])
def test_a_checkpoint_from_elsewhere(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int, code: int, words: str
) -> None:
    """Weights without a description: the data set typed beside them says what their logits mean, if it can."""
    import timm
    import torch

    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=classes).state_dict()}, tmp_path / "w.pth")
    model = ("model.name=test_resnet", f"model.checkpoint={tmp_path / 'w.pth'}")
    data = ("dataset=digits", "debug.max_images=40", "evaluation.resamples=0")
    assert ask(output, "mode=evaluate", *model, *data) == code
    captured = capsys.readouterr()
    assert words in " ".join((captured.out + captured.err).split())
