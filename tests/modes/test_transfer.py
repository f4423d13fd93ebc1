"""Transfer: a finished run is the start of another on other data, on labels alone and on reinforced data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat

from tests.modes.conftest import ask, train
from vitlab.compose.load import load
from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.methods.base import find_method
from vitlab.models.build import build_model
from vitlab.run.run import model_folder

SETS = {"cifar100": 100, "flowers102": 102, "food101": 101}


def started(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_is_the_start_of_another_on_other_classes(
    run: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the head is taken over; after one step of a rate near nothing it is there still. What became of the head
    is said before the training and in the report."""
    words: tuple[str, ...] = (
        "dataset=fake",
        "dataset.num_classes=4",
        "dataset.length=64",
        f"model.checkpoint={run}",
        "name=moved",
    )
    words += ("recipe.warmup=0st", "recipe.warmup_lr=0", "recipe.min_lr=0", "recipe.lr=1e-12", "debug.max_steps=1")
    moved = train(output, *words)
    told = f"weights  {run}: a head for 4 classes instead of the 10 of the weights starts from zero"
    assert told in capsys.readouterr().err
    (note,) = json.loads((moved / "train" / "done.json").read_text())["notes"]
    said = "the head has other classes and starts from zero"
    assert said in note and said in (moved / "report.html").read_text()
    before, after = started(run / "train"), started(moved / "train")
    same = [name for name, value in before.items() if "running" not in name and "num_batches" not in name]
    other = [name for name in same if before[name].shape != after[name].shape]
    assert other == ["head.fc.bias", "head.fc.weight"]
    for name in set(same) - set(other):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    meta = json.loads((moved / "train" / "model.json").read_text())
    assert meta["origin"] == str(run) and len(meta["classes"]) == 4
    assert meta["mean"] == json.loads((run / "train" / "model.json").read_text())["mean"]


def test_a_run_is_the_start_on_reinforced_data_too(run: Path, output: Path) -> None:
    """All stages to a "+" set: a teacher finetuned there, stored views, a student that starts from another run."""
    words: tuple[str, ...] = (
        "method=reinforce",
        "dataset=digits",
        "debug=smoke",
        "debug.max_images=80",
        "method.samples=2",
    )
    words += (
        f"model.checkpoint={run}",
        "method.erm=false",
        "export=none",
        "report.figures=false",
        "evaluation.latency=false",
        "name=plus",
    )
    assert ask(output, *words) == 0
    (folder,) = output.glob("reinforce/plus-*/train")
    assert json.loads((folder / "model.json").read_text())["origin"] == str(run)
    assert model_folder(folder.parent) == folder


def test_a_run_is_a_model_to_evaluate(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"model.checkpoint={run}", "model=tiny_vit_digits", "dataset=digits", "debug.max_images=40")
    assert ask(output, "mode=evaluate", *words, "evaluation.resamples=0") == 0
    assert "40 images" in capsys.readouterr().out


def test_a_run_without_a_result_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_folder(run) == run / "train"
    assert model_folder(run / "train") == run / "train"
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(UserError, match="is a run that has no result yet"):
        model_folder(tmp_path)
    assert ask(tmp_path, "method=supervised", f"model.checkpoint={tmp_path}") == 2
    assert "that has no result yet" in capsys.readouterr().err


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["reinforce_{}", "transfer_{}", "transfer_{}_plus"])
def test_the_papers_set_ups(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They compose with the published recipe, their story is checked, and their networks are built."""
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    config: Config = load([f"experiment={kind.format(name)}"]).config
    recipe, long = config.recipe, "10000ep" if name == "flowers102" else "1000ep"
    assert config.dataset.name == name and config.dataset.size == 224
    assert (recipe.duration, recipe.batch_size, recipe.weight_decay) == (long, 256, 5e-4)
    assert recipe.optimizer_args == {"momentum": 0.9, "nesterov": False} and recipe.warmup == "0st"
    assert recipe.lr == (0.2 if kind == "reinforce_{}" else 0.002)
    assert (recipe.label_smoothing, recipe.augmentation.mixup, recipe.augmentation.cutmix) == (0.1, 0.2, 1.0)
    find_method(config.method.name).check(config)
    stages = [one.name for one in find_method(config.method.name).stages(config)]
    if config.method.name == "supervised":
        assert stages == ["train"]
    else:
        assert stages == ["teacher", "reinforce", "erm", "train"]
        assert config.method.samples == (8000 if name == "flowers102" else 800) and config.method.topk == 10
        assert (config.method.views.variant, config.method.views.pad) == ("randaug", 16 if name == "cifar100" else None)
        teacher = config.teacher.recipe
        assert teacher is not None and config.teacher.train
        assert (teacher.lr, teacher.duration, teacher.augmentation.mixup) == (0.002, long, 1.0)
        assert teacher.augmentation.crop_scale == recipe.augmentation.crop_scale
    if kind != "reinforce_{}":
        assert config.model.pretrained and config.paper.dataset == name and config.paper.top1 is not None
        assert config.paper.model == config.model.name
    with torch.device("meta"):
        network = build_model(config.model, SETS[name], 224, pretrained=False)
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, SETS[name])


def small_set(name: str, root: Path) -> None:
    """Some images of noise in the layout as downloaded, every class at least once in each split that is read."""
    rng = np.random.default_rng(0)

    def noise(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)

    if name == "cifar100":
        folder = root / "cifar-100-python"
        folder.mkdir(parents=True)
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine{i}" for i in range(100)]}, 2))
        for split in ("train", "test"):
            pixels = rng.integers(0, 256, (100, 3072), dtype=np.uint8)
            (folder / split).write_bytes(pickle.dumps({"data": pixels, "fine_labels": list(range(100))}, 2))
    elif name == "flowers102":
        folder = root / "flowers-102"
        for number in range(1, 307):
            noise(folder / "jpg" / f"image_{number:05d}.jpg")
        savemat(folder / "imagelabels.mat", {"labels": (np.arange(306) % 102 + 1)[None]})
        parts = np.arange(1, 307).reshape(3, 1, 102)
        savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), parts, strict=True)))
    else:
        folder = root / "food-101"
        (folder / "meta").mkdir(parents=True)
        for split in ("train", "test"):
            listed = {f"dish{c}": [f"dish{c}/{split}{c}"] for c in range(101)}
            (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
            for (path,) in listed.values():
                noise(folder / "images" / f"{path}.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_papers_set_ups_run(name: str, run: Path, tmp_path: Path) -> None:
    """From the files as downloaded to a measured student: the teacher is finetuned there, the student starts from
    another run. The networks and their views are small."""
    small_set(name, tmp_path)
    words: tuple[str, ...] = (f"experiment=transfer_{name}_plus", f"dataset.root={tmp_path}", "dataset.size=32")
    words += ("model=tiny_vit_digits", f"model.checkpoint={run}", "teacher.members=[{name: resnet10t}]")
    words += ("debug=smoke", "recipe.batch_size=20", "teacher.recipe.batch_size=20", "method.samples=2")
    assert (
        ask(tmp_path, *words, "export=none", "report.figures=false", "evaluation=quick", "evaluation.resamples=0") == 0
    )
    (student,) = tmp_path.glob("reinforce/*/train/model.json")
    meta = json.loads(student.read_text())
    assert meta["origin"] == str(run) and len(meta["classes"]) == SETS[name]
    assert (student.parents[1] / "finished.json").is_file()


@pytest.mark.slow
def test_all_transfers_of_a_run_in_one_sweep(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETS:
        small_set(name, tmp_path / "data")
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    words: tuple[str, ...] = ("-m", f"experiment={','.join(f'transfer_{name}' for name in SETS)}")
    words += (f"model.checkpoint={run}", "model=tiny_vit_digits", "dataset.size=32", "debug=smoke")
    assert ask(tmp_path, *words, "recipe.batch_size=20", "export=none", "report.figures=false", "evaluation=quick") == 0
    (comparison,) = tmp_path.glob("sweeps/*/comparison.md")
    assert all(f"transfer_{name} | finished" in comparison.read_text() for name in SETS)
    started_from = [json.loads(path.read_text())["origin"] for path in tmp_path.glob("supervised/*/train/model.json")]
    assert started_from == [str(run)] * 3
