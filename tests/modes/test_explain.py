"""mode=explain on a run's test images and on files: pictures, the record, the check by random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import tests.models.networks  # noqa: F401  (registers wrapped_vit with timm)
from tests.modes.conftest import ask
from vitlab.config.size import hw
from vitlab.files import read_json
from vitlab.measure.explain import grad_cam, upsample_maps
from vitlab.models.artifact import load_model, read_meta
from vitlab.report.saliency_figures import Shown, overlay, sanity_sheet, sheet
from vitlab.report.style import LIGHT, png, themed


@pytest.fixture(scope="module")
def explained(output: Path, run: Path) -> Path:
    assert ask(output, "mode=explain", f"run={run}", "explain.images=5") == 0
    return run / "explain"


def test_what_is_written(explained: Path) -> None:
    pictures = [f"image-{number}.png" for number in range(1, 6)]
    names = ["explain.json", *pictures, "maps.png", "sanity-gradcam.png", "sanity-rollout.png"]
    assert sorted(path.name for path in explained.iterdir()) == sorted(names)
    for name in names[1:]:
        pixels = np.asarray(Image.open(explained / name).convert("RGB"))
        assert pixels.shape[0] > 200 and pixels.std() > 20
    height, one = (Image.open(explained / name).height for name in ("maps.png", "image-1.png"))
    assert height > 2 * one  # five rows, and two: the view, and the picture that it was cut from


def test_the_record_is_what_the_model_says(explained: Path, run: Path) -> None:
    record = read_json(explained / "explain.json")
    assert len(record["images"]) == 5 and record["notes"] == []
    assert len({one["label"] for one in record["images"]}) == 5  # the classes in turn
    assert all(one["explained"] == one["predicted"] and 0 < one["probability"] <= 1 for one in record["images"])
    for check in record["sanity"].values():
        assert len(check["random_from"]) == len(check["rank_correlation"]) == 6
        assert check["passed"] == (check["blank"] == 0 and check["rank_correlation"][-1] < 0.5)


def test_files_and_a_class_by_name(output: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    words = (f"input=[{tmp_path}/a.png,{tmp_path}/b.png]", "explain.target=7", "explain.methods=[gradcam]")
    assert ask(output, "mode=explain", f"run={run}", *words, "explain.sanity=false") == 2
    captured = capsys.readouterr()
    assert "b.png cannot be read as an image" in captured.err and "a.png" in captured.out
    (folder,) = run.glob("explain-input-*")
    record = read_json(folder / "explain.json")
    assert [(one["explained"], one["label"]) for one in record["images"]] == [("7", None)] and record["sanity"] == {}
    assert not (folder / "image-2.png").exists()


def test_other_pictures_and_images_have_a_folder_of_their_own(
    explained: Path, output: Path, run: Path, tmp_path: Path
) -> None:
    """Maps of two pictures stand beside each other, and those of the run's own images stay; the same picture again
    replaces its own."""
    before = {path.name: path.read_bytes() for path in explained.iterdir()}
    known = set(run.glob("explain*"))
    words = ("explain.sanity=false", "explain.methods=[gradcam]", "explain.images=1")
    for name, seed in (("one.png", 1), ("two.png", 2), ("one.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        assert ask(output, "mode=explain", f"run={run}", f"input={tmp_path / name}", *words) == 0
    assert ask(output, "mode=explain", f"run={run}", "debug.max_images=60", *words) == 0
    made = set(run.glob("explain*")) - known
    assert sorted(path.name[:13] for path in made) == ["explain-digit", "explain-input", "explain-input"]
    assert {path.name: path.read_bytes() for path in explained.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain.target=11"], "explain.target=11: the model has no such class."),
        (["explain.layer=stages.9"], "explain.layer=stages.9: the network has no such module. Did you mean stages."),
        (["explain.methods=[gradcm]"], "has no map 'gradcm'; it has gradcam, rollout. Did you mean gradcam?"),
        (["explain.images=0"], "explain.images"),
        (["input=none.png"], "None of the pictures could be read"),
        (["input=[]"], "No pictures are named"),
    ],
)
def test_mistakes(output: Path, run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=explain", f"run={run}", "debug.max_images=60", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_network_shows_its_own_maps(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrapper around a ViT that declares ``attention_maps`` and has no layer that Grad-CAM reads by default."""
    torch.manual_seed(0)
    model = timm.create_model("wrapped_vit", num_classes=10)
    save_file(model.state_dict(), tmp_path / "gated.safetensors")
    words = ["mode=explain", "model.name=wrapped_vit", f"model.checkpoint={tmp_path}/gated.safetensors"]
    words += ["dataset=digits", "dataset.size=32", "debug.max_images=60", "explain.images=2", "explain.sanity=false"]
    assert ask(output, *words) == 0
    (folder,) = (output / "explain").glob("*wrapped_vit*")
    record = read_json(folder / "explain.json")
    assert any("Gated has no forward_features" in note for note in record["notes"])
    assert np.asarray(Image.open(folder / "image-1.png").convert("RGB")).std() > 20
    capsys.readouterr()
    assert ask(output, *words, "explain.methods=[gates]") == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "has no map 'gates'; it has gradcam, rollout, gate. Did you mean gate?" in text


def test_the_pictures_show_the_map(run: Path) -> None:
    """Where the map is 0 the overlay is the pale grey image; where it is 1, mostly the map's colour."""
    image = np.full((8, 8, 3), 128, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 3] = 1
    mixed = overlay(image, heat)
    assert mixed.shape == (8, 8, 3) and (mixed >= 0).all() and (mixed <= 1).all()
    assert np.ptp(mixed[0, 0]) == 0 and np.ptp(mixed[2, 3]) > 0.4
    with pytest.raises(ValueError, match=r"a map \(4, 8\)"):
        overlay(image, heat[:4])
    model, meta = load_model(run / "train"), read_meta(run / "train")
    torch.manual_seed(0)
    view = torch.randn(2, 3, *hw(meta.size))
    maps = upsample_maps(grad_cam(model, view, torch.tensor([0, 1])), *hw(meta.size)).numpy()
    shown = [Shown(image.repeat(4, 0).repeat(4, 1), {"Grad-CAM": one}, "seven 91%", "label 7") for one in maps]
    with themed(LIGHT):
        assert png(sheet(shown, LIGHT, "t")) == png(sheet(shown, LIGHT, "t"))
        steps = [("", 1.0, list(maps)), ("stages.3.blocks.0.attn.qkv", -0.25, list(maps))]
        drawing = sanity_sheet([one.image for one in shown], steps, LIGHT, "t")
    titles = [axes.get_title() for axes in drawing.axes]
    assert "random from\nstages.3.blocks.\n0.attn.qkv\nρ = −0.25" in titles and "as trained" in titles
