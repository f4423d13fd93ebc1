"""What run= and model= mean, and how mistakes in them are answered."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modes.conftest import ask
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.modes.find_runs import config_of
from vitlab.modes.select_model import SelectedModel, find_subject, find_subjects
from vitlab.run.run import Run


def subject(output: Path, *words: str, mode: str = "evaluate") -> SelectedModel:
    return find_subject(load([f"mode={mode}", f"output={output}", *words]))


@pytest.mark.parametrize("form", ["{run}", "{run}/", "{name}", "supervised/{name}", "{run}/train", "{output}/*/*"])
def test_a_run_is_found_by_folder_name_model_and_glob(run: Path, output: Path, form: str) -> None:
    found = subject(output, "run=" + form.format(run=run, name=run.name, output=output))
    assert (found.name, found.title, found.role) == ("train", "model", "student")
    assert (found.folder, found.artifact) == (run, run / "train")
    assert found.run is not None
    assert found.run.identity == Run.at(run).identity


def test_a_list_of_runs_means_their_results(run: Path, output: Path) -> None:
    found = find_subjects(load(["mode=evaluate", f"output={output}", f"run=[{run},{run}/train]"]))
    assert [one.name for one in found] == [f"{run.name}/train"] * 2


def test_the_run_keeps_its_own_configuration_and_today_decides_the_rest(run: Path, output: Path) -> None:
    found = subject(output, f"run={run}", "evaluation.bins=7", "hardware.workers=3", "debug.max_images=60")
    assert found.config.dataset.name == "digits"
    assert (found.config.evaluation.bins, found.config.hardware.workers) == (7, 3)
    assert found.config.debug.max_images == 60
    assert subject(output, f"run={run}").config.debug.max_images == 200, "the run's own, when nothing is typed"
    other = subject(output, f"run={run}", "dataset=fake", "dataset.size=32")
    assert other.config.dataset.name == "fake"


def test_the_network_its_description_and_data_fit(run: Path, output: Path) -> None:
    import torch

    found = subject(output, f"run={run}", "hardware.workers=0")
    batch = next(iter(found.data.test_dataloader()))
    network = found.network()
    with torch.inference_mode():
        assert network(batch.image).shape == (len(batch.image), len(found.meta.classes))
    assert not network.training
    assert network is not found.network()


def test_a_model_folder_is_a_checkpoint(run: Path, output: Path) -> None:
    found = subject(output, f"model.checkpoint={run / 'train'}", "dataset=digits")
    assert (found.title, found.run, found.artifact) == ("train", None, run / "train")
    assert found.folder.parent == output / "evaluate"
    assert found.folder.name.startswith("train-digits-")
    assert found.meta.classes == [str(c) for c in range(10)]


def test_a_bare_network_of_timms_own_size(output: Path) -> None:
    composed = load(["mode=benchmark", f"output={output}", "model=resnet18", "model.pretrained=false"])
    found = find_subject(composed, trained=False)
    assert (found.title, found.meta.size, len(found.meta.classes)) == ("resnet18", 224, 1000)


MISTAKES = [
    (["run=nothing"], ["names no run", "The latest runs: run="]),
    (["run={name}x"], ["names no run", "Did you mean run={run}?"]),
    (["run={run}/trian"], ["no finished model 'trian'", "Did you mean {run}/train?"]),
    (["run={output}/*/nope*"], ["matches no run"]),
    (["run={output}"], ["is a folder of", "Give one: run={run}"]),
    (["run=[]"], ["names nothing"]),
    (["run={run}", "model=resnet18"], ["run= and model= both name the model"]),
    (["run={run}", "dataset.root=photos"], ["dataset=digits is part of a package", "dataset=folder dataset.root="]),
    (["run={run}", "recipe.lr=1"], ["mode=evaluate does not read recipe"]),
    (["run={run}", "dataset.size=64"], ["dataset.size=64", "was made for 32 px"]),
    (["run={run}", "dataset=fake", "dataset.size=32"], ["does not know 10 of the 10 classes"]),
    ([], ["mode=evaluate needs a model", "Or give model=NAME"]),
    (["model=resnet18", "model.pretrained=false"], ["random weights", "model.pretrained=true"]),
    (["model.checkpoint={run}/train"], ["belongs to no data set", "dataset=NAME"]),
    (["model.checkpoint={run}/train", "model.name=resnet18", "dataset=digits"], ["is a tiny_vit_5m_224"]),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=lambda value: " ".join(value) or "none")
def test_a_mistake_is_answered(
    run: Path, output: Path, words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"run": run, "name": run.name, "output": output}
    assert ask(output, "mode=evaluate", *(word.format(**names) for word in words)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    for text in expected:
        assert " ".join(text.format(**names).split()) in printed
    assert "Traceback" not in printed


def test_several_runs_where_one_model_is_meant(run: Path, output: Path) -> None:
    with pytest.raises(UserError, match="names 2 runs"):
        subject(output, f"run=[{run},{run}/train]", mode="predict")


def test_a_run_that_is_being_worked_on_is_left_alone(
    run: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Run.at(run)
    own.lock("python -m vitlab")
    try:
        assert ask(output, "mode=evaluate", f"run={run}", "evaluation.resamples=0") == 2
    finally:
        own.release()
    assert "is locked by" in " ".join(capsys.readouterr().err.split())


def test_mistakes_are_answered_without_torch(output: Path) -> None:
    script = (
        "import sys\nfrom vitlab.cli.main import main\ncode = main(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"
    )
    words = ["mode=evaluate", f"output={output}", "run=nothing"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_an_option_that_the_method_has_had_only_since_takes_its_usual_value(output: Path) -> None:
    """A run made before there was ``method.contract.seconds`` is read all the same."""
    composed = load([f"output={output}", "method.contract.steps=7"])
    tree = copy.deepcopy(composed.tree)
    assert isinstance(tree["method"], dict)
    del tree["method"]["contract"]["seconds"]
    run = Run.open(output, "tinyvit", "old", composed.identity(), tree)
    assert config_of(run, load(["mode=evaluate", f"output={output}"])).method == composed.config.method
