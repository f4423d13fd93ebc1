"""Every file of conf/ composes and is typed; precedence; identity of a run."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from vitlab.compose.load import load
from vitlab.config import Config, RecipeConfig
from vitlab.config.catalogue import GROUPS, RESULT_FREE, conf_dir, head
from vitlab.errors import UserError
from vitlab.launch.plan import plan
from vitlab.launch.start import find_run
from vitlab.methods.base import find_method, method_names

CONF = conf_dir()
FILES = sorted(CONF.glob("*/*.yaml"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in FILES]
CHOICES = [name for name in NAMES if "/_" not in name]
COMPANIONS = {"task/multilabel": ["dataset=digits_multi"]}
"""Choices that another one requires."""


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for the data sets that need one."""
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))


def plain(value: Any) -> bool:
    """Whether nothing of OmegaConf is left in a value."""
    if is_dataclass(value):
        return all(plain(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, dict):
        return type(value) is dict and all(plain(one) for one in value.values())
    if isinstance(value, list):
        return type(value) is list and all(plain(one) for one in value)
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.parametrize("name", CHOICES)
def test_every_file_composes_and_is_typed(name: str) -> None:
    group, _, choice = name.partition("/")
    composed = load([f"{group}={choice}", *COMPANIONS.get(name, [])])
    assert isinstance(composed.config, Config)
    assert plain(composed.config)
    assert composed.choices[group] == choice
    assert composed.changed == {}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_has_a_description(path: Path) -> None:
    line = head(path)
    assert 8 < len(line) <= 100
    assert line.endswith(".")


def test_every_file_is_in_a_known_group() -> None:
    assert {path.parent.name for path in FILES} - {"local"} <= set(GROUPS)
    assert all(list((CONF / group).glob("*.yaml")) for group in GROUPS)


def test_the_command_without_overrides_is_the_demo() -> None:
    bare, explicit = load([]), load(["method=tinyvit", "dataset=digits", "hardware=auto"])
    assert bare.config == explicit.config
    assert bare.identity() == explicit.identity()
    assert (bare.chosen, explicit.chosen) == (set(), {"method", "dataset", "hardware"})
    assert bare.config.mode == "train"


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """base < method < dataset < local < experiment < command line."""
    from vitlab.compose import load as load_module

    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf, ignore=shutil.ignore_patterns("local"))
    monkeypatch.setattr(load_module, "conf_dir", lambda: conf)
    scratch = load(["method=supervised", "dataset=imagenet"])
    assert scratch.choices["recipe"] == "tinyvit_scratch"
    assert load(["method=tinyvit", "dataset=imagenet"]).choices["recipe"] == "tinyvit_distill"
    assert load(["method=tinyvit", "dataset=digits"]).choices["recipe"] == "digits"
    (conf / "local").mkdir()
    (conf / "local" / "default.yaml").write_text("# @package _global_\n# Mine.\nseed: 5\nrecipe:\n  lr: 5.0\n")
    assert load([]).config.recipe.lr == 5.0
    assert load([]).config.seed == 5
    (conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\ndefaults:\n  - override /recipe: finetune\nrecipe:\n  lr: 6.0\n"
    )
    chosen = load(["experiment=mine"])
    assert (chosen.choices["recipe"], chosen.config.recipe.lr, chosen.config.seed) == ("finetune", 6.0, 5)
    typed = load(["experiment=mine", "recipe=digits", "recipe.lr=7"])
    assert (typed.choices["recipe"], typed.config.recipe.lr) == ("digits", 7.0)


def test_a_changed_file_is_read_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files are parsed once in a process, until one changes: in content, by its removal, or by another folder."""
    from vitlab.compose import load as load_module

    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf, ignore=shutil.ignore_patterns("local"))
    before = load(["recipe=finetune"])
    monkeypatch.setattr(load_module, "conf_dir", lambda: conf)
    file = conf / "recipe" / "finetune.yaml"
    text = file.read_text()
    for rate in (5.0, 6.0):
        file.write_text(re.sub(r"^lr: .*$", f"lr: {rate}", text, flags=re.M))
        assert load(["recipe=finetune"]).config.recipe.lr == rate
        load(["recipe=finetune", "recipe.lr=1", "model.args.depth=1"])
    file.unlink()
    with pytest.raises(UserError, match="finetune"):
        load(["recipe=finetune"])
    monkeypatch.undo()
    assert load(["recipe=finetune"]).tree == before.tree


def test_a_recipe_can_be_mounted_at_other_keys() -> None:
    composed = load(["recipe@method.finetune=tinyvit_finetune", "recipe@teacher.recipe=finetune"])
    finetune: Any = composed.config.method.finetune
    assert isinstance(finetune, RecipeConfig)
    assert finetune.layer_decay == 0.8
    assert composed.config.teacher.recipe is not None
    assert composed.config.teacher.recipe != composed.config.recipe
    assert composed.choices["recipe@method.finetune"] == "tinyvit_finetune"
    assert composed.chosen == {"method", "teacher"}
    with pytest.raises(UserError, match="lr"):
        load(["recipe@method.finetune=tinyvit_finetune", "method.finetune.lrr=1"])
    assert load(["recipe@method.finetune=tinyvit_finetune", "method.finetune.lr=1"]).config.method.finetune.lr == 1.0


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["model.args.drop_path_rate=0.1"], "model.args.drop_path_rate", 0.1),
        (["recipe.optimizer_args.betas=[0.8,0.9]"], "recipe.optimizer_args.betas", [0.8, 0.9]),
        (["recipe.lr=1"], "recipe.lr", 1.0),
        (["recipe.clip=null"], "recipe.clip", None),
        (["model.pretrained=yes"], "model.pretrained", True),
        (["name=a run, my first (of 2)"], "name", "a run, my first (of 2)"),
        (["name=null"], None, None),
        (["dataset.size=${recipe.batch_size}"], "dataset.size", 64),
        (["recipe={lr:0.5}"], "recipe.lr", 0.5),
        (["trainer.devices=[0,1]"], "trainer.devices", [0, 1]),
    ],
)
def test_single_keys(words: list[str], key: str | None, value: Any) -> None:
    composed = load(words)
    assert composed.changed == ({} if key is None else {key: value})
    found: Any = composed.config
    for part in key.split(".") if key else []:
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert key is None or (found == value and type(found) is type(value))


def test_a_member_of_the_teacher_by_its_index() -> None:
    composed = load(["teacher.members.0.name=resnet34", "teacher.members.0.args.layers=[2,2,2,2]"])
    assert composed.config.teacher.members[0].name == "resnet34"
    assert composed.config.teacher.members[0].args["layers"] == [2, 2, 2, 2]


def test_another_timm_name_clears_the_arguments_of_the_default() -> None:
    def model(*words: str) -> tuple[str, dict[str, Any]]:
        composed = load(list(words))
        return composed.network, composed.config.model.args

    name, default = model()
    assert name == "tiny_vit_digits"
    assert "embed_dims" in default
    assert model("model.name=resnet18") == ("resnet18", {})
    assert model("model.args.layers=[1,1,1,1]", "model.name=resnet18") == ("resnet18", {"layers": [1, 1, 1, 1]})
    assert model("model.args={layers:[1,1,1,1]}", "model.name=resnet18")[1] == {"layers": [1, 1, 1, 1]}
    assert model("model.name=tiny_vit_5m_224") == (name, default), "the default"
    assert model("model=tiny_vit_digits", "model.name=tiny_vit_11m_224") == ("tiny_vit_11m_224", {}), "typed or not"
    assert model("model.name=hf-hub:timm/resnet18.a1_in1k")[0] == "hf-hub-timm-resnet18.a1_in1k"
    assert model("model.args={drop_path_rate:0.2}")[1] == default | {"drop_path_rate": 0.2}, "merged with the default"


def test_another_member_clears_the_arguments_of_the_preset() -> None:
    words = ["teacher=digits", "teacher.members.0.name=tf_efficientnet_lite0", "teacher.members.0.args.drop_rate=0.1"]
    composed = load(words)
    assert composed.config.teacher.members[0].args == {"drop_rate": 0.1}
    (note,) = composed.notes
    assert "arguments of resnet18 are left out (channels, layers, " in note and "teacher.members.0.args.KEY" in note
    assert note in plan(find_run(composed), composed)
    assert load(["teacher.members.0.name=resnet18"]).notes == []


def test_the_identity_of_a_run() -> None:
    def identity(*words: str) -> dict[str, Any]:
        return load(list(words)).identity()

    same = identity()
    for word in ("hardware=cpu", "logger=csv", "trainer.devices=2", "name=mine", "output=/tmp", "fresh=true",
                 "mode=check", "evaluation=quick", "export=none", "evaluation.bins=10"):  # fmt: skip
        assert identity(word) == same, word
    assert identity("recipe.weight_decay=0.05") == same, "the default value, given explicitly"
    for word in ("recipe.lr=1", "seed=1", "model=resnet18", "model.args.x=1", "method.topk=3", "debug=smoke",
                 "dataset.labels_per_class=3", "recipe@teacher.recipe=finetune", "teacher.temperature=2"):  # fmt: skip
        assert identity(word) != same, word
    assert identity("recipe.lr=1", "seed=1") == identity("seed=1", "recipe.lr=1")
    unread = load(["method=supervised"]).identity()["choices"]
    assert not {"teacher", "recipe@teacher.recipe"} & set(unread), "groups that no stage reads are not part of it"
    assert {group for group in same["choices"] if group in GROUPS} == set(GROUPS) - RESULT_FREE


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_its_file(name: str) -> None:
    assert (CONF / "method" / f"{name}.yaml").is_file()
    options: Any = load([f"method={name}"]).config.method
    expected: Any = find_method(name).Options
    assert type(options) is expected
    assert options.name == name


def test_how_weights_are_loaded_has_moved_into_the_arguments() -> None:
    """Trees of former versions: what stood there by default is gone, what was chosen stands among the arguments."""
    from vitlab.compose.schema import complete

    network = {"name": "x", "args": {"depth": 1}, "absent_class": "mean", "table_resize": "official"}
    chosen = {"name": "x", "args": {"depth": 1}, "absent_class": "zero", "table_resize": "timm"}
    tree = complete({"model": network, "teacher": {"members": [chosen]}})
    moved = tree["teacher"]["members"][0]
    assert tree["model"]["args"] == {"depth": 1}
    assert moved["args"] == {"depth": 1, "absent_class": "zero", "table_resize": "timm"}
    assert not {"absent_class", "table_resize"} & (tree["model"].keys() | moved.keys())


def test_of_a_key_that_is_given_twice_the_last_wins() -> None:
    """As in Hydra, so that a script can append to a command."""
    config = load(["model=resnet18", "recipe.lr=1", "model=resnet50", "recipe.lr=0.5", "method=supervised"]).config
    assert config.model.name == "resnet50" and config.recipe.lr == 0.5


def test_a_short_training_has_a_short_warmup() -> None:
    """The recipe's two epochs of warm-up are a share of its duration, where a shorter one is given."""
    words = ["method=supervised", "recipe=finetune"]
    recipe = load(words).config.recipe
    assert recipe.warmup == "2ep" and load([*words, "recipe.duration=10ep"]).config.recipe.warmup == "2ep"
    share = 100 * 2 / float(recipe.duration.removesuffix("ep"))
    assert load([*words, "recipe.duration=1ep"]).config.recipe.warmup == f"{share:.4g}%"
    with pytest.raises(UserError, match="a warm-up of 2ep is not shorter"):
        load([*words, "recipe.duration=1ep", "recipe.warmup=2ep"])
