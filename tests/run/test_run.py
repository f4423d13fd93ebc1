"""Run folders: finding, locking, continuing, finishing, refusing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.config.catalogue import RESULT_FREE
from vitlab.errors import UserError
from vitlab.run.identity import differences
from vitlab.run.run import Run, remove_temporary_files

IDENTITY = {"choices": {"method": "tinyvit", "dataset": "digits"}, "changed": {}}
TREE: dict[str, Any] = {
    "mode": "train",
    "seed": 0,
    "fresh": False,
    "recipe": {"lr": 1e-3, "optimizer_args": {"betas": (0.9, 0.999)}, "decay_at": [], "clip": None, "name": "10%"},
    "trainer": {"devices": 1},
}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "outputs"


def tree(**changes: Any) -> dict[str, Any]:
    """TREE with recipe's or the top level's values changed."""
    new = {**TREE, "recipe": dict(TREE["recipe"])}
    for key, value in changes.items():
        (new["recipe"] if key in new["recipe"] else new)[key] = value
    return new


def find(output: Path, values: dict[str, Any] = TREE, identity: Any = IDENTITY, fresh: bool = False) -> Run:
    return Run.open(output, "tinyvit", "digits-tiny", identity, values, fresh)


def start(output: Path, values: dict[str, Any] = TREE, identity: Any = IDENTITY, fresh: bool = False) -> Run:
    """Start the run and release it, as a process that ended."""
    run = find(output, values, identity, fresh)
    run.lock("python -m vitlab")
    run.release()
    return run


def test_new_continued_finished(output: Path) -> None:
    run = find(output)
    assert run.state == "new"
    assert not output.exists()  # finding a run, for a plan, writes nothing
    run.lock("python -m vitlab a=1")
    assert run.state == "new"
    run.release()

    again = find(output)
    assert (again.state, again.folder) == ("continued", run.folder)
    again.lock("python -m vitlab a=2")
    again.finish({"top1": 0.99})
    assert again.state == "finished"
    again.release()

    finished = find(output)
    assert finished.state == "finished"
    assert finished.read_finished()["top1"] == 0.99
    commands = [json.loads(line)["command"] for line in (run.folder / "commands.jsonl").read_text().splitlines()]
    assert commands == ["python -m vitlab a=1", "python -m vitlab a=2"]


def test_name_is_prefix_and_hash_of_identity(output: Path) -> None:
    names = {find(output, identity={"changed": {"recipe.lr": lr}}).name for lr in (1, 2, 2.5)}
    assert len(names) == 3
    assert all(name.startswith("digits-tiny-") and len(name) == len("digits-tiny-") + 8 for name in names)
    assert find(output, identity={"a": 1, "b": 2}).name == find(output, identity={"b": 2, "a": 1}).name
    # The names of existing folders must not change.
    assert find(output).name == "digits-tiny-3d850f2c"


def test_both_copies_of_the_configuration_are_equal(output: Path) -> None:
    run = start(output)
    stored = Run.at(run.folder).tree
    assert OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml")) == stored
    assert stored == json.loads(json.dumps(TREE))


def test_fresh_makes_numbered_siblings_and_the_newest_is_continued(output: Path) -> None:
    first = start(output)
    second = start(output, fresh=True)
    assert second.name == f"{first.name}-2"
    assert find(output).folder == second.folder
    numbers = [start(output, fresh=True).name.removeprefix(f"{first.name}-") for _ in range(9)]
    assert numbers == [str(n) for n in range(3, 12)]
    assert find(output).name == f"{first.name}-11"  # sorted by number, not by text
    assert find(output, fresh=True).name == f"{first.name}-12"


def test_fresh_without_a_run_is_the_first(output: Path) -> None:
    assert find(output, fresh=True).name == find(output).name


@pytest.mark.parametrize("key", sorted(RESULT_FREE))
def test_keys_that_cannot_change_the_result_may_differ(output: Path, key: str) -> None:
    run = start(output)
    assert find(output, {**TREE, key: {"changed": True}}).folder == run.folder


def test_changed_defaults_are_listed_and_refused(output: Path) -> None:
    run = start(output)
    new = tree(lr=2e-3, seed=7, decay_at=["1ep"])
    del new["recipe"]["clip"]
    new["recipe"]["ema"] = 0.999
    with pytest.raises(UserError) as caught:
        find(output, new)
    message = str(caught.value)
    for text in (
        str(run.folder),
        "recipe.lr: 0.001 → 0.002",
        "seed: 0 → 7",
        'recipe.decay_at: [] → ["1ep"]',
        "recipe.clip: null → absent",
        "recipe.ema: absent → 0.999",
        "fresh=true",
    ):
        assert text in message
    assert "betas" not in message
    assert find(output, new, fresh=True).state == "new"


def test_a_long_list_of_changes_is_counted(output: Path) -> None:
    start(output, {**TREE, "recipe": {f"k{i:02}": 0 for i in range(20)}})
    with pytest.raises(UserError, match=r"recipe\.k11: 0 → 1 and 8 more\."):
        find(output, {**TREE, "recipe": {f"k{i:02}": 1 for i in range(20)}})


def test_the_old_values_on_the_command_line_continue_the_old_run(output: Path) -> None:
    old = start(output)
    identity = {**IDENTITY, "changed": {"recipe.lr": 1e-3}}  # the current default is 2e-3
    assert find(output, TREE, identity).folder == old.folder
    # ... also if a run under the current defaults exists
    new = start(output, tree(lr=2e-3), fresh=True)
    assert find(output, TREE, identity).folder == old.folder
    assert find(output, tree(lr=2e-3)).folder == new.folder
    assert find(output, TREE).folder == old.folder


def test_runs_of_another_method_or_prefix_are_not_continued(output: Path) -> None:
    run = start(output)
    other: dict[str, Any] = {"choices": {}}
    assert Run.open(output, "supervised", "digits-tiny", other, TREE).state == "new"
    assert Run.open(output, "tinyvit", "digits", other, TREE).state == "new"
    assert Run.open(output, "tinyvit", "digits-tiny", other, TREE).folder == run.folder


def test_differences_are_by_value_not_by_type_of_container() -> None:
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == {}
    assert differences({"a": {"b": 1}}, {"a": {}}) == {"a": ("absent", "{}"), "a.b": ("1", "absent")}
    assert differences({"a": {"mode": 1}}, {"a": {"mode": 2}}) == {"a.mode": ("1", "2")}  # free at the top only


def test_stored_configurations_are_completed_before_the_comparison(output: Path) -> None:
    """``complete`` adds the defaults of new keys to a stored tree: an absent key counts as its default."""

    def complete(stored: Mapping[str, object]) -> dict[str, Any]:
        return {"since": None, **stored}

    old = start(output)
    new = {**TREE, "since": None}
    with pytest.raises(UserError, match="since: absent → null"):
        find(output, new)
    again = Run.open(output, "tinyvit", "digits-tiny", IDENTITY, new, complete=complete)
    assert (again.folder, again.state, again.tree["since"]) == (old.folder, "continued", None)
    other = {"choices": {"since": "default"}}  # a new group changes the name: the run is found by its tree
    assert Run.open(output, "tinyvit", "digits-tiny", other, new, complete=complete).folder == old.folder
    with pytest.raises(UserError, match="since: null → 5"):
        Run.open(output, "tinyvit", "digits-tiny", IDENTITY, {**TREE, "since": 5}, complete=complete)
    assert "since" not in Run.at(old.folder).tree and Run.at(old.folder, complete).tree["since"] is None


@pytest.mark.parametrize("prefix", ["", "a/b", "../up", "-a", ".hidden", "a b"])
def test_an_invalid_folder_name_is_refused(output: Path, prefix: str) -> None:
    with pytest.raises(UserError, match="name="):
        Run.open(output, "tinyvit", prefix, IDENTITY, TREE)


def test_a_folder_that_is_not_a_run_is_refused(output: Path) -> None:
    folder = find(output).folder
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"contains thesis\.tex"):
        find(output)
    with pytest.raises(UserError, match=r"no run\.json"):
        Run.at(folder)
    (folder / "thesis.tex").unlink()
    for trace in ("lock", "config.yaml", ".run.json.123.tmp"):  # killed during the creation of the folder
        (folder / trace).write_text("")
    run = start(output)
    assert Run.at(run.folder).state == "continued"
    assert not (folder / ".run.json.123.tmp").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_an_invalid_run_json_is_named(output: Path, text: str) -> None:
    run = start(output)
    (run.folder / "run.json").write_text(text)
    (run.folder / "config.yaml").unlink()  # from which it could be made again
    with pytest.raises(UserError, match=r"run\.json"):
        find(output)


def test_stages(output: Path) -> None:
    run = start(output)
    assert not run.is_done("store")
    with pytest.raises(RuntimeError, match="store"):
        run.read_done("store")
    assert run.stage_folder("store") == run.folder / "store"
    assert not run.is_done("store")  # a folder is no marker
    run.mark_done("store", {"seconds": 1.5, "fingerprint": "abc"})
    done = Run.at(run.folder).read_done("store")
    assert (done["stage"], done["seconds"], done["fingerprint"]) == ("store", 1.5, "abc")
    assert "time" in done
    with pytest.raises(RuntimeError, match="not finished"):
        run.read_finished()


def test_records_of_each_start(output: Path) -> None:
    run = start(output)
    run.note_environment({"cpu": "a"})
    run.note_environment({"cpu": "b"})
    text = (run.folder / "environment.jsonl").read_text()
    assert [json.loads(line)["cpu"] for line in text.splitlines()] == ["a", "b"]


def test_only_vitlabs_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".a.json.12.tmp", "deep/.b.7.tmp"):
        (tmp_path / name).write_text("")
    kept = ["a.tmp", ".tmp", ".notes.tmp", "deep/b.12.tmp"]
    for name in kept:
        (tmp_path / name).write_text("")
    assert remove_temporary_files(tmp_path) == 2
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


WORKER = """
import os, sys, time
from pathlib import Path
from vitlab.run.run import Run

run = Run.open(Path(sys.argv[1]), "tinyvit", "digits-tiny", {}, {"seed": 0})
run.lock("first")
ready, write_end = os.pipe()
child = os.fork() if sys.argv[2] == "fork" else 1
if sys.argv[2] == "fork" and not child:
    os.write(write_end, b".")  # the child runs: its fork handlers were called
elif sys.argv[2] == "fork":
    os.read(ready, 1)
if child:
    print(os.getpid(), child, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["alone", "fork"])
def test_a_locked_run_is_refused_and_released_after_kill(output: Path, kind: str) -> None:
    command = [sys.executable, "-c", WORKER, str(output), kind]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid, child = map(int, worker.stdout.readline().split())
        try:
            run = Run.open(output, "tinyvit", "digits-tiny", {}, {"seed": 0})
            assert run.state == "continued"
            (run.folder / ".half.1.tmp").write_text("of the process at work")
            for name in ("metrics.jsonl", "environment.jsonl"):
                (run.folder / name).write_bytes(b'{"half')
            with pytest.raises(UserError, match=rf"process {pid} on \S+ since .*fresh=true"):
                run.lock("second")
            assert (run.folder / ".half.1.tmp").exists()  # nothing of a run at work is touched
            assert (run.folder / "metrics.jsonl").read_bytes() == b'{"half'
            worker.kill()
            worker.wait()
            run.lock("second")  # at once, although a forked child lives on
            assert not (run.folder / ".half.1.tmp").exists()
            for name in ("metrics.jsonl", "environment.jsonl"):
                assert (run.folder / name).read_bytes() == b""  # cut, and not called damaged
            assert not list(run.folder.glob("*.damaged*"))
            run.release()
        finally:
            worker.kill()
            if kind == "fork":
                os.kill(child, 9)


def test_state_is_read_again_under_the_lock(output: Path) -> None:
    slow = find(output)
    quick = find(output)
    quick.lock("quick")
    with pytest.raises(UserError, match="is locked by process"):
        slow.lock("slow")
    quick.finish({})
    quick.release()
    slow.lock("slow")
    assert slow.state == "finished"
    slow.release()


def test_a_run_cannot_be_locked_twice(output: Path) -> None:
    run = find(output)
    run.lock("a")
    with pytest.raises(RuntimeError):
        run.lock("b")
    run.release()
    run.release()


def test_the_command_line_imports_no_torch() -> None:
    code = (
        "import sys, vitlab.run.run; print([m for m in ('torch', 'numpy', 'lightning', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_under_a_former_prefix_is_continued(output: Path) -> None:
    """A method whose runs are named otherwise since: the old run goes on, and a change of defaults is named."""
    old = start(output)
    again = Run.open(output, "tinyvit", "digits-designed", IDENTITY, TREE, former="digits-tiny")
    assert again.folder == old.folder and again.state == "continued"
    assert Run.open(output, "tinyvit", "digits-designed", IDENTITY, TREE).folder.name.startswith("digits-designed-")
    with pytest.raises(UserError, match="defaults have changed"):
        Run.open(output, "tinyvit", "digits-designed", IDENTITY, {**TREE, "seed": 7}, former="digits-tiny")
    fresh = Run.open(output, "tinyvit", "digits-designed", IDENTITY, TREE, fresh=True, former="digits-tiny")
    assert fresh.folder.name.startswith("digits-designed-")
