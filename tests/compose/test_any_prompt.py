"""Any key × any wrong value: exit code 2 and one paragraph that names the key; no stack trace, nothing written."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import hunts
from tests.compose.prompts import Prompt, declared_ranges, prompts, right_words, wrong_values
from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.compose.schema import fields
from vitlab.config.catalogue import find_mode, mode_files
from vitlab.errors import UserError
from vitlab.launch.plan import check_division, plan
from vitlab.launch.processes import known_process_count
from vitlab.launch.start import find_run
from vitlab.methods.base import find_method, method_names
from vitlab.sweep.grid import expand

LONGEST = 600
"""Characters of an answer, besides what was typed."""


@pytest.fixture(autouse=True, scope="module")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The current folder, in which no command may write."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("VITLAB_DATA", raising=False)
        yield folder
    assert list(folder.iterdir()) == []


def compose_and_plan(words: list[str]) -> None:
    """All that a command does before it writes: a mistake that is found later was not found at the prompt.

    Raises:
        UserError: a mistake.
    """
    composed = load(words)
    config = composed.config
    if find_mode(config.mode, config.method.name) is not None:
        return
    method = find_method(config.method.name)
    method.check(config)
    method.selected(config)
    run = find_run(composed)
    check_division(config, known_process_count(config))
    plan(run, composed)


def refused(words: list[str], names: tuple[str, ...]) -> None:
    """Check that the prompt refuses ``words``, naming one of ``names``, before anything could start."""
    with pytest.raises(UserError):
        expand([word for word in words if word != "-m"]) if "-m" in words else compose_and_plan(words)
    answered(words, names)


def answered(words: list[str], names: tuple[str, ...]) -> None:
    """Check the answer to ``words``: exit code 2, one short paragraph that names one of ``names``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    text = " ".join(err.getvalue().split())
    assert code == 2, text
    assert "Traceback" not in text and out.getvalue() == ""
    assert any(" ".join(name.split()) in text for name in names), text
    assert len(text) < LONGEST + sum(map(len, words)), text
    assert "\n\n" not in err.getvalue().strip()


def check_prompt(prompt: Prompt) -> None:
    refused(list(prompt.words), prompt.names)


@hunts.quick(20)
@given(prompts())
def test_some_prompts(prompt: Prompt) -> None:
    check_prompt(prompt)


@hunts.slow
@hunts.complete(2000)
@given(prompts())
def test_many_prompts(prompt: Prompt) -> None:
    check_prompt(prompt)


@st.composite
def sweeps(draw: st.DrawFn) -> Prompt:
    """``-m`` with a wrong value among the values of a key."""
    method = draw(st.sampled_from(method_names()))
    known, ranges = fields(find_method(method).Options), declared_ranges(options=find_method(method).Options)
    keys = [key for key, one in known.items() if one.kind in ("a number", "a whole number", "true or false")]
    key = draw(st.sampled_from(sorted(keys)))
    wrong = draw(wrong_values(known[key], ranges.get(key)).filter(lambda one: "," not in one))
    word = draw(st.sampled_from([f"{key}=1,{wrong}", f"{key}={wrong},1", f"{key}=choice(1,{wrong})"]))
    return Prompt(("-m", f"method={method}", word), (key,), "sweep")


@hunts.quick(2)
@given(sweeps())
def test_some_sweeps(prompt: Prompt) -> None:
    check_prompt(prompt)


@hunts.slow
@hunts.complete(150)
@given(sweeps())
def test_many_sweeps(prompt: Prompt) -> None:
    check_prompt(prompt)


@st.composite
def right_prompts(draw: st.DrawFn) -> list[str]:
    """Values of the declared types, alone or together."""
    method = draw(st.sampled_from(method_names()))
    known = fields(find_method(method).Options)
    keys = sorted(key for key in known if key not in ("mode", "method", "method.name"))
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True))
    return [f"method={method}", *(f"{key}={draw(right_words(known[key]))}" for key in chosen)]


def composes_or_answers(words: list[str]) -> None:
    """A value of the right type is composed and planned, or refused as a user's mistake; nothing else is raised."""
    with contextlib.suppress(UserError):
        compose_and_plan(words)


@hunts.quick(10)
@given(right_prompts())
def test_some_values_of_the_right_type(words: list[str]) -> None:
    composes_or_answers(words)


@hunts.slow
@hunts.complete(1000)
@given(right_prompts())
def test_many_values_of_the_right_type(words: list[str]) -> None:
    composes_or_answers(words)


WRONG_RUNS = ["nosuch", "[nosuch]", "'*.nosuch'", "5", "{a:1}", "/dev/null", "file.txt", "empty", "é\u202e"]
MODES = sorted({mode.name for mode in mode_files()})


def answers_to_a_wrong_run(mode: str, values: list[str], folder: Path) -> None:
    (folder / "file.txt").write_text("text")
    (folder / "empty").mkdir()
    there = sorted(os.listdir(folder))
    for value in values:
        answered([f"mode={mode}", f"run={value}"], ("run", "mode="))
    assert sorted(os.listdir(folder)) == there


def test_a_wrong_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers_to_a_wrong_run("report", ["nosuch", "/dev/null", "empty"], tmp_path)


@hunts.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_run_in_every_mode(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is none, in every mode: ``run`` is named, or what the mode reads instead."""
    monkeypatch.chdir(tmp_path)
    answers_to_a_wrong_run(mode, WRONG_RUNS, tmp_path)
