"""Grids: expansion, comparison of the runs, continuation, failed jobs, signals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.report.text_tables import p_equation
from vitlab.run.folder_lock import is_locked, locked
from vitlab.sweep.grid import expand
from vitlab.sweep.jobs import gpu_count, visible_gpus
from vitlab.sweep.statistics import holm, over_seeds, paired, verdicts
from vitlab.sweep.table import Job, group_by_seed, results, write_comparison
from vitlab.sweep.words import read_sweep
from vitlab.tasks.classification import Classification

TASK = Classification()

SMALL = (
    *(
        "method=supervised",
        "dataset=digits",
        "hardware.threads=1",
        "debug=smoke",
        "export=none",
        "report.figures=false",
        "sweep.name=grid",
    ),
    *("evaluation=quick", "evaluation.latency=false"),
)


def test_the_grid_is_expanded_by_hydra_and_each_job_is_its_own_run() -> None:
    jobs, composed = expand(["seed=range(0,2)", "method=supervised", "recipe.lr=choice(1e-3,3e-3)", "sweep.jobs=2"])
    assert [job.values["seed"] for job in jobs] == ["0", "0", "1", "1"]
    assert len({job.run for job in jobs}) == 4
    assert all("method=supervised" in job.words and "sweep.jobs=2" not in job.words for job in jobs)
    assert [one.config.recipe.lr for one in composed] == [1e-3, 3e-3] * 2
    assert read_sweep(["seed=0,1", "sweep.jobs=2"])[2].config.sweep.jobs == 2


def test_a_mistake_in_one_job_is_reported_before_the_sweep_starts() -> None:
    with pytest.raises(UserError, match="resnet"):
        expand(["method=supervised", "model=resnet18,resnet-eighteen"])


def test_parallel_jobs_share_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpus = visible_gpus()
    assert gpus == ["3", "5"]
    counts = {name: gpu_count(load([f"hardware={name}"]), gpus) for name in ("auto", "cpu", "ddp_cpu", "gpu", "ddp")}
    assert counts == {"auto": 1, "cpu": 0, "ddp_cpu": 0, "gpu": 1, "ddp": 2}


def test_values_that_cannot_change_the_result_give_runs_of_their_own() -> None:
    jobs, _ = expand(["method=supervised", "hardware=cpu,ddp_cpu", "seed=0,1"])
    assert len({job.run for job in jobs}) == 4
    assert [job.words[-1] for job in jobs[::2]] == [f"name=digits-tiny_vit_digits-{way}" for way in ("cpu", "ddp_cpu")]


def test_sweep_over_gives_swept_keys_and_the_command_line_takes_precedence() -> None:
    _, swept, _ = read_sweep(["method=supervised", "seed=3", 'sweep.over=["seed=0,1,2","recipe.lr=1e-3,2e-3"]'])
    assert [str(one.input_line) for one in swept] == ["recipe.lr=1e-3,2e-3"]
    with pytest.raises(UserError, match="sweep=optuna"):
        expand(["method=supervised", "recipe.lr=interval(1e-3,1e-2)"])


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path, "Wait."):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match=r"is locked by process \d+.*Wait"), locked(tmp_path, "Wait."):
            pass
    assert not is_locked(tmp_path)


def measured(folder: Path, number: int, lr: str, seed: str, top1: float) -> Job:
    run = folder / f"run-{number}"
    run.mkdir(parents=True)
    rows = [
        {"name": "teacher", "metrics": {"top1": 0.99}, "cost": {"params": 7, "latency": []}},
        {
            "name": "model",
            "metrics": {"top1": top1},
            "cost": {"params": 5, "latency": [{"batch": 1, "median_ms": 2.0}]},
        },
    ]
    (run / "report.json").write_text(json.dumps({"primary": "model", "rows": rows}))
    return Job(number, [], {"recipe.lr": lr, "seed": seed}, run, "finished")


def test_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    jobs = [
        measured(tmp_path, 1, "0.1", "0", 0.90),
        measured(tmp_path, 2, "0.1", "1", 0.94),
        measured(tmp_path, 3, "0.2", "0", 0.80),
        Job(4, [], {"recipe.lr": "0.2", "seed": "1"}, tmp_path / "none", "failed", "out of memory"),
    ]
    assert results(jobs[0]) == {"top1": 0.9, "params": 5.0, "latency_ms_1": 2.0}
    low, high = group_by_seed(jobs)
    assert (low.values, low.runs, high.runs) == ({"recipe.lr": "0.1"}, 2, 1)
    assert low.mean["top1"] == pytest.approx(0.92) and low.spread["top1"] == pytest.approx(0.02 * 2**0.5)
    assert high.spread == {}
    table = write_comparison(tmp_path, jobs, "python -m vitlab -m ...")
    assert "92.00 ± 2.83" in table and "run 4 failed: out of memory" in table
    page = (tmp_path / "comparison.md").read_text()
    assert "| 0.1 | 2 | 92.00 ± 2.83 |" in page and "| 0.2 | 1 | failed | – |" in page
    with open(tmp_path / "comparison.csv") as file:
        assert [row["top1"] for row in csv.DictReader(file)] == ["0.9", "0.94", "0.8", ""]
    assert [row["state"] for row in json.loads((tmp_path / "comparison.json").read_text())["runs"]][-1] == "failed"
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_top1_is_a_column(tmp_path: Path) -> None:
    """As in a sweep over experiments; runs without a published row have an empty cell."""
    jobs = [measured(tmp_path, number, lr, "0", 0.8) for number, lr in enumerate(("0.1", "0.2"), 1)]
    report = json.loads((jobs[0].run / "report.json").read_text())
    report["paper_rows"] = [{"name": "ours", "source": "Table 5", "metrics": {"top1": 0.791}}]
    (jobs[0].run / "report.json").write_text(json.dumps(report))
    write_comparison(tmp_path, jobs, "python -m vitlab -m experiment=a,b")
    page = (tmp_path / "comparison.md").read_text()
    assert "| Top-1 % | Paper's top-1 % |" in page
    assert "| finished | 80.00 | 79.1 |" in page and "| finished | 80.00 | – |" in page


def test_every_model_over_seeds(tmp_path: Path) -> None:
    """Paired differences over seeds: two points in every run are significant, an equal mean is not."""
    jobs = [measured(tmp_path, number, "0.1", str(number), top1) for number, top1 in enumerate((0.97, 0.971, 0.969))]
    for job in jobs:
        del job.values["recipe.lr"]
    table = write_comparison(tmp_path, jobs, "python -m vitlab -m seed=0,1,2")
    assert "| teacher | 3 | 99.00 ± 0.00 |" in (tmp_path / "comparison.md").read_text()
    numbers = "-2.00 points of top-1 over 3 seeds (95 % interval -2.25 to -1.75; p = 0.00083)"
    assert f"model is worse than teacher: {numbers}." in table
    (level,) = verdicts("a", [0.90, 0.92, 0.91], {"b": [0.91, 0.91, 0.91]}, TASK.headline)
    assert level.startswith("No significant difference between a and b: +0.00 points")
    assert verdicts("a", [0.92, 0.93], {"b": [0.91, 0.92]}, TASK.headline)[0].startswith("a is better than b: +1.00")
    one = json.loads((jobs[0].run / "report.json").read_text())
    assert over_seeds([one], TASK) == ([], [])


def test_a_path_with_a_comma_is_not_split_and_the_last_of_a_key_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["seed=0,1", "method=supervised"]
    with pytest.raises(UserError, match=r"output=a,b: after -m a comma separates values.*'output=\"a,b\"'"):
        read_sweep([*words, "output=a,b"])
    plain, swept, first = read_sweep([*words, 'output="a,b"', "seed=3", "recipe.lr=1,2", "seed=4,5"])
    assert first.config.output == "a,b" and first.config.seed == 4 and "seed=3" not in plain
    assert [one.get_key_element() for one in swept] == ["recipe.lr", "seed"]


def test_a_difference_of_three_seeds_needs_more_than_two_standard_errors() -> None:
    """Two standard errors are reached by chance 18 times in 100 with three seeds; and of many comparisons some are."""
    gaps = [1.0, 2.0, 4.8]  # 2.3 standard errors
    one = paired(gaps, [0.0] * 3)
    assert one.mean / ((one.hi - one.lo) / 2 / 4.3027) > 2 and one.lo < 0 < one.hi
    assert one.p_value == pytest.approx(float(scipy.stats.ttest_rel(gaps, [0.0] * 3).pvalue))
    drawn = np.random.default_rng(0).normal(size=(4000, 3))
    claimed = [paired(list(row), [0.0] * 3).p_value < 0.05 for row in drawn]
    assert 0.04 < sum(claimed) / len(claimed) < 0.06
    assert paired([1.0], [0.0]).p_value == 1 and paired([1.0, 1.0], [1.0, 1.0]).p_value == 1


def test_a_small_p_value_is_written_as_a_bound() -> None:
    assert p_equation(0.031) == "p = 0.031" and p_equation(1e-7) == "p < 0.0001"


def test_several_comparisons_are_corrected_together() -> None:
    """Holm's own steps: the smallest times all, the next times one less, never falling."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []
    own, other = [0.902, 0.913, 0.924], [0.900, 0.910, 0.920]
    alone = verdicts("a", own, {"b": other}, TASK.headline)
    among = verdicts("a", own, {"b": other, "c": own[::-1], "d": [0.91] * 3}, TASK.headline)
    assert alone[0].startswith("a is better than b") and "p = 0.035)" in alone[0]
    assert among[0].startswith("No significant difference between a and b") and "corrected for 3" in among[0]


def start_sweep(folder: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "vitlab", "-m", *SMALL, *words]
    return subprocess.Popen(
        [*line, f"output={folder}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


@pytest.mark.slow
def test_a_killed_sweep_continues_and_a_failed_job_does_not_end_it(tmp_path: Path) -> None:
    """Jobs of one and of two processes, two in parallel; only the job whose batch does not divide fails."""
    words = ("hardware=cpu,ddp_cpu", "recipe.batch_size=15,16", "sweep.jobs=2")
    process = start_sweep(tmp_path, *words)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("supervised/*/train")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)

    process = start_sweep(tmp_path, *words)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).endswith(": running\n"):
        assert line, "the sweep ended before a job started"
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 130, output
    assert "The same command continues" in output

    process = start_sweep(tmp_path, *words)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 1, output
    runs = json.loads((tmp_path / "sweeps" / "grid" / "comparison.json").read_text())["runs"]
    assert [run["state"] for run in runs] == ["finished", "finished", "failed", "finished"], output
    assert runs[2]["reason"].startswith("recipe.batch_size=15 does not divide into 2 device(s)")
    assert all(0 <= run["results"]["top1"] <= 1 for run in runs if run["results"])
    assert runs[1]["run"].startswith(str(tmp_path / "supervised" / "digits-tiny_vit_digits-cpu-"))
    for run in runs[0], runs[1], runs[3]:
        assert Path(run["run"], "metrics.jsonl").read_text().count('"val_top1"') == 1

    process = start_sweep(tmp_path, *words)
    output = process.communicate(timeout=200)[0]
    assert output.count("finished before") == 3
