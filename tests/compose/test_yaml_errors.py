"""Mistakes in a YAML file: file, line, most similar name; exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitlab.cli import help
from vitlab.cli.main import main
from vitlab.compose import load as load_module

GLOBAL = "# @package _global_\n# Mine.\n"
DIGITS = "# Mine.\ndefaults:\n  - digits\n  - _self_\n"

CASES: list[tuple[str, str, list[str]]] = [
    ("model/mine", "# Mine.\nnmae: resnet18\n", ["line 2", "no key 'nmae'", "Did you mean 'name'?"]),
    ("model/mine", "# Mine.\nname: a\npretrained: perhaps\n", ["line 3", "'perhaps' is not true or false"]),
    ("model/mine", "# Mine.\nname: a\nname: b\n", ["line 3", "duplicate key name"]),
    ("model/mine", "# Mine.\n name: a\npretrained: true\n", ["line 3", "not YAML"]),
    ("model/mine", "# Mine.\npretrained: true\n", ["gives model.name no value", "timm model name"]),
    ("model/mine", "", ["gives model.name no value"]),
    ("model/mine", "resnet18\n", ["a file of keys and values is expected"]),
    ("model/mine", "- a\n", ["a file of keys and values is expected"]),
    ("model/mine", "# Mine.\n_target_: os.system\n", ["line 2", "no key '_target_'"]),
    ("recipe/mine", "# Mine.\nlr: 1\n", ["gives recipe.duration no value"]),
    ("recipe/mine", "# Mine.\ndefaults:\n  - digit\n  - _self_\n", ["line 3", "Did you mean digits?"]),
    ("recipe/mine", "# Mine.\ndefaults: [digit]\n", ["line 2", "Did you mean digits?"]),
    ("recipe/mine", f"{DIGITS}augmentation:\n  flipp: 1\n", ["line 6", "recipe.augmentation.flipp", "'flip'"]),
    ("recipe/mine", f"{DIGITS}augmentation:\n  flip: 2\n", ["line 6: recipe.augmentation.flip=2.0", "in [0, 1]"]),
    ("recipe/mine", f"{DIGITS}lr: fast\n", ["line 5", "'fast' is not a number"]),
    ("recipe/mine", f"{DIGITS}duration: 90\n", ["line 5", "90ep or 90st"]),
    ("recipe/mine", f"{DIGITS}lr: ${{recipe.foo}}\n", ["line 5", "no key 'recipe.foo'"]),
    ("recipe/mine", f"{DIGITS}batch_size: 0\n", ["line 5", "recipe.batch_size", "from 1 to"]),
    ("teacher/mine", "# Mine.\nmembers:\n  - nam: a\n", ["line 3", "teacher.members.0.nam", "'name'"]),
    (
        "teacher/mine",
        "# Mine.\ndefaults:\n  - /recipe@recipe: fintune\n  - _self_\nmembers: []\n",
        ["line 3", "Did you mean finetune?"],
    ),
    ("experiment/mine", f"{GLOBAL}recpie:\n  lr: 1\n", ["line 3", "no key 'recpie'", "'recipe'"]),
    ("experiment/mine", f"{GLOBAL}recipe: digits\n", ["line 3", "override /recipe: digits"]),
    ("experiment/mine", "# Mine.\nrecipe:\n  lr: 1\n", ["line 2", "# @package _global_"]),
    ("experiment/mine", f"{GLOBAL}defaults:\n  - override /model: resnet81\n", ["line 4", "Did you mean resnet18?"]),
    ("experiment/mine", f"{GLOBAL}defaults:\n  - override /modl: resnet18\n", ["line 4", "Did you mean /model?"]),
    ("experiment/mine", f"{GLOBAL}defaults:\n  - /model: resnet18\n", ["line 4", "override /model"]),
    (
        "experiment/mine",
        f"{GLOBAL}defaults:\n  - _tinyvit_resolutoin\n",
        ["line 4", "mean _tinyvit_resolution?"],
    ),
    ("experiment/mine", f"{GLOBAL}defaults:\n  - override /paper: tinyvit_21m_385\n", ["line 4", "tinyvit_21m_384?"]),
    ("local/default", f"{GLOBAL}dataset:\n  rooot: /data\n", ["line 4", "Did you mean 'root'?"]),
    ("method/mine", f"{GLOBAL}method:\n  name: mine\n", ["no method 'mine'", "supervised, tinyvit"]),
]


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
def test_the_message(
    name: str,
    text: str,
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(help.conf_dir(), conf, ignore=shutil.ignore_patterns("local"))
    monkeypatch.setattr(load_module, "conf_dir", lambda: conf)
    path = conf / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    group, _, choice = name.partition("/")
    assert main([] if group == "local" else [f"{group}={choice}"]) == 2
    err = capsys.readouterr().err
    message = " ".join(err.split())
    if group != "method":
        assert f"conf/{name}.yaml" in message
    for part in parts:
        assert part in message
    assert "Traceback" not in err and str(tmp_path) not in err
    assert len(message) < 500
