"""mode=benchmark: what is written is what was counted, in every place where it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.modes.conftest import SHALLOW, ask, signals_put_back, train
from vitlab.cli.main import main
from vitlab.measure.cost import count_macs, count_params
from vitlab.models.artifact import load_model

SPEC = ("evaluation.latency_batches=[1,3]", "evaluation.latency_repeats=4")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    return train(output, *SHALLOW, "debug.max_steps=6")


@pytest.fixture(scope="module")
def comparison(run: Path, output: Path) -> dict:  # type: ignore[type-arg]
    """The record of one run beside a network of timm's, eager and in ONNX Runtime."""
    other = train(output, *SHALLOW, "debug.max_steps=3")
    words = (f"run=[{run},{other}]", "benchmark.models=[test_vit]")
    assert ask(output, "mode=benchmark", *words, *SPEC) == 0
    (file,) = (output / "benchmark").glob("*/benchmark.json")
    return dict(json.loads(file.read_text()), folder=str(file.parent), other=str(other))


def test_counts_are_those_of_the_network(run: Path, comparison: dict) -> None:  # type: ignore[type-arg]
    first, second, third = comparison["models"]
    model = load_model(run / "train")
    for one in (first, second):
        assert (one["params"], one["macs"], one["size"]) == (count_params(model), count_macs(model, 32), 32)
        assert one["bytes"] == (run / "train" / "model.safetensors").stat().st_size
    assert (third["name"], third["size"], third["bytes"]) == ("test_vit", 32, None)
    assert [each["batch"] for each in first["memory"]] == [1, 3]
    assert first["memory"][1]["bytes"] == 3 * first["memory"][0]["bytes"] > 3 * 3 * 32 * 32 * 4


def test_every_model_is_timed_in_every_backend_and_batch(comparison: dict) -> None:  # type: ignore[type-arg]
    seen = [(one["batch"], one["name"], one["backend"]) for one in comparison["timings"]]
    names = [one["name"] for one in comparison["models"]]
    assert seen == [(b, name, way) for b in (1, 3) for name in names for way in ("eager", "onnxruntime")]
    for one in comparison["timings"]:
        assert 0 < one["p10_ms"] <= one["median_ms"] <= one["p90_ms"]
        assert one["ratio_lo"] <= one["ratio"] <= one["ratio_hi"]
        assert one["images_per_second"] == pytest.approx(1000 * one["batch"] / one["median_ms"])
    assert all(one["skipped"] == {} for one in comparison["models"])


def test_the_runs_own_record_has_the_eager_times(run: Path, comparison: dict) -> None:  # type: ignore[type-arg]
    record = json.loads((run / "benchmark" / "done.json").read_text())
    eager = [one for one in comparison["timings"] if one["name"] == f"{run.name}/train" and one["backend"] == "eager"]
    assert [each["median_ms"] for each in record["costs"]["train"]["latency"]] == [one["median_ms"] for one in eager]


def test_pictures_and_the_landscape_of_all_runs(run: Path, output: Path, comparison: dict) -> None:  # type: ignore[type-arg]
    for path in (*Path(comparison["folder"]).glob("latency-*.png"), output / "benchmark" / "landscape.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    points = json.loads((output / "benchmark" / "landscape.json").read_text())
    assert {one["run"] for one in points} == {run.name, Path(comparison["other"]).name}
    done = json.loads((run / "evaluation" / "done.json").read_text())
    mine = next(one for one in points if one["run"] == run.name)
    assert (mine["metric"], mine["value"]) == ("top-1", done["metrics"]["train"]["top1"])
    assert (mine["stage"], mine["batch"]) == ("train", 1)
    assert len({one["session"] for one in points}) == 1


def test_counting_alone_keeps_the_times_of_before(run: Path, output: Path, comparison: dict) -> None:  # type: ignore[type-arg]
    before = json.loads((run / "benchmark" / "done.json").read_text())["costs"]
    assert ask(output, "mode=benchmark", f"run={run}", SPEC[0], "evaluation.latency=false") == 0
    assert json.loads((run / "benchmark" / "done.json").read_text())["costs"] == before


def test_times_on_other_threads_do_not_replace_the_reports(
    run: Path,
    output: Path,
    comparison: dict,  # type: ignore[type-arg]
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = json.loads((run / "benchmark" / "done.json").read_text())["costs"]
    words = ["mode=benchmark", f"output={output}", f"run={run}", *SPEC, "benchmark.backends=[eager]"]
    try:
        with signals_put_back():
            assert main([*words, "hardware=cpu", "hardware.threads=2"]) == 0
    finally:
        torch.set_num_threads(1)
    assert "its report keeps the latency on cpu, 1 thread(s); this one is on cpu, 2" in capsys.readouterr().err
    assert json.loads((run / "benchmark" / "done.json").read_text())["costs"] == before


def test_what_is_said(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "model=tiny_vit_5m",
        "model.pretrained=false",
        "evaluation.latency=false",
        "evaluation.latency_batches=[1]",
    )
    assert ask(output, "mode=benchmark", *words) == 0
    text = capsys.readouterr().out
    assert "5.39 M  1.26 G" in text
    assert "1 = one multiplication with its addition" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["benchmark.backends=[eagre]"], "Did you mean eager?"),
        (["benchmark.models=[deit_smal]"], "timm has no model 'deit_smal'"),
        (["evaluation.latency_batches=[0]"], "is too small"),
        (["run=none_such"], "names no run"),
        ([], "mode=benchmark needs a model"),
    ],
)
def test_mistakes(output: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(output, "mode=benchmark", *words) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
