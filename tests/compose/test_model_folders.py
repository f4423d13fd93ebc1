"""A run or a model folder as ``model=`` or ``teacher=``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.launch.plan import plan
from vitlab.launch.start import find_run

RUNS = Path(__file__).parents[1] / "fixtures" / "outputs"
RUN = RUNS / "supervised" / "finished-717e3bd6"
"""A resnet18 with arguments of its own, on digits of 16 px."""

TINYVIT = RUNS / "tinyvit" / "tinyvit-35a0e520"
"""A distillation, whose result is the model of stage pretrain."""

ARGS = "{channels:[4,4,4,4],layers:[1,1,1,1],stem_type:deep,stem_width:4,replace_stem_pool:true}"
MEMBER = f"{{name:resnet18,checkpoint:{RUN}/train,args:{ARGS}}}"


def plan_of(composed: Composed) -> str:
    return plan(find_run(composed), composed)


@pytest.mark.parametrize("folder", [RUN, RUN / "train"])
def test_a_folder_is_what_was_typed_in_five_keys(folder: Path) -> None:
    new = load([f"teacher={folder}"])
    old = load(["teacher=none", f"teacher.members=[{MEMBER}]", "teacher.sizes=[16]"])
    assert new.config == old.config
    assert new.identity() == old.identity(), "one run continues the other"
    text = plan_of(new)
    assert f"of its own, weights of {RUN}/train, 16 px" in text
    assert "1 teacher   teacher · loaded" in text


def test_several_are_an_ensemble() -> None:
    teacher = load(["method=reinforce", f"teacher=[{RUN},{TINYVIT}]", "teacher.weights=[2,1]"]).config.teacher
    assert [one.name for one in teacher.members] == ["resnet18", "vit_tiny_patch16_224"]
    assert [one.checkpoint for one in teacher.members] == [f"{RUN}/train", f"{TINYVIT}/pretrain"]
    assert (teacher.sizes, teacher.weights, teacher.train, teacher.recipe) == ([16, 16], [2, 1], False, None)
    assert "img_size" not in teacher.members[1].args


def test_a_student_goes_on_from_a_folder() -> None:
    composed = load(["method=supervised", f"model={RUN}", "model.args.drop_rate=0.1"])
    model = composed.config.model
    assert (model.name, model.checkpoint, model.pretrained) == ("resnet18", f"{RUN}/train", False)
    assert model.args == {**read_json(RUN / "train" / "model.json")["args"], "drop_rate": 0.1}, "keys win"
    assert composed.config.dataset.size == 16
    assert (composed.network, composed.chosen) == ("resnet18", {"method", "model"})
    assert f"weights of {RUN}/train" in plan_of(composed)


def test_which_size_wins() -> None:
    """A typed one over that of an experiment over that of the folder."""
    assert load([f"model={RUN}", "dataset=fake"]).config.dataset.size == 16
    assert load([f"model={RUN}", "experiment=tinyvit_5m_384", "dataset=digits"]).config.dataset.size == 384
    assert load([f"model={RUN}", "dataset.size=24"]).config.dataset.size == 24


def test_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RUN, tmp_path / "outputs" / "supervised" / "first")
    shutil.copytree(RUN / "train", tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load(["teacher=first"]).config.teacher.members[0].checkpoint == "outputs/supervised/first/train"
    assert load([f"output={RUNS}", f"model={RUN.name}"]).config.model.checkpoint == f"{RUN}/train"
    assert load(["teacher=digits"]).choices["teacher"] == "digits", "a name in conf/ wins"
    assert load(["teacher=./digits"]).config.teacher.members[0].checkpoint == "digits"


def test_an_old_model_folder_and_a_changed_one(tmp_path: Path) -> None:
    shutil.copytree(RUN / "train", tmp_path / "model")
    described = read_json(tmp_path / "model" / "model.json")
    write_json(tmp_path / "model" / "model.json", {**described, "digest": "of something else"})
    with pytest.raises(UserError, match=r"^teacher=.*model: .*model\.json' was changed"):
        load([f"teacher={tmp_path}/model"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=outputs/none/here"], "^teacher=outputs/none/here: there is no folder outputs/none/here"),
        ([f"output={RUNS}", f"teacher={RUN}0"], f"Did you mean {RUN}"),
        (["teacher=./README.md"], "README.md is a file, .* teacher.members.0.name=NAME teacher.members.0.checkpoint="),
        (["model=./README.md"], "Give model.name=NAME model.checkpoint=./README.md"),
        ([f"model={RUN.parent}"], "is neither a run nor a model folder. It holds runs: .*finished-717e3bd6"),
        ([f"teacher={RUN.parent}/interrupted-e145b609"], "is a run that has no result yet"),
        (["teacher=[]"], r"Give some: teacher=\[RUN,RUN\]"),
        ([f"model=[{RUN},{TINYVIT}]"], "model takes one name or folder"),
        (["method=supervised", f"teacher={RUN}"], "no stage of method=supervised reads teacher"),
        ([f"dataset={RUN}"], "there is no dataset"),
        (["teacher=resnet"], "there is no teacher 'resnet' .* A model of yours: teacher=RUN"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(words)


def test_labels_are_stored_from_a_run(tmp_path: Path) -> None:
    """The teacher sees views of its own size and normalisation, and its classes are those of the data."""
    words = ["hardware=cpu", f"output={tmp_path}", "only=store", "debug.max_images=32", "recipe.batch_size=16"]
    assert main([*words, f"teacher={RUN}", "recipe.duration=1ep"]) == 0
    (teacher,) = tmp_path.glob("*/*/teacher/teacher.json")
    assert read_json(teacher)["size"] == 16 and read_json(teacher)["name"] == "resnet18"
    assert len(list(tmp_path.glob("*/*/store/targets/slot_*/sealed.json"))) == 1
