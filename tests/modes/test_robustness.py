"""evaluation=robust and evaluation=imagenet_shift on small real runs: right, resumable, cached, reported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitlab
from tests.modes.conftest import SHALLOW, ask, train
from vitlab.config import DatasetConfig
from vitlab.data.batch import Batch
from vitlab.data.corrupted import image_seed
from vitlab.data.sets.digits import splits as digits
from vitlab.data.shifted import listed_ids, wordnet_ids
from vitlab.data.subsets import limit_images
from vitlab.distill.views import EvalView
from vitlab.errors import Interrupted
from vitlab.measure.corruptions import corrupt
from vitlab.measure.robustness import Robustness, Shifted
from vitlab.models.artifact import ModelMeta
from vitlab.modes import evaluation_files
from vitlab.report.robust import by_corruption, describe_corruptions

WORDS: tuple[str, ...] = ("evaluation=robust", "evaluation.corruptions=[noise,contrast]", "evaluation.severities=[1,4]")
WORDS += ("evaluation.robust_images=40", "evaluation.resamples=0", "evaluation.latency=false")


def read(folder: Path) -> Robustness:
    return Robustness.from_dict(json.loads((folder / "evaluation" / "train-robust.json").read_text()))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the batches that networks were evaluated on, recorded in the forward pass."""
    sizes: list[int] = []
    real = evaluation_files.evaluation_logits

    def counted(network: torch.nn.Module, batch: Batch, device: torch.device) -> np.ndarray:
        sizes.append(len(batch))
        return real(network, batch, device)

    monkeypatch.setattr(evaluation_files, "evaluation_logits", counted)
    yield sizes


@pytest.fixture(scope="module")
def robust(output: Path) -> Path:
    """A run that closes with corruptions."""
    return train(output, *WORDS, *SHALLOW, "evaluation.batch_size=64", "name=robust")


def test_a_training_closes_with_corruptions(robust: Path) -> None:
    found = read(robust)
    assert found.names == ["gaussian_noise", "shot_noise", "impulse_noise", "contrast"]
    assert found.severities == [1, 4] and len(found.cells) == 8
    assert (found.n, found.whole, found.alexnet, found.mce) == (40, 200, False, None)
    lines = (robust / "evaluation" / "train-robust.csv").read_text().splitlines()
    assert len(lines) == 1 + 1 + 8 and lines[1].startswith("none,0,40,")


def test_a_cell_is_what_a_hand_finds(robust: Path) -> None:
    source = digits(DatasetConfig(name="digits", size=32, mean=[0.3] * 3, std=[0.3] * 3))["test"]
    part = limit_images(limit_images(source, 200, 0), 40, 0)
    model = vitlab.load_model(robust / "train")
    meta = model.meta
    assert isinstance(meta, ModelMeta)
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
    rows, plain, labels = [], [], []
    for i in range(len(part)):
        image, label = part[i]
        plain.append(view(image))
        rows.append(view.normalise(corrupt(view.cut(image), "shot_noise", 4, image_seed(0, part.keys[i]))))
        labels.append(label)
    truth = torch.tensor(labels)
    with torch.inference_mode():
        noisy, clean = model(torch.stack(rows)), model(torch.stack(plain))
    cell, found = read(robust).at("shot_noise", 4), read(robust)
    assert cell is not None and found.clean is not None
    assert cell.top1 == pytest.approx((noisy.argmax(1) == truth).float().mean().item())
    assert cell.nll == pytest.approx(torch.nn.functional.cross_entropy(noisy, truth).item(), rel=1e-4)
    assert found.clean.top1 == pytest.approx((clean.argmax(1) == truth).float().mean().item())
    assert cell.nll > found.clean.nll


def test_only_what_is_new_is_measured(robust: Path, output: Path, answered: list[int]) -> None:
    before = read(robust)
    assert ask(output, "mode=evaluate", f"run={robust}", *WORDS) == 0
    assert answered == []
    more = [word.replace("contrast]", "contrast,fog]").replace("[1,4]", "[1,4,5]") for word in WORDS]
    assert ask(output, "mode=evaluate", f"run={robust}", *more, "evaluation.batch_size=30") == 0
    assert sum(answered) == 40 * (4 * 1 + 3)
    after = read(robust)
    assert len(after.cells) == 15
    assert all(after.at(one.name, one.severity) == one for one in before.cells), "in other batches, to the last bit"


def test_stopped_between_corruptions_it_goes_on(
    robust: Path, output: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = robust / "evaluation" / "train-robust.json"
    full = read(robust)
    file.unlink()
    calls = iter(range(100))

    def stop() -> None:
        if next(calls) == 1:
            raise Interrupted("enough")

    monkeypatch.setattr("vitlab.training.interrupt.stop_if_requested", stop)
    assert ask(output, "mode=evaluate", f"run={robust}", *WORDS) == 130
    assert {one.name for one in read(robust).cells} == {"gaussian_noise"}
    assert ask(output, "mode=evaluate", f"run={robust}", *WORDS) == 0
    assert sum(answered) == 40 * 2 * 5  # the second corruption twice
    done = read(robust)
    assert all(full.at(one.name, one.severity) == one for one in done.cells) and len(done.cells) == 8


def test_the_prompt_and_the_pages_tell_it(robust: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=evaluate", f"run={robust}", *WORDS) == 0
    printed = capsys.readouterr().out
    assert "4 corruptions of severity 1, 4, made on the fly, 40 of 200 images each." in printed
    found = read(robust)
    assert f"{100 * found.mean('top1', name='contrast'):.2f}" in printed
    assert "mean error %" in printed and "mCE" not in printed
    assert ask(output, "mode=report", f"run={robust}") == 0
    for page in (robust / "report.md", robust / "report.html"):
        text = page.read_text()
        assert "40 of 200 images each" in text and f"{100 * found.mean_error:.2f}" in text
    for name in ("corruptions", "severities"):
        with Image.open(robust / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 400


def test_a_check_counts_and_estimates_them(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("method=supervised", "dataset=digits", "debug.max_images=100")
    assert ask(output, "mode=check", *words, *WORDS) == 0
    assert re.search(r"corrupted +\d+ s +320 images\n", capsys.readouterr().out)


def test_frost_is_marked_as_drawn_beside_its_number(robust: Path) -> None:
    found = read(robust)
    assert "Frost" not in describe_corruptions(found)
    frost = [replace(one, name="frost") for one in found.cells if one.name == "contrast"]
    found.cells = [*found.cells, *frost]
    assert "a quarter less fine structure than the published photographs" in describe_corruptions(found)
    assert [row[0] for row in by_corruption(found).rows if "frost" in row[0]] == ["frost (drawn)"]
    found.published = True
    assert "Frost" not in describe_corruptions(found)
    assert [row[0] for row in by_corruption(found).rows if "frost" in row[0]] == ["frost"]


def test_two_runs_side_by_side(robust: Path, output: Path) -> None:
    other = train(output, *WORDS, *SHALLOW, "debug.max_steps=12", "name=other")
    assert ask(output, "mode=report", f"run=[{robust},{other}]") == 0
    (page,) = (output / "report").glob("2-runs-*/report.md")
    section = page.read_text().partition("## Robustness")[2].partition("## Mistakes")[0]
    for run in (robust, other):
        assert f"| {100 * read(run).mean_error:.2f} |" in section
    assert "figures/corruptions.png" in section


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluation.corruptions=[rain]",), "'rain' is none of all, noise"),
        (("evaluation.corruptions=[fogg]",), "Did you mean fog?"),
        (("evaluation.severities=[6]",), "6 is too large"),
        (("evaluation.shifted=[imagenet_a]",), "'imagenet_a' is none of all, val, v2"),
        (("evaluation.shifted=[a]",), "neither evaluation.shifted_root nor VITLAB_DATA is set"),
        (("evaluation.shifted=[a]", "evaluation.shifted_root=/nowhere"), "/nowhere is not a folder"),
    ],
)
def test_mistakes(
    robust: Path, output: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    assert ask(output, "mode=evaluate", f"run={robust}", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------------------------------------- shifted sets


def write(root: Path, *places: str) -> None:
    """Pictures whose colour distinguishes the first of four classes from the others."""
    for number, place in enumerate(places):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ImageNet of four classes, and sets that shift away from it."""
    root, ids = tmp_path_factory.mktemp("imagenet"), wordnet_ids()
    four = (ids[0], *listed_ids("a")[:3])  # three of them are ImageNet-A's, of which one lacks its images below
    numbers = [ids.index(name) for name in four] + [999]
    write(root, *(f"{split}/{name}/{i}.JPEG" for split in ("train", "val") for name in four for i in range(4)))
    write(root, *(f"imagenetv2-matched-frequency-format-val/{c}/{i}.jpeg" for c in numbers for i in (1, 2)))
    write(root, *(f"imagenet-a/{name}/{i}.jpg" for name in four[1:3] for i in range(5)))
    write(root, *(f"imagenet-c/blur/zoom_blur/{s}/{name}/x.JPEG" for s in (1, 2) for name in four))
    return root


@pytest.fixture(scope="module")
def classifier(output: Path, imagenet: Path) -> Path:
    """A run on it."""
    words: tuple[str, ...] = (
        "dataset=imagenet",
        f"dataset.root={imagenet}",
        "dataset.size=32",
        "model=resnet18",
        "recipe=digits",
    )
    words += ("model.name=test_resnet", "recipe.batch_size=8", "debug.max_steps=4", "evaluation=imagenet_shift")
    words += (f"evaluation.shifted_root={imagenet}", "evaluation.resamples=0", "report.figures=true")
    return train(output, *words)


def test_the_sets_that_are_there(classifier: Path, imagenet: Path, output: Path, answered: list[int]) -> None:
    file = classifier / "evaluation" / "train-shifted.json"
    found = Shifted.from_dict(json.loads(file.read_text()))
    assert [one.name for one in found.sets] == ["val", "v2", "a"]
    assert found.missing == [
        "ImageNetV2 threshold 0.7",
        "ImageNetV2 top images",
        "ImageNet-R",
        "ImageNet-Sketch",
        "ObjectNet",
    ]
    val, v2, a = found.sets
    own = json.loads((classifier / "evaluation" / "train.json").read_text())
    assert val.full.top1 == own["top1"] and val.full.nll == pytest.approx(own["nll"]) and val.restricted is None
    assert (v2.full.n, v2.left_out, v2.classes) == (8, 2, 4), "class 999 is not known, and reported as left out"
    assert (a.classes, a.absent) == (3, 198), "among all that it knows of the set, those without images included"
    assert a.restricted is not None and a.restricted.top1 >= a.full.top1
    assert found.corrupted is not None and found.corrupted.mce is None
    assert {(one.name, one.severity, one.n) for one in found.corrupted.cells} == {
        ("zoom_blur", 1, 4),
        ("zoom_blur", 2, 4),
    }
    before = file.read_text()
    words = ("evaluation=imagenet_shift", f"evaluation.shifted_root={imagenet}", "evaluation.resamples=0")
    assert ask(output, "mode=evaluate", f"run={classifier}", *words) == 0
    assert answered == [] and file.read_text() == before, "nothing is measured twice"


def test_answers_among_all_classes_and_among_those_of_the_set(classifier: Path, imagenet: Path) -> None:
    model = vitlab.load_model(classifier / "train")
    meta = model.meta
    assert isinstance(meta, ModelMeta)
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation, meta.crop)
    found = Shifted.from_dict(json.loads((classifier / "evaluation" / "train-shifted.json").read_text()))
    paths = sorted((imagenet / "imagenet-a").glob("*/*.jpg"))
    with torch.inference_mode():
        logits = model(torch.stack([view(Image.open(path).convert("RGB")) for path in paths]))
    label = torch.tensor([meta.classes.index(path.parent.name) for path in paths])
    a = found.sets[2]
    assert a.restricted is not None
    assert a.full.top1 == pytest.approx((logits.argmax(1) == label).float().mean().item())
    assert a.restricted.top1 == pytest.approx((logits[:, 1:].argmax(1) + 1 == label).float().mean().item())
    assert a.restricted.nll == pytest.approx(
        torch.nn.functional.cross_entropy(logits[:, 1:], label - 1).item(), rel=1e-4
    )
    c = found.corrupted
    assert c is not None and c.view == "short side 32, centre crop 32 × 32 (crop 1), bicubic"


def test_the_report_has_the_sets(classifier: Path) -> None:
    text = (classifier / "report.md").read_text()
    assert "| ImageNetV2 matched frequency | 8 of 10,000 |" in text
    assert "Not found: ImageNetV2 threshold 0.7, " in text
    assert "2 images of ImageNetV2 matched frequency are of classes that it does not know." in text
    assert "ImageNet-A: 198 of its classes have no image here. The copy is incomplete" in text
    assert (classifier / "figures" / "shifted.png").exists()


def test_a_root_without_any_and_a_model_of_other_classes(
    robust: Path, imagenet: Path, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("mode=evaluate", f"run={robust}", "evaluation.shifted=[a,r]", "evaluation.resamples=0")
    assert ask(output, *words, f"evaluation.shifted_root={tmp_path}") == 2
    assert "holds none of ImageNet-A, ImageNet-R" in " ".join(capsys.readouterr().err.split())
    assert ask(output, *words, f"evaluation.shifted_root={imagenet}") == 2
    assert "knows no class of ImageNet-A" in " ".join(capsys.readouterr().err.split())
