"""What a former version made is found, shown, continued and trained from; tests/fixtures/README.md says how it was
made.

Everything here happens twice: under the configuration of today, and under one that has grown by two neutral keys, as
every release may add some.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from omegaconf import MISSING, OmegaConf
from safetensors.numpy import load_file

import vitlab
from tests.growing import forget, grow
from vitlab.cli.main import main
from vitlab.compose import schema
from vitlab.config import AugmentationConfig, Config, RecipeConfig
from vitlab.distill.draw import Augmentation
from vitlab.distill.store import TargetStore
from vitlab.files import read_json, sha256, write_json
from vitlab.methods.base import find_method
from vitlab.methods.deepmad.options import problem_of
from vitlab.report.data import ReportData
from vitlab.run import model_file
from vitlab.run.environment import environment
from vitlab.run.recorder import read_rows
from vitlab.tasks.base import find_task
from vitlab.training import interrupt

FIXTURES = Path(__file__).parent / "fixtures"
FINISHED = ("finished", "tinyvit", "reinforce", "deepmad")


@pytest.fixture(params=["today", "grown"])
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The configuration of today, or of a release that added two keys."""
    if request.param == "grown":
        grow(monkeypatch, RecipeConfig, "loss_balance", "Optional[str]", None)
        grow(monkeypatch, AugmentationConfig, "rotate", "float", 0)  # an int where a float is meant: equal all the same
        grow(monkeypatch, Augmentation, "rotate", "float", 0.0)
    yield request.param
    monkeypatch.undo()
    forget()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A copy of the old runs."""
    return Path(shutil.copytree(FIXTURES / "outputs", tmp_path / "outputs"))


def run_of(output: Path, name: str) -> Path:
    """The old run of this ``name=``."""
    (folder,) = output.glob(f"*/{name}-*")
    return folder


def words_of(run: Path, output: Path) -> list[str]:
    """The words at the prompt that made ``run``, for its copy below ``output``."""
    command = json.loads((run / "commands.jsonl").read_text().splitlines()[0])["command"]
    return [word for word in shlex.split(command)[3:] if not word.startswith("output=")] + [f"output={output}"]


def vitlab_main(words: list[str]) -> int:
    """One command in this process; its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt._requests.clear()
    torch.set_num_threads(1)
    try:
        return main(words)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def files_of(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): sha256(path)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in ("lock", "commands.jsonl")
    }


def change_tree(run: Path, change: Any) -> None:
    """Edit the stored configuration of ``run``."""
    record = read_json(run / "run.json")
    change(record["tree"])
    write_json(run / "run.json", record)


def same_machine() -> bool:
    """Whether the last bits are those of the machine that made the fixtures."""
    made, here = read_json(FIXTURES / "expected.json")["machine"], environment("")
    return bool(
        made["cpu"] == here["cpu"]
        and made["capability"] == torch.backends.cpu.get_cpu_capability()
        and made["torch"] == torch.__version__.partition("+")[0]
    )


def assert_learned_the_same(model: Path, weights: Path, sha: str) -> None:
    """Two trainings gave the same network: bit for bit on the machine of the fixtures, elsewhere but for rounding."""
    if same_machine():
        assert sha256(model / "model.safetensors") == sha
    one, two = load_file(model / "model.safetensors"), load_file(weights)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------ finished runs


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_shows_its_table(
    name: str, release: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(output, name)
    before = files_of(run)
    assert vitlab_main(words_of(run, output)) == 0
    text = capsys.readouterr().out
    assert f"This run is finished: {run}." in text
    # The fixture was copied: its files are named where they are now.
    assert read_json(run / "finished.json")["table"].replace(" outputs/", f" {output}/") in text
    assert files_of(run) == before
    assert len(list(output.glob("*/*/run.json"))) == 5, "no run beside it"


def test_a_finished_run_is_measured_reported_and_loaded(release: str, output: Path) -> None:
    run = run_of(output, "finished")
    top1 = read_json(run / "evaluation" / "train.json")["top1"]
    (run / "report.json").unlink()
    assert vitlab_main(["mode=report", f"run={run}", f"output={output}"]) == 0
    assert ReportData.load(run / "report.json", find_task).rows[0].stage == "train"
    (run / "evaluation" / "train.json").unlink()
    words = ["mode=evaluate", f"run={run}", f"output={output}", "hardware=cpu", "evaluation.latency=false"]
    assert vitlab_main([*words, "evaluation.resamples=0"]) == 0
    assert read_json(run / "evaluation" / "train.json")["top1"] == pytest.approx(top1, abs=0.051)  # 2 of 40 images
    model = vitlab.load_model(run / "train")
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_its_own_report_is_read(output: Path) -> None:
    found = ReportData.load(run_of(output, "finished") / "report.json", find_task)
    assert found.task == "classification" and found.rows[0].evaluation is not None
    assert (
        found.rows[0].evaluation.metrics()["top1"]
        == read_json(run_of(output, "finished") / "evaluation" / "train.json")["top1"]
    )


def test_what_a_former_version_wrote_into_model_json_can_be_left_out(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(output, "finished") / "train"
    stored = read_json(folder / "model.json")
    write_json(folder / "model.json", {**stored, "grafts": []})
    with pytest.raises(vitlab.errors.UserError, match="reads format"):
        model_file.read_meta(folder)
    monkeypatch.setitem(model_file.REMOVED, "grafts", [])
    assert model_file.read_meta(folder).name == "resnet18"
    write_json(folder / "model.json", {**stored, "grafts": ["one"]})
    with pytest.raises(vitlab.errors.UserError, match="reads format"):
        model_file.read_meta(folder)
    del stored["crop"]
    write_json(folder / "model.json", stored)
    assert model_file.read_meta(folder).crop == "auto"


# ---------------------------------------------------------------------------------------------------- interrupted runs


def test_an_interrupted_run_continues_as_if_it_had_never_stopped(release: str, output: Path) -> None:
    run, expected = run_of(output, "interrupted"), read_json(FIXTURES / "expected.json")
    assert vitlab_main(words_of(run, output)) == 0
    assert (run / "finished.json").exists()
    assert len(list((output / "supervised").glob("interrupted-*"))) == 1
    kept = ("step", "loss", "lr", "val_top1", "val_nll")
    rows = [{key: row[key] for key in kept if key in row} for row in read_rows(run / "metrics.jsonl")]
    assert [row["step"] for row in rows] == [row["step"] for row in expected["rows"]]
    for row, other in zip(rows, expected["rows"], strict=True):
        assert row == (other if same_machine() else pytest.approx(other, rel=1e-3))
    assert_learned_the_same(run / "train", FIXTURES / "uninterrupted.safetensors", expected["sha256"])


# -------------------------------------------------------------------------------------------------------------- stores


def test_a_sealed_store_is_trained_from(release: str, output: Path) -> None:
    run = run_of(output, "tinyvit")
    store = run / "store" / "targets"
    assert TargetStore.open(store).fingerprint == read_json(run / "store" / "done.json")["fingerprint"]
    words = [word for word in words_of(run, output) if not word.startswith(("teacher", "name="))]
    assert vitlab_main([*words, "name=again", f"method.store={store}"]) == 0
    again = run_of(output, "again") / "pretrain"
    first = run / "pretrain"
    assert_learned_the_same(again, first / "model.safetensors", read_json(first / "model.json")["sha256"])


def test_a_reinforced_store_is_trained_from(release: str, output: Path) -> None:
    run = run_of(output, "reinforce")
    store = run / "reinforce" / "targets"
    assert TargetStore.open(store).fingerprint == read_json(run / "reinforce" / "done.json")["fingerprint"]
    words = [word for word in words_of(run, output) if not word.startswith(("teacher", "name="))]
    assert vitlab_main([*words, "name=again", f"method.store={store}"]) == 0
    again = run_of(output, "again") / "train"
    first = run / "train"
    assert_learned_the_same(again, first / "model.safetensors", read_json(first / "model.json")["sha256"])


def test_stored_labels_are_still_those_of_their_teacher(release: str, output: Path) -> None:
    """Random records are labelled anew by the teacher of the old run."""
    for name in ("tinyvit", "reinforce"):
        words = ["mode=verify", f"run={run_of(output, name)}", f"output={output}", "hardware=cpu", "method.recheck=8"]
        assert vitlab_main([f"method={name}", *words]) == 0


def test_a_design_is_continued_from_its_journal(output: Path) -> None:
    run = run_of(output, "deepmad")
    head = json.loads((run / "solve" / "journal.jsonl").read_text().splitlines()[0])
    config = schema.from_tree(read_json(run / "run.json")["tree"])
    assert json.loads(json.dumps(problem_of(config.method, config.dataset.size).describe())) == head["problem"]
    solved = read_json(run / "solve" / "structure.json")
    for name in ("finished.json", "solve/done.json", "solve/structure.json", "build/done.json"):
        (run / name).unlink()
    assert vitlab_main(words_of(run, output)) == 0
    assert read_json(run / "solve" / "structure.json") == solved


# ---------------------------------------------------------------------------------------------- what is still refused


def refusal(output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command of the finished run is answered, on one line."""
    assert vitlab_main(words_of(run_of(output, "finished"), output)) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_changed_default_still_stops(release: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_tree(run_of(output, "finished"), lambda tree: tree["recipe"].update(lr=0.004))
    assert "recipe.lr: 0.004 → 0.003." in refusal(output, capsys)


def test_an_absent_key_that_is_not_neutral_today_stops(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of this run gives ``clip``, whose default is null: what did not have the key was not clipped."""
    change_tree(run_of(output, "finished"), lambda tree: tree["recipe"].pop("clip"))
    assert "recipe.clip: null → 5.0." in refusal(output, capsys)


def test_a_key_that_is_gone_counts_unless_it_was_neutral_or_has_moved(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(output, "finished")

    def age(tree: dict[str, Any]) -> None:
        tree["recipe"]["boost"] = 0.5
        tree["recipe"]["gradient_clip"] = tree["recipe"].pop("clip")
        tree["picture"] = {"px": tree["dataset"].pop("size")}

    change_tree(run, age)
    message = refusal(output, capsys)
    for part in ("recipe.boost: 0.5 → absent", "recipe.gradient_clip: 5.0 → absent", "dataset.size: absent → 16"):
        assert part in message
    monkeypatch.setitem(schema.RENAMED, "RecipeConfig.gradient_clip", "clip")
    monkeypatch.setitem(schema.RENAMED, "Config.picture.px", "dataset.size")
    monkeypatch.setitem(schema.REMOVED, "Config.picture", {})
    monkeypatch.setitem(schema.REMOVED, "RecipeConfig.boost", 0.0)
    assert "was started: recipe.boost: 0.5 → absent." in refusal(output, capsys)
    monkeypatch.setitem(schema.REMOVED, "RecipeConfig.boost", 0.5)
    assert vitlab_main(words_of(run, output)) == 0


# -------------------------------------------------------------------------------------------- the rule for later fields


def open_keys(cls: type, options: type | None, at: str = "") -> set[str]:
    """Keys below ``cls`` that the schema gives no default."""
    found: set[str] = set()
    plain = OmegaConf.to_container(OmegaConf.structured(cls))
    assert isinstance(plain, dict)
    hints = get_type_hints(cls)
    for one in fields(cls):
        hint = options if at == "" and one.name == "method" else hints[one.name]
        parts = [hint, *get_args(hint)] if get_origin(hint) is not dict else []
        inner = next((part for part in parts if is_dataclass(part)), None)
        if inner is not None:
            found |= open_keys(inner, None, f"{at}{one.name}.")  # type: ignore[arg-type]
        elif plain[one.name] == MISSING:
            found.add(f"{at}{one.name}")
    return found


@pytest.mark.parametrize("name", FINISHED)
def test_every_key_without_a_default_was_there_from_the_start(name: str) -> None:
    """A new key has a neutral default in its dataclass; one that only ``conf/`` gives would stop every older run."""
    tree = read_json(run_of(FIXTURES / "outputs", name) / "run.json")["tree"]

    def there(key: str) -> bool:
        at: Any = tree
        parts = key.split(".")
        for number, part in enumerate(parts, 1):
            if isinstance(at, list):
                at = at[0] if at else {}
            if at is None or (part not in at and at == {}):
                return True  # a recipe that is not chosen, a list without members
            if part not in at:
                return number < len(parts) and known[".".join(parts[:number])].optional  # a branch that came later
            at = at[part]
        return True

    options = find_method(tree["method"]["name"]).Options
    known = schema.fields(options)
    assert {key for key in open_keys(Config, options) if not there(key)} == set()


def test_a_tree_of_today_is_complete() -> None:
    for name in FINISHED:
        tree = read_json(run_of(FIXTURES / "outputs", name) / "run.json")["tree"]
        once = schema.complete(tree)
        assert schema.complete(once) == once
        assert once["recipe"] == tree["recipe"] or set(once["recipe"]) > set(tree["recipe"])
