"""Searches: the space, sampling, pruning, continuation. The files of the runs are written by the tests; one slow test
searches with real runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.launch.start import find_run
from vitlab.run.recorder import Recorder
from vitlab.sweep.jobs import PROGRESS
from vitlab.sweep.report import write_search_report
from vitlab.sweep.search import Search, distribution, search
from vitlab.sweep.table import Job, write_comparison
from vitlab.sweep.words import read_sweep

WORDS = ["method=supervised", "dataset=digits", "recipe.warmup_lr=0", "recipe.min_lr=0", "sweep=optuna"]
LR = "recipe.lr=tag(log,interval(1e-4,1e-2))"


def open_search(folder: Path, *words: str) -> Search:
    plain, swept, first = read_sweep([*WORDS, f"output={folder}", *(words or (LR,))])
    space = {one.get_key_element(): distribution(one, first) for one in swept}
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    common = [word for word in plain if not word.startswith("sweep")]
    return Search(folder, common, space, first, json.dumps(sorted(map(str, words))))


def run(job: Job, values: list[float], top1: float | None) -> None:
    """Write the files of a run: its validations, and a report if ``top1`` is given."""
    folder = find_run(load(job.words))
    folder.lock("test")
    recorder = Recorder(job.run / "metrics.jsonl")
    for step, value in enumerate(values, 1):
        recorder.write(stage="train", step=10 * step, val_top1=value, val_nll=1 - value)
    recorder.close()
    if top1 is not None:
        row = {"name": "train", "metrics": {"top1": top1}, "cost": {"params": 5 + job.number, "latency": []}}
        (job.run / "report.json").write_text(json.dumps({"primary": "train", "rows": [row]}))
        folder.finish({"table": ""})
        job.state = "finished"
    folder.release()


def start(queue: Search) -> Job:
    job = queue.next()
    assert job is not None
    return job[0]


def test_the_space_is_written_in_hydras_syntax() -> None:
    words = [LR, "recipe.batch_size=interval(16,64)", "recipe.accumulate=range(1,9,3)", "recipe.optimizer=adamw,lamb"]
    _, swept, first = read_sweep([*WORDS, *words, "recipe.clip=interval(0.5,2)"])
    lr, batch, accumulate, optimizer, clip = (distribution(one, first) for one in swept)
    assert lr == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert batch == optuna.distributions.IntDistribution(16, 64), "the key takes integers"
    assert accumulate == optuna.distributions.IntDistribution(1, 7, step=3)
    assert optimizer == optuna.distributions.CategoricalDistribution(["adamw", "lamb"])
    assert clip == optuna.distributions.FloatDistribution(0.5, 2.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.lr=interval(-1,1e-2)"], "recipe.lr=-1"),
        (["recipe.lr=interval(1e-2,1e-3)"], "empty range"),
        (["recipe.lrr=interval(1e-4,1e-2)"], "recipe.lr"),
        (["recipe.optimizer=interval(0,1)", "model=vit_smal,vit_base"], "vit_small"),
        ([LR, "sweep.prune=median", "sweep.minimize=[val_nll,nll]"], "sweep.prune=null"),
        ([LR, "sweep.minimize=[params]"], "has no values before the end"),
        ([LR, "sweep.sampler=bayes"], "sweep.sampler"),
    ],
)
def test_an_invalid_search_is_refused_before_anything_runs(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search(*read_sweep([*WORDS, f"output={tmp_path}", *words]), "command")
    assert not list(tmp_path.glob("supervised/*"))


def test_draws_are_determined_by_seed_and_trial(tmp_path: Path) -> None:
    drawn = []
    for folder in ("one", "two"):
        queue = open_search(tmp_path / folder)
        for number in range(3):
            if folder == "two" and number == 2:
                queue = open_search(tmp_path / folder)  # continued by another process
            job = start(queue)
            run(job, [0.5], 0.4 + float(job.values["recipe.lr"]))
            queue.on_end(job)
        drawn.append([one.params for one in queue.study.trials])
    assert drawn[0] == drawn[1] and len({one["recipe.lr"] for one in drawn[0]}) == 3


def test_a_killed_search_continues_its_trials_and_repeats_none(tmp_path: Path) -> None:
    queue = open_search(tmp_path, LR, "sweep.trials=3", "sweep.jobs=2")
    one, two = start(queue), start(queue)
    run(one, [0.1, 0.5], 0.6)
    queue.on_end(one)
    del queue  # killed while the second ran

    queue = open_search(tmp_path, LR, "sweep.trials=3", "sweep.jobs=2")
    assert [job.state for job in queue.jobs] == ["finished"] and queue.jobs[0].extra == {"val_top1": 0.5}
    again = start(queue)
    assert (again.number, again.words, again.run) == (two.number, two.words, two.run)
    three = start(queue)
    assert three.number == 3 and queue.next() is None
    for job in again, three:
        run(job, [0.2], 0.3)
        queue.on_end(job)
    assert [trial.state.name for trial in queue.study.trials] == ["COMPLETE"] * 3
    assert open_search(tmp_path, LR, "sweep.trials=3", "sweep.jobs=2").next() is None, (
        "the same command has nothing to do"
    )
    with pytest.raises(UserError, match="contains another search"):
        open_search(tmp_path, "recipe.lr=interval(1e-4,1e-3)")


def test_a_bad_trial_is_pruned_and_a_failed_one_is_replaced_next_time(tmp_path: Path) -> None:
    words = (LR, "sweep.trials=4", "sweep.startup=2")
    queue = open_search(tmp_path, *words)
    for value in 0.8, 0.9:
        job = start(queue)
        run(job, [value, value], value)
        assert not queue.should_prune(job)
        queue.on_end(job)
    bad = start(queue)
    run(bad, [0.1], None)
    assert queue.should_prune(bad)
    bad.state = "pruned"
    queue.on_end(bad)
    failed = start(queue)
    failed.state, failed.reason = "failed", "out of memory"
    queue.on_end(failed)
    assert queue.next() is None
    assert [trial.state.name for trial in queue.study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    text, summary = write_search_report(queue.study, tmp_path, queue.jobs)
    table = write_comparison(tmp_path, queue.jobs, "command", about=text, show=queue.names)
    assert "best: run 2, val_top1 0.9" in summary and "2 finished, 1 pruned, 1 failed" in summary
    assert "run 4 failed: out of memory" in table
    page = (tmp_path / "comparison.md").read_text()
    plots = ("history", "slices", "intermediate_values")
    assert all(f"({name}.png)" in page and (tmp_path / f"{name}.png").exists() for name in plots)

    queue = open_search(tmp_path, *words)
    assert start(queue).number == 5 and queue.next() is None


def test_two_metrics_make_a_front(tmp_path: Path) -> None:
    words = ("recipe.optimizer=adamw,sgd", LR, "sweep.maximize=[top1]", "sweep.minimize=[params]", "sweep.prune=null")
    queue = open_search(tmp_path, *words, "sweep.trials=3")
    for top1 in 0.9, 0.8, 0.95:  # of 6, 7 and 8 parameters
        job = start(queue)
        run(job, [], top1)
        queue.on_end(job)
    text, summary = write_search_report(queue.study, tmp_path, queue.jobs)
    assert "maximize top1, minimize params" in summary and summary.count("on the Pareto front") == 2
    assert "run 2" not in summary and "(pareto.png)" in text


def test_a_metric_that_no_run_has_ends_the_search(tmp_path: Path) -> None:
    queue = open_search(tmp_path, LR, "sweep.maximize=[val_top5]", "sweep.prune=null")
    job = start(queue)
    run(job, [0.3], 0.4)
    queue.on_end(job)
    assert queue.next() is None and job.state == "failed"
    assert "top1, val_nll, val_top1" in str(queue.mistake)


def test_a_run_that_exists_is_not_run_again(tmp_path: Path) -> None:
    queue = open_search(tmp_path, "recipe.optimizer=adamw,sgd", "sweep.trials=6")
    first = start(queue)
    second = start(queue)  # draws of the first run's values in between wait for it
    assert first.run != second.run
    for job in first, second:
        run(job, [0.5], 0.5)
        queue.on_end(job)
    assert queue.next() is None and len(queue.study.trials) == 6
    assert all(trial.value == 0.5 for trial in queue.study.trials)


@pytest.mark.slow
def test_a_search_of_real_runs_is_killed_and_continued(tmp_path: Path) -> None:
    words = [
        *WORDS,
        LR,
        "debug=smoke",
        "debug.max_images=64",
        "recipe.batch_size=16",
        "export=none",
        "report.figures=false",
        "sweep.trials=2",
    ]
    words += ["hardware=cpu", "hardware.threads=1", "evaluation=quick", "evaluation.latency=false", "sweep.name=search"]
    line = [sys.executable, "-m", "vitlab", "-m", *words, f"output={tmp_path}"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("supervised/*/train")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/sweeps/search/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(list(tmp_path.glob("supervised/*/finished.json"))) == 2
    assert shlex.join(["python", "-m", "vitlab", *study.best_trial.user_attrs["words"]]) in done.stdout
    assert PROGRESS.match("[1/2] train")
