"""A result beside the run's own baseline: what speaks against it stands first, with what to try."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest

from vitlab.compose.load import load
from vitlab.measure.bootstrap import Difference
from vitlab.measure.classification import Evaluation, evaluate_logits
from vitlab.measure.cost_record import Cost
from vitlab.methods.base import suggestions, with_word
from vitlab.report import page
from vitlab.report.compare import compare
from vitlab.report.data import ReportData
from vitlab.report.verdict import is_worse, verdict
from vitlab.tasks.classification import Classification
from vitlab.tasks.multilabel import Multilabel

TASK = Classification()
STRONGER = "a stronger teacher: python -m vitlab teacher=finetuned"


def with_result(data: ReportData, gain: float, lo: float, hi: float, p: float) -> ReportData:
    """The sample report with a student that is ``gain`` above its baseline."""
    teacher, student, baseline = data.rows
    student = replace(student, metrics={"top1": 0.6 + gain}, evaluation=None)
    rows = [replace(teacher, metrics={"top1": 0.9}), student, replace(baseline, metrics={"top1": 0.6}, evaluation=None)]
    one = data.comparisons[0]
    one = replace(one, p_value=p, differences={**one.differences, "top1": Difference(gain, lo, hi)})
    return replace(data, rows=rows, comparisons=[one], advice=[STRONGER])


def test_a_method_that_pays_has_no_verdict(data: ReportData) -> None:
    assert verdict(with_result(data, 0.05, 0.02, 0.08, 0.001), TASK) == []
    assert verdict(replace(data, rows=data.rows[:2]), TASK) == []  # nothing to compare with


def test_a_worse_result_is_said_first_with_what_to_try(data: ReportData) -> None:
    worse = with_result(data, -0.39, -0.45, -0.3, 1e-9)
    first, *others = page.findings(worse, TASK)
    assert first == ("Student, stored labels is worse than same student, labels alone: 21.00 % top-1 against 60.00 %.")
    assert others[0] == f"To try: {STRONGER}"
    assert is_worse(worse, TASK) and not is_worse(with_result(data, 0.01, -0.02, 0.04, 0.4), TASK)


@pytest.mark.parametrize(
    ("gain", "word"), [(0.01, "brought nothing that is more than chance"), (-0.01, "may be chance")]
)
def test_a_gain_by_chance_is_none(data: ReportData, gain: float, word: str) -> None:
    first, second = verdict(with_result(data, gain, -0.03, 0.03, 0.6), TASK)
    assert word in first and second.startswith("To try: ")


def test_a_teacher_below_the_baseline_is_named(data: ReportData) -> None:
    found = with_result(data, -0.1, -0.2, -0.05, 0.001)
    found.rows[0] = replace(found.rows[0], metrics={"top1": 0.55}, evaluation=None)
    assert "teacher is no better than that baseline (55.00 %)" in verdict(found, TASK)[1]


@pytest.mark.parametrize("method", ["tinyvit", "reinforce", "deepmad"])
def test_every_command_of_the_advice_is_one(method: str) -> None:
    words = [f"method={method}", "dataset=digits", "recipe=digits", "fresh=true"]
    words += [] if method == "deepmad" else ["teacher=digits", "model=tiny_vit_digits"]
    config = load(words).config
    lines = suggestions(config, shlex.join(["python", "-m", "vitlab", *words]))
    assert len(lines) >= 3 and any("seed=0,1,2" in line for line in lines)
    for line in lines[:-1]:
        typed = shlex.split(line.partition(": python -m vitlab ")[2] or line.rpartition(": python -m vitlab ")[2])
        assert "fresh=true" not in typed and len(typed) == len({word.partition("=")[0] for word in typed})
        load(typed)


def test_a_word_replaces_its_own() -> None:
    command = "python -m vitlab teacher=digits teacher.train=false recipe.duration=20ep 'name=a b' fresh=true"
    assert with_word(command, "recipe.duration=60ep") == (
        "python -m vitlab teacher=digits teacher.train=false 'name=a b' recipe.duration=60ep"
    )
    assert with_word(command, "teacher=x") == "python -m vitlab recipe.duration=20ep 'name=a b' teacher=x"


def test_a_collapsed_network_is_named(data: ReportData) -> None:
    """One class for all images; a network that is no better than chance; in a report and at the prompt."""
    classes = ["a", "b", "c"]
    label = np.array([0] * 5 + [1] * 3 + [2] * 2)
    logits = np.zeros((10, 3))
    logits[:, 2] = 1.0
    collapsed = evaluate_logits(logits, label, classes)
    (sentence,) = TASK.warnings(collapsed)
    assert "names one class, c, for all 10 images" in sentence
    assert "always naming a, the most frequent class, is right for 50.00 %" in sentence
    rows = [replace(row, evaluation=collapsed) if row.name == data.primary else row for row in data.rows]
    assert page.findings(replace(data, rows=rows), TASK)[0].startswith("The network names one class, c")
    assert any(
        "names one class, c" in line for line in TASK.summary_notes([("model", collapsed)], ("model", collapsed))
    )
    logits[:3, 1] = 2.0
    assert "no better than chance" in TASK.warnings(evaluate_logits(logits, label, classes))[0]
    assert TASK.warnings(evaluate_logits(np.eye(3)[label], label, classes)) == []


def test_a_collapsed_multilabel_network_is_named() -> None:
    from vitlab.config import EvaluationConfig
    from vitlab.tasks.base import Answers

    task, rng = Multilabel(), np.random.default_rng(0)
    label = (rng.random((60, 3)) < 0.3).astype(np.int64)
    spec = EvaluationConfig(bins=15, resamples=0)

    def warned(logits: np.ndarray) -> list[str]:
        test = Answers(logits.astype(np.float32), label, np.arange(60))
        return task.warnings(task.measure(test, None, ["a", "b", "c"], spec))

    found = warned(np.full((60, 3), -2.0))
    assert "predicts the same for all 60 images: no label" in found[0] and "random order" in found[1]
    assert warned(8.0 * label - 4) == []


def test_a_busy_machine_is_marked_wherever_times_stand(data: ReportData) -> None:
    rows = [replace(row, cost=replace(row.cost, busy="load 5.2 on 2 cores")) for row in data.rows]
    busy = replace(data, rows=rows)
    tile = next(one for one in page.tiles(busy, TASK) if one.label == "Latency")
    assert tile.detail.endswith("machine busy (load 5.2 on 2 cores)")
    table = compare(rows, TASK.columns)
    assert "load 5.2 on 2 cores" in table.text() and "load 5.2 on 2 cores" in table.markdown()
    assert all("load 5.2" in text for text in page.render(busy, [], TASK))
    assert "busy" not in compare(data.rows, TASK.columns).text()
    plain = Cost(1, busy="load 5.2 on 2 cores").to_dict()
    assert Cost.from_dict(plain).busy == "load 5.2 on 2 cores" and "busy" not in Cost(1).to_dict()


def test_the_interval_of_a_table_names_its_kind(data: ReportData) -> None:
    found = data.main.evaluation
    assert isinstance(found, Evaluation)
    assert TASK.summary_table([("model", found)])[0][2] == "95 % Wilson"
    drawn = replace(found, intervals={"top1": [0.5, 0.6]})
    assert TASK.summary_table([("model", drawn)])[0][2] == "95 % bootstrap"
