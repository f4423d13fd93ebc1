"""Contract of every method: it runs, stops and continues bit for bit, reloads, exports, reports."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import vitlab
from tests.contract.story import TEACHER, assert_same, at, content, run_and_kill, run_command, the_run
from vitlab.compose.load import load
from vitlab.config.catalogue import conf_dir
from vitlab.data.build import open_splits
from vitlab.distill.store_writer import SlotWriter
from vitlab.distill.views import EvalView
from vitlab.methods.base import Stage, find_method, method_names
from vitlab.models.artifact import ModelMeta
from vitlab.run.recorder import read_rows
from vitlab.training.callbacks import record_and_checkpoint
from vitlab.training.learner import Learner

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("[!_]*.yaml"))
TINY = ("embed_dims=[16,32,64]", "depths=[1,1,1]", "num_heads=[1,1,2]", "window_sizes=[8,4,2]")
STUDENT = tuple(f"model.args.{word}" for word in TINY)
"""A convolutional stage and two of attention: each more takes a second to export."""

EXTRA: dict[str, tuple[str, ...]] = {
    "supervised": STUDENT,
    "tinyvit": (*STUDENT, *TEACHER),
    "reinforce": (*STUDENT, *TEACHER, "method.kd=true"),
    "deepmad": ("method.budget.params=0.1M", "method.budget.flops=5M", "method.chains=64", "method.steps=100"),
    "nvit": (
        # multiply-adds: another run would measure other latencies, and so prune another network
        *("method.target.latency=null", "method.target.macs=0.2", "method.prune.interval=2"),
        *("method.prune.units_per_event=64", "method.finetune.batch_size=16", "method.dense.batch_size=16"),
    ),
}
"""Further overrides of a method's smallest run."""

NETWORKS = ("tinyvit", "deepmad")
"""Methods whose results are exported; the others train the same network as the first."""

CLOSED = ("export=default", "report.figures=true")
"""The default end of a run."""


def words(method: str, *more: str) -> tuple[str, ...]:
    return (f"method={method}", *EXTRA.get(method, ()), *more)


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(method: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; for the methods in NETWORKS with exports and figures."""
    output = tmp_path_factory.mktemp(f"{method}-uninterrupted")
    assert run_command(output, *words(method, *(CLOSED if method in NETWORKS else ()))) == 0
    return the_run(output)


def test_every_method_has_a_configuration() -> None:
    assert method_names() == METHODS


def test_stages_are_marked_and_recorded(method: str, uninterrupted: Path) -> None:
    folders = {path.parent.name for path in uninterrupted.glob("*/done.json")}
    assert {"evaluation", "benchmark"} < folders
    assert ("export" in folders) == (method in NETWORKS)
    models = {path.parent.name for path in uninterrupted.glob("*/model.json")} - {"export"}
    assert models - set(trained(uninterrupted)) == ({"cut"} if method == "nvit" else set())
    assert not list(uninterrupted.rglob("*.ckpt")), "checkpoints of finished stages are removed"


def test_models_reload_with_the_logits_that_were_measured(uninterrupted: Path) -> None:
    for file in uninterrupted.glob("evaluation/*.npz"):
        model = vitlab.load_model(uninterrupted / file.stem)
        measured = np.load(file)
        images = images_for(uninterrupted, model, measured["index"][:8])
        with torch.inference_mode():
            logits = model(images).numpy()
        np.testing.assert_allclose(logits, measured["logits"][:8], rtol=0, atol=1e-5)


def images_for(run: Path, model: torch.nn.Module, index: np.ndarray) -> torch.Tensor:
    """Preprocessed test images, without a data module."""
    tree = json.loads((run / "run.json").read_text())["tree"]
    config = load([f"method={tree['method']['name']}", "dataset=digits", "debug=smoke", "debug.max_images=80"]).config
    source = open_splits(config.dataset, config.seed, config.debug.max_images)["test"]
    meta = model.meta
    assert isinstance(meta, ModelMeta)
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation)
    return torch.stack([view(source[int(i)][0]) for i in index])


def test_report_and_exports_are_there(method: str, uninterrupted: Path) -> None:
    for name in ("report.md", "report.html"):
        assert (uninterrupted / name).stat().st_size > 1000
    if method not in NETWORKS:
        return
    assert list(uninterrupted.glob("figures/*.png"))
    files = json.loads((uninterrupted / "export" / "done.json").read_text())["files"]
    assert {"safetensors", "onnx"} <= {record["format"] for record in files}
    for record in files:
        path = uninterrupted / "export" / Path(record["path"]).name
        assert path.exists(), record


def test_a_finished_run_prints_its_table_and_does_not_run_again(
    method: str, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(uninterrupted)
    stamp = (uninterrupted / "finished.json").stat().st_mtime_ns
    assert run_command(uninterrupted.parent.parent, *words(method)) == 0
    assert "finished" in capsys.readouterr().out
    assert content(uninterrupted) == before
    assert (uninterrupted / "finished.json").stat().st_mtime_ns == stamp


def trained(run: Path) -> list[str]:
    """Stages with a record of a training."""
    return sorted({str(row["stage"]) for row in read_rows(run / "metrics.jsonl") if "lr" in row})


@pytest.mark.parametrize(
    "workers",
    [0, pytest.param(2, marks=pytest.mark.slow)],  # processes for every loader of every session
)
def test_stopped_within_an_epoch_continues_bit_for_bit(
    method: str, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    stop_each_training(method, uninterrupted, tmp_path, 7, workers)


@pytest.mark.parametrize("method", ["tinyvit"], indirect=True)  # every method resumes by the step, as this one does
def test_stopped_at_the_end_of_an_epoch_continues_bit_for_bit(method: str, uninterrupted: Path, tmp_path: Path) -> None:
    stop_each_training(method, uninterrupted, tmp_path, 5, 0)


def stop_each_training(method: str, uninterrupted: Path, tmp_path: Path, step: int, workers: int) -> None:
    """SIGTERM at the same step of every training stage, each in a session of its own, then a session to the end."""
    line = words(method, f"hardware.workers={workers}")
    codes = []
    with_stop = lambda learner: learner.step + 1 == step  # noqa: E731
    for _ in range(10):
        with at(Learner, "after_step", with_stop, signal.SIGTERM):
            codes.append(run_command(tmp_path, *line))
        if codes[-1] == 0:
            break
    assert codes == [130] * len(trained(uninterrupted)) + [0]
    assert_same(the_run(tmp_path), uninterrupted)


def test_killed_anywhere_continues_bit_for_bit(method: str, uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL after a step, before a checkpoint, and while targets are written; nothing is lost or written twice."""
    line = words(method)
    calls = itertools.count()
    kills = [
        (Learner, "after_step", lambda learner: learner.step + 1 == 8),
        (record_and_checkpoint, "save_checkpoint", lambda *_: next(calls) == 1),
    ]
    if any(stage.makes == "store" for stage in every_stage(method)):
        writes = itertools.count()
        kills.append((SlotWriter, "flush", lambda writer: next(writes) == 1))
    for owner, name, when in kills:
        with at(owner, name, when, signal.SIGKILL):
            run_and_kill(tmp_path, *line)
    assert run_command(tmp_path, *line) == 0
    assert_same(the_run(tmp_path), uninterrupted)


def every_stage(method: str) -> list[Stage]:
    return [one.__stage__ for one in vars(find_method(method)).values() if hasattr(one, "__stage__")]


def test_stopped_while_storing_continues_byte_for_byte(method: str, uninterrupted: Path, tmp_path: Path) -> None:
    if not any(stage.makes == "store" for stage in every_stage(method)):
        pytest.skip("this method stores nothing")
    writes = itertools.count()
    line = words(method)
    with at(SlotWriter, "write", lambda *_, **__: next(writes) == 2, signal.SIGINT):
        assert run_command(tmp_path, *line) == 130
    assert not list(the_run(tmp_path).glob("store/done.json"))
    assert run_command(tmp_path, *line) == 0
    assert_same(the_run(tmp_path), uninterrupted)
