"""mode=export of a run and of a model that no run made, and what the record says afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import vitlab
from tests.modes.conftest import ask
from vitlab.files import read_json
from vitlab.report.collect import _exports
from vitlab.run.run import Run


def test_a_run_is_exported_twice_and_keeps_both(output: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=export", f"run={run}", "export.formats=[hub]") == 0
    text = capsys.readouterr().out
    assert "hub" in text and "largest difference of a logit 0.0e+00" in text
    assert ask(output, "mode=export", f"run={run.name}", "export.formats=[timm,safetensors]") == 0
    files = read_json(run / "export/done.json")["files"]
    assert [one["format"] for one in files] == ["hub", "timm", "safetensors"]
    assert all(Path(one["path"]).stat().st_size == one["bytes"] for one in files)
    # the report finds them below the run, wherever it lies
    assert [one.path for one in _exports(Run.at(run))] == [
        "export/hub/model.safetensors",
        "export/timm/model.safetensors",
        "export/model.safetensors",
    ]
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vitlab.load_model(run / "train")(image)
        again = timm.create_model(f"local-dir:{run}/export/timm", pretrained=True).eval()
        assert torch.equal(again(image), expected)
        assert torch.equal(vitlab.load_model(run / "export")(image), expected)


def test_the_card_tells_what_was_measured(output: Path, run: Path) -> None:
    assert ask(output, "mode=export", f"run={run}", "export.formats=[hub]") == 0
    text = (run / "export/hub/README.md").read_text()
    measured = read_json(run / "evaluation/train.json")
    lo, hi = (f"{100 * end:.4g}" for end in measured["intervals"]["top1"])
    assert f"| Top-1 % | {100 * measured['top1']:.4g} ({lo} to {hi}, 95 % bootstrap) |" in text
    assert "UCI, 1998), CC BY 4.0." in text
    assert f"On {measured['n']:,} images of the test split of digits:" in text
    assert "scikit-learn's 1,797 real handwritten digits" in text and f"# {run.name}: model" in text


def test_int8_of_a_checkpoint_is_measured_on_the_data_that_are_named(
    output: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"model.checkpoint={run}/train", "export.formats=[onnx_int8]")
    assert ask(output, "mode=export", *words) == 2
    assert "measured on labelled images" in " ".join(capsys.readouterr().err.split())
    assert ask(output, "mode=export", *words, "dataset=digits", "debug.max_images=40") == 0
    text = capsys.readouterr().out
    assert " of 40 test images" in text and "times smaller than ONNX" in text
    (path,) = output.glob("export/train-digits-*/model-int8.onnx")
    assert str(path) in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export.formats=[]"], "export.formats names no format"),
        (["export.formats=[onxx]"], "'onxx' is none of safetensors, timm, hub, onnx, onnx_int8, torch_export"),
        (["export.formats=[onnx]", "export.push=me/x"], "export.push uploads the hub layout"),
        (["recipe.lr=1"], "mode=export does not read recipe"),
    ],
)
def test_mistakes(output: Path, run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=export", f"run={run}", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
