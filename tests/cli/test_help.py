"""The help page and the lists: their content, and their time."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab.cli.help import page
from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.compose.schema import SYNONYMS, UNNEEDED_KEYS, fields, find
from vitlab.config import Config
from vitlab.config.catalogue import GROUPS, MODE_CONSTANTS, PACKAGE, _constants, choices, conf_dir, head, mode_files
from vitlab.methods.base import find_method, method_names
from vitlab.sweep.grid import expand

PROBE = """
import json, resource, sys
from vitlab.cli.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted(set(sys.modules) & {"torch", "numpy", "lightning", "timm", "hydra", "omegaconf"})
print(json.dumps({"code": code, "cpu": used.ru_utime + used.ru_stime, "heavy": heavy}))
"""


def test_groups_agree_with_the_tree_and_conf() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()} - {"local"}
    assert set(GROUPS) == folders
    assert set(GROUPS) - {"experiment"} <= {one.name for one in dataclasses.fields(Config)}


def test_every_mode_defines_what_it_reads() -> None:
    modes = mode_files()
    files = {path for place in ("modes", "methods/*/modes") for path in PACKAGE.glob(f"{place}/*.py")}
    with_answer = {path.stem for path in files if "\ndef answer(composed: Composed) -> int:" in path.read_text()}
    assert {mode.name for mode in modes} == with_answer
    known = set(GROUPS) | {one.name for one in dataclasses.fields(Config)}
    assert all(mode.reads - {"local"} <= known for mode in modes)


def test_the_constants_of_a_mode_are_those_of_python() -> None:
    texts = [path.read_text() for place in ("modes", "methods/*/modes") for path in PACKAGE.glob(f"{place}/*.py")]
    texts += [
        'MEANING = "a \\"b\\""',
        "MEANING = 'a'\nREADS = ['run']",
        'READS = (\n    "run",\n    "model",\n)\nMEANING = "a"',
        'READS = ("run",)\nONE_DEVICE = 1',
        'READS = ("run")\nMEANING = ""',
        'READS = ("run", "run",)\nMEANING: str = "a"',
        'MEANING = "a" "b"\nREADS = ()',
        'MEANING = "a"  # b',
        'READS = ("run, model",)',
        '"""\nMEANING = "a"\n"""\nMEANING = "b"',
        '"""\nMEANING = "a"\n"""',
        'MEANINGS = "a"',
        'READS=("run",)',
    ]
    for text in texts:
        lines = re.split(r"^(?=def |class |@)", text, maxsplit=1, flags=re.M)[0].splitlines(keepends=True)
        constants = {
            target.id: ast.literal_eval(node.value)
            for node in ast.parse("".join(lines)).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id in MODE_CONSTANTS
        }
        assert _constants(lines) == constants, text


def test_the_page_has_every_group_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["-h"]) == main(["recipe.lrr=1", "--help"]) == 0
    text = capsys.readouterr().out
    for name, group in GROUPS.items():
        assert f"  {name:<12}{group.meaning}" in text
    assert max(map(len, text.split("\n"))) <= 100
    assert len(page().split("\n")) <= 66


def test_the_examples_of_the_page_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    commands = re.findall(r"^  python -m vitlab(.*)$", page().split("EXAMPLES")[1].split("CHOICES")[0], re.M)
    assert len(commands) == 6
    for command in commands:
        words = command.split()
        assert expand(words[1:]) if words[:1] == ["-m"] else load(words)


@pytest.mark.parametrize("group", GROUPS)
def test_a_list_shows_each_choice_with_its_description(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode=list", f"group={group}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in choices(conf_dir(), group):
        assert f"{name} {' '.join(head(conf_dir() / group / f'{name}.yaml').split())}" in text


def test_the_list_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode=list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {group} " in text for group in GROUPS)
    assert text.index("tiny_vit_5m") < text.index("tiny_vit_11m"), "in natural order"


@pytest.mark.parametrize("key", ["", "recipe", "recipe.lr", "recipe.augmentation", "teacher", "method", "model.args"])
def test_keys_are_described(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode=list", f"key={key}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    known = fields(find_method("tinyvit").Options)
    shown = find(key or "seed", known)
    assert shown is not None
    assert shown.meaning in text or shown.key in text


def test_keys_show_the_composed_values(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # a narrow terminal wraps the descriptions
    assert main(["mode=list", "key=recipe", "recipe.lr=0.125"]) == 0
    assert re.search(r"recipe\.lr +number +0\.125 +peak learning rate", capsys.readouterr().out)
    assert main(["mode=list", "key=method", "method=supervised"]) == 0
    assert "method.topk" not in capsys.readouterr().out


def test_every_key_has_a_help_text() -> None:
    for name in method_names():
        known = fields(find_method(name).Options)
        missing = [one.key for one in known.values() if not one.meaning and one.key not in ("method", "method.name")]
        assert missing == []


def test_every_synonym_has_its_key() -> None:
    known = fields()
    for word, key in SYNONYMS.items():
        assert find(key, known) is not None or key in GROUPS, word
        assert word not in known and word not in GROUPS, word
    assert not set(UNNEEDED_KEYS) & set(SYNONYMS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import vitlab

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"vitlab {vitlab.__version__}"


@pytest.mark.parametrize(
    ("words", "code", "budget", "heavy"),
    [
        (["--help"], 0, 0.3, []),
        (["mode=list"], 0, 0.3, []),
        (["mode=list", "group=model"], 0, 0.3, []),
        (["mode=list", "key=recipe"], 0, 0.3, ["omegaconf"]),
        (["recipe.lrr=1"], 2, 1.0, ["hydra", "omegaconf"]),
        (["recipe.lr=fast"], 2, 1.0, ["hydra", "omegaconf"]),
        (["model=resnet5"], 2, 1.0, ["hydra", "omegaconf"]),
        (["recipe.duration=90"], 2, 1.0, ["hydra", "omegaconf"]),
        (["recipe.augmentation.flip=2"], 2, 1.0, ["hydra", "omegaconf", "numpy"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_mistakes_import_no_torch(words: list[str], code: int, budget: float, heavy: list[str]) -> None:
    """No torch, and no numpy but where an augmentation is built.

    The CPU time is printed beside its budget; five times the budget means that a heavy import was added.
    """
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().split("\n")[-1])
    print(f"{' '.join(words)}: {found['cpu']:.2f} s of CPU time, budget {budget} s")
    assert found["code"] == code
    assert set(found["heavy"]) <= set(heavy)
    assert found["cpu"] < 5 * budget
