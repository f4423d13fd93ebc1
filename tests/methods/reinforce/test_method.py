"""Reinforcing through the prompt: what decides the bytes, what is refused, what is read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.contract.story import SMALL, TEACHER, the_run
from vitlab.cli.main import main
from vitlab.distill.store import TargetStore
from vitlab.methods.reinforce.generate import filter_of

SHORT = {
    **dict(word.split("=", 1) for word in SMALL),
    "method": "reinforce",
    "method.erm": "false",
    "debug.max_steps": "3",
    "debug.max_slots": "3",
}


KD = {
    **{"lr": "2e-6", "batch_size": "8", "schedule": "constant", "warmup": "0st", "warmup_lr": "0", "min_lr": "0"},
    **{
        "decay_norms": "true",
        "augmentation__randaug": "torchvision-m9-n2",
        "augmentation__erase": "0.5",
        "augmentation__erase_mode": "black",
    },
}


def run_command(output: Path, **changes: str) -> int:
    """A short story with these keys (a dot is written __); its exit code."""
    words = SHORT | {name.replace("__", "."): value for name, value in changes.items()} | {"output": str(output)}
    return main([f"{name}={value}" for name, value in words.items()])


def stored(run: Path) -> dict[str, bytes]:
    folder = run / "reinforce" / "targets"
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".bin", ".txt")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reinforce")
    assert run_command(output, method__views__variant="randaug_mixing") == 0
    return the_run(output)


def test_batches_and_workers_do_not_decide_the_bytes(run: Path, tmp_path: Path) -> None:
    """Labelled by the same teacher, which is not trained again; the student's steps are one."""
    other = {"recipe__batch_size": "8", "evaluation__batch_size": "5", "hardware__workers": "2"}
    other |= {"teacher__train": "false", "teacher__members.0.checkpoint": str(run / "teacher"), "debug__max_steps": "1"}
    assert run_command(tmp_path, method__views__variant="randaug_mixing", **other) == 0
    assert stored(the_run(tmp_path)) == stored(run)


def test_the_store_is_sound_and_says_what_it_is(run: Path) -> None:
    store = TargetStore.open(run / "reinforce" / "targets")
    assert store.verify() == []
    assert store.spec.k == 10 and store.spec.slots == 3  # ten digits: K is all of them
    record = json.loads((run / "reinforce" / "done.json").read_text())
    assert record["bytes"] == store.spec.record.itemsize * 80 * 3 and store.spec.record.itemsize == 113
    assert store.spec.augmentation["interpolation"] == "bicubic", "the recipe's filter, as the baselines have it"


def test_a_store_that_was_begun_keeps_its_filter(run: Path, tmp_path: Path) -> None:
    """A former version stored bilinear views whatever the recipe, and stated no filter."""
    assert filter_of(tmp_path, "bicubic") == "bicubic"
    assert filter_of(run / "reinforce" / "targets", "nearest") == "bicubic"
    (tmp_path / "store.json").write_text(json.dumps({"augmentation": {"variant": "rrc"}}))
    assert filter_of(tmp_path, "bicubic") == "bilinear"


def test_stored_reinforcements_train_another_student(run: Path, tmp_path: Path) -> None:
    """No teacher is made, none is needed."""
    store = str(run / "reinforce" / "targets")
    assert run_command(tmp_path, method__store=store, mode="check") == 0
    assert run_command(tmp_path, method__store=store, method__p="1", method__sampling="cycle") == 0
    assert sorted(path.parent.name for path in the_run(tmp_path).glob("*/model.json")) == ["train"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.views.variant=center", "method.samples=1"),
        ("method.views.variant=all", "none of rrc, mixing"),
        ("method.views.flip=2", "method.views.flip"),
        ("method.sampling=random", "none of uniform, cycle"),
        ("method.samples=0", "method.samples"),
        ("method.p=1.5", "method.p"),
        ("teacher=none", "mode=list group=teacher"),
        ("method.densify=zeros method.densify_compat=official", "method.p=1"),
    ],
)
def test_contradictions_are_answered(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tmp_path, **dict(one.replace(".", "__").split("=") for one in word.split())) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*/run.json"))


@pytest.mark.parametrize("variant", ["rrc", "mixing", "randaug", "center"])
def test_every_variant_runs_also_with_two_classes(variant: str, tmp_path: Path) -> None:
    """K is clipped to the number of classes; the fifth variant is that of the other tests."""
    binary = {"dataset": "fake", "dataset__num_classes": "2", "dataset__size": "32", "recipe": "digits"}
    binary |= {"model": "tiny_vit_digits", "teacher": "digits", "method__samples": "1" if variant == "center" else "50"}
    binary |= dict(word.replace(".", "__").split("=") for word in TEACHER)
    assert run_command(tmp_path, method__views__variant=variant, method__sampling="cycle", **binary) == 0
    store = TargetStore.open(the_run(tmp_path) / "reinforce" / "targets")
    assert (store.spec.k, store.spec.classes, store.spec.slots) == (2, 2, 1 if variant == "center" else 3)
    assert store.verify() == []


def test_the_teacher_says_again_what_is_stored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same backend: within rounding. The other backend makes other pixels, and the report says by how much."""
    assert main(["mode=verify", f"run={run}", "method=reinforce", "method.recheck=60", "hardware=cpu"]) == 0
    output = capsys.readouterr().out
    assert "60 views labelled again: top-1 agreement 100.00%" in output and "(at most 1.0e-05)" in output
    words = ("method.recheck=60", "method.backend=tensor", "hardware=cpu")
    main(["mode=verify", f"run={run}", "method=reinforce", *words])
    assert "(at most 1.1e-02)" in capsys.readouterr().out
    from vitlab.models.artifact import load_model, read_meta, save_model

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    network = load_model(copy / "teacher")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    save_model(copy / "teacher", network, read_meta(copy / "teacher"))
    assert main(["mode=verify", f"run={copy}", "method=reinforce", "method.recheck=20", "hardware=cpu"]) == 2
    assert "NOT SOUND" in capsys.readouterr().out


def test_tensor_views_are_replayed_as_tensor_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tmp_path, method__backend="tensor", method__precision="tf32") == 0
    made = the_run(tmp_path)
    assert TargetStore.open(made / "reinforce" / "targets").spec.teacher["backend"] == "tensor"
    assert main(["mode=verify", f"run={made}", "method=reinforce", "method.recheck=60", "hardware=cpu"]) == 0
    assert "top-1 agreement 100.00%" in capsys.readouterr().out


def test_reinforced_training_takes_the_steps_of_plain_training_and_no_teacher(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitlab.training.train as training
    from vitlab.distill.teachers import OnlineTeacher

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a teacher was made")

    monkeypatch.setattr(training, "make_teacher", never)
    monkeypatch.setattr(OnlineTeacher, "__init__", never)
    store = str(run / "reinforce" / "targets")
    words = {"method__store": store, "method__erm": "true", "debug__max_steps": "null", "recipe__duration": "2ep"}
    assert run_command(tmp_path, **words) == 0
    plain, reinforced = (
        json.loads((the_run(tmp_path) / stage / "done.json").read_text()) for stage in ("erm", "train")
    )
    assert plain["steps"] == reinforced["steps"] == 2 * (80 // 16) and plain["images"] == reinforced["images"] == 80


def test_the_teacher_at_every_step_may_have_a_recipe_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published: other weight decay, other MixUp; and with torchvision's RandAugment and black boxes."""
    words = {"only": "kd", "method__kd": "true", "recipe@method__kd_recipe": "digits", "logger__every": "1"}
    words |= {"method__kd_recipe__" + key: value for key, value in KD.items()}
    words |= {"teacher__train": "false", "teacher__members.0.checkpoint": str(run / "teacher")}
    assert run_command(tmp_path, **words) == 0
    assert "same student, teacher at every step · 3st, batches of 8" in capsys.readouterr().out
    rows = [json.loads(line) for line in (the_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["stage"] == "kd" and "lr" in row]
    assert rates and max(rates) == 2e-6


def test_a_store_of_the_other_kind_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    assert run_command(tmp_path / "out", method__store=str(run), method__erm="true") == 2
    output = " ".join(capsys.readouterr().err.split())
    assert "That is a run; give its reinforced data" in output and "reinforce/targets" in output
    store = TargetStore.open(run / "reinforce" / "targets")
    spec = replace(store.spec, protocol="tinyvit-1", fields=(), slots=1)
    TargetStore.create(tmp_path / "labels", spec, list(store.keys()))
    assert run_command(tmp_path / "out", method__store=str(tmp_path / "labels"), method__erm="true") == 2
    assert "method=tinyvit" in capsys.readouterr().err
    other = {"debug__max_images": "79", "method__store": str(run / "reinforce" / "targets"), "method__erm": "true"}
    assert run_command(tmp_path / "out", **other) == 2
    assert "another data set" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("model.safetensors")), "something was trained first"
