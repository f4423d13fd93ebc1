"""Every documented way to use a model predicts what mode=predict predicts, on pictures that are prepared differently if
a step is forgotten: turned by EXIF, transparent, of 16 bits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vitlab
from tests.modes.conftest import ask
from vitlab.distill.views import EvalView
from vitlab.files import read_json, write_json
from vitlab.report.snippets import ONNX_CODE

PICTURES = ("turned.jpg", "transparent.png", "deep.png", "wide.png", "turned.tif")
TEMPERATURE = 1.7
CROPS = {"squash": {"crop": "auto", "crop_pct": 1.0}, "center": {"crop": "center", "crop_pct": 0.8}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit lying on its side with the EXIF orientation that sets it up, in a JPEG and in a TIFF, one whose paper is
    transparent black, one of 16 bits, and one that is wider than high."""
    root = tmp_path_factory.mktemp("pictures")
    levels = (load_digits().images[3] * 15.9).astype(np.uint8)
    digit = Image.fromarray(levels).resize((60, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    digit.rotate(90).convert("RGB").save(root / "turned.jpg", exif=exif)
    # Wider than high and not compressed: opened by name, Pillow would map its rows with the other width.
    digit.resize((80, 50)).rotate(90, expand=True).convert("RGB").save(root / "turned.tif", exif=exif)
    transparent = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    transparent.paste((200, 30, 30, 255), mask=digit.point(lambda v: 255 * (v > 90)))
    transparent.save(root / "transparent.png")
    Image.fromarray(np.asarray(digit).astype(np.uint16) * 257).save(root / "deep.png")
    Image.fromarray(levels).resize((90, 50)).save(root / "wide.png")
    return root


@pytest.fixture(scope="module", params=["squash", "center"])
def exported(output: Path, run: Path, request: pytest.FixtureRequest) -> Path:
    """The export folder of a run whose model has a temperature, as an evaluation with a validation split leaves it, and
    one of the two crops."""
    path = run / "train/model.json"
    meta = {key: value for key, value in read_json(path).items() if key != "digest"}  # as an older version's
    write_json(path, {**meta, "fitted": {"temperature": TEMPERATURE}, **CROPS[request.param]})
    measured = run / "evaluation/train.json"
    fitted = {"value": TEMPERATURE, "ece": 0.1, "max_ece": 0.2, "nll": 1.0, "brier": 0.5, "fitted_on": "val split"}
    write_json(measured, {**read_json(measured), "temperature": fitted})
    words = ("export.formats=[safetensors,timm,hub,onnx]",)
    assert ask(output, "mode=export", f"run={run}", *words) == 0
    return run / "export"


@pytest.fixture(scope="module")
def predicted(output: Path, run: Path, exported: Path, pictures: Path) -> dict[str, list[tuple[str, float]]]:
    """What mode=predict gives for each picture."""
    target = pictures.parent / f"{pictures.name}.jsonl"
    words = ("predict.format=jsonl", f"predict.output={target}")
    assert ask(output, "mode=predict", f"run={run}", f"input={pictures}", *words) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    return {Path(row["path"]).name: [(one["class"], one["probability"]) for one in row["top"]] for row in rows}


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def answers(code: str, picture: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What a snippet prints for a picture, run in the folder ``here``."""
    assert code.count('"picture.png"') == 1
    monkeypatch.chdir(here)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace('"picture.png"', repr(str(picture))), {})
    rows = [line.rsplit(" ", 1) for line in printed.getvalue().splitlines()]
    return [(name, float(value)) for name, value in rows]


def close(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=2e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_every_snippet_predicts_what_mode_predict_does(
    name: str,
    run: Path,
    exported: Path,
    pictures: Path,
    predicted: dict[str, list[tuple[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx, with_timm, with_vitlab = snippets((exported / "README.md").read_text())
    assert "import onnxruntime" in onnx and "vitlab" not in onnx and "torch" not in onnx
    (hub,) = snippets((exported / "hub/README.md").read_text())
    (report,) = [code for code in snippets((run / "report.md").read_text()) if "load_model" in code]
    (card,) = snippets((run / "model_card.md").read_text())
    report, card = (re.sub(r'load_model\("[^"]*"\)', f'load_model("{run}/train")', code) for code in (report, card))
    for code in (onnx, with_timm, with_vitlab, hub.replace("hf-hub:USER/NAME", "local-dir:hub"), report, card):
        close(answers(code, pictures / name, exported, monkeypatch), predicted[name])
    close(vitlab.load_model(run / "train").predict(pictures / name), predicted[name])  # type: ignore[operator]


def test_the_pictures_are_worth_testing(
    run: Path, exported: Path, pictures: Path, predicted: dict[str, list[tuple[str, float]]]
) -> None:
    """Without a step each of the first three would be predicted otherwise, and so it was by what used to be printed."""
    model = vitlab.load_model(run / "train")
    for name in PICTURES[:3]:
        with Image.open(pictures / name) as image:
            naive = model.predict(Image.fromarray(np.asarray(image.convert("RGB"))))  # type: ignore[operator]
        assert abs(dict(naive).get(predicted[name][0][0], 0) - predicted[name][0][1]) > 1e-3, name


def test_a_loaded_network_is_copied_and_pickled_with_its_predict(run: Path, exported: Path, pictures: Path) -> None:
    model = vitlab.load_model(run / "train")
    expected = model.predict(pictures / "deep.png", topk=2)  # type: ignore[operator]
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    assert twin.predict(pictures / "deep.png", topk=2) != expected  # type: ignore[operator]
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(pictures / "deep.png", topk=2) == expected and len(expected) == 2
    model.train()
    assert model.predict(pictures / "deep.png", topk=2) == expected and model.training  # type: ignore[operator]


def test_the_metadata_of_onnx_have_the_crop(exported: Path, request: pytest.FixtureRequest) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["crop"] == request.node.callspec.params["exported"] and float(meta["temperature"]) == TEMPERATURE


@pytest.mark.parametrize("size", [32, [32, 48], [48, 32]])
@pytest.mark.parametrize(
    ("crop", "crop_pct"), [("center", 0.8), ("center", 1.0), ("squash", 0.9), ("squash_crop", 0.9)]
)
@pytest.mark.parametrize("shape", [(60, 60), (90, 50), (41, 77)])
def test_the_view_of_the_onnx_snippet(
    size: int | list[int], crop: str, crop_pct: float, shape: tuple[int, int]
) -> None:
    """The lines between opening the picture and the session are those of EvalView, also where height is not width."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), np.uint8))
    view = EvalView(size, crop_pct, [0.3, 0.4, 0.5], [0.2, 0.3, 0.4], "bicubic", crop)
    found = {"size": json.dumps(size), "crop_pct": str(crop_pct), "crop": crop, "interpolation": "bicubic"}
    found |= {"mean": "[0.3, 0.4, 0.5]", "std": "[0.2, 0.3, 0.4]"}
    names = {"json": json, "np": np, "Image": Image, "image": image, "meta": found}
    exec(ONNX_CODE[ONNX_CODE.index("size, crop_pct") : ONNX_CODE.index("(logits,)")], names)
    pixels = (names["pixels"] - names["mean"]) / names["std"]  # type: ignore[operator]
    np.testing.assert_allclose(pixels, view(image).numpy(), atol=1e-6)
