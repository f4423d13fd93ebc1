"""Stored labels at the prompt: verified, recomputed, converted to TinyViT's official files and back, trained from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.modes.conftest import ask
from vitlab.compose.load import load
from vitlab.data.build import open_splits
from vitlab.distill.sparse import sparsify
from vitlab.distill.store import TargetStore
from vitlab.methods.tinyvit.modes.contract import with_validation
from vitlab.methods.tinyvit.recheck import compare
from vitlab.models.artifact import load_model

SMALL = (
    "method=tinyvit",
    "dataset=digits",
    "debug=smoke",
    "debug.max_images=48",
    "debug.max_steps=6",
    "recipe.batch_size=16",
    "evaluation.latency=false",
    "export=none",
    "report.figures=false",
    "method.topk=5",
)
TEACHER = ("teacher.recipe.batch_size=16",)


def folder_of(output: Path) -> Path:
    """The one run below ``output``."""
    (found,) = output.glob("tinyvit/*/run.json")
    return found.parent


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that stored two views of 48 digits and trained from them."""
    output = tmp_path_factory.mktemp("stored")
    assert ask(output, *SMALL, *TEACHER, "method.baseline=false") == 0
    return folder_of(output)


def test_a_sound_store_is_sound(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "mode=verify", f"run={stored}", "method.recheck=30") == 0
    output = capsys.readouterr().out
    assert "48 images x 2 views, K=5 of 10 classes" in output and output.endswith("sound\n")
    assert "30 records recomputed" in output and "half-precision unit 0.00%" in output


def test_a_flipped_byte_and_another_teacher_are_found(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    records = copy / "store" / "targets" / "slot_00001" / "records.bin"
    data = bytearray(records.read_bytes())
    data[100] ^= 1
    records.write_bytes(data)
    assert ask(tmp_path, "mode=verify", f"run={copy}") == 2
    output = capsys.readouterr().out
    assert "slot 1, images 0..47: checksum" in output and output.endswith("NOT SOUND\n")

    shutil.rmtree(copy / "store")
    shutil.copytree(stored / "store", copy / "store")
    other = copy / "teacher"
    network = load_model(other)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    from vitlab.models.artifact import read_meta, save_model

    save_model(other, network, read_meta(other))
    assert ask(tmp_path, "mode=verify", f"run={copy}", "method.recheck=10") == 2
    assert "NOT SOUND" in capsys.readouterr().out


def test_mixed_labels_are_recomputed_in_their_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = ("recipe.augmentation.mixup=0.8", "recipe.augmentation.cutmix=1.0", "method.baseline=false")
    assert ask(tmp_path, *SMALL, *TEACHER, *mixed) == 0
    assert ask(tmp_path, "mode=verify", f"run={folder_of(tmp_path)}", "method.recheck=16") == 0
    assert "16 records recomputed" in capsys.readouterr().out


def test_ties_are_no_difference() -> None:
    """Two classes tie: their order may change and no stored value is off."""
    stored = sparsify(torch.tensor([[0.375, 0.375, 0.25, 0.0]]), 3)
    stored.index = torch.tensor([[1, 0, 2]])
    error, differs, absent, off = compare(stored, torch.tensor([[0.375, 0.375, 0.25, 0.0]]))
    assert differs.tolist() == [[True, True, False]]
    assert not error.any() and not absent.any() and not off.any()
    error, differs, absent, off = compare(stored, torch.tensor([[0.375, 0.375, 0.1, 0.15]]))
    assert absent.tolist() == [[False, False, True]] and off.tolist() == [[False, False, True]]


@pytest.mark.parametrize("ranks", [1, 3])
def test_there_and_back_and_trained_from(stored: Path, tmp_path: Path, ranks: int) -> None:
    """A student learns bit for bit the same from our store, from official files of it, and from those imported."""
    v0, back = tmp_path / "v0", tmp_path / "back"
    assert ask(tmp_path, "mode=convert", f"run={stored}", f"method.convert_to={v0}", f"method.ranks={ranks}") == 0
    assert sorted(path.name for path in v0.iterdir()) == ["logits_top5_epoch0", "logits_top5_epoch1"]
    assert len(list((v0 / "logits_top5_epoch0").iterdir())) == 2 * ranks
    requested = ("dataset=digits", "debug=smoke", "debug.max_images=48")
    assert ask(tmp_path, "mode=convert", *requested, f"method.store={v0}", f"method.convert_to={back}") == 0
    assert ask(tmp_path, "mode=verify", *requested, f"method.store={v0}") == 0
    ours, again = TargetStore.open(stored / "store" / "targets"), TargetStore.open(back)
    index = np.arange(48)
    for slot in range(2):
        assert ours.records(slot, index).tobytes() == again.records(slot, index).tobytes()
    wanted = (stored / "pretrain" / "model.safetensors").read_bytes()
    for number, store in enumerate((v0, back)):
        output = tmp_path / f"trained{number}"
        assert ask(output, *SMALL, "method.baseline=false", "evaluation.batch_size=64", f"method.store={store}") == 0
        run = folder_of(output)
        assert (run / "pretrain" / "model.safetensors").read_bytes() == wanted
        assert not (run / "teacher").exists()


def test_mistakes_are_answered(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = f"method.store={stored}/store/targets"
    longer = [word.replace("max_steps=6", "max_steps=9") for word in SMALL]
    for words, message in (
        (["mode=verify"], "none is named"),
        (["mode=verify", "method.store=nowhere"], "there is no such folder"),
        (["mode=convert", f"run={stored}"], "method.convert_to=FOLDER"),
        (["mode=convert", f"run={stored}", f"method.convert_to={stored}"], "is not empty"),
        (["mode=verify", own, "method.recheck=3", "debug.max_images=48"], "no trained"),
        (["mode=contract", "method=supervised"], "mode=contract is TinyViT's"),
        (["mode=contract", "method.contract.proxy=guess"], "none of train, params"),
        ([*longer, own, "method.replay=exact"], "2 stored views"),
        (["method.distill=false", f"model.checkpoint={stored}/pretrain"], "method.finetune names no recipe"),
        ([*SMALL, "teacher.train=false", "teacher.recipe=null"], "is a network without weights"),
    ):  # fmt: skip
        assert ask(tmp_path, *words) == 2, words
        assert message in capsys.readouterr().err.replace("\n", " "), words


def test_contraction_at_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "mode=contract", "dataset=digits", "debug=smoke", "debug.max_images=48", "recipe.batch_size=16",
        "method.contract.params=200e3", "method.contract.speed=0", "method.contract.steps=1",
        "method.contract.candidates=2", "method.contract.duration=2st", "method.contract.tolerance=0.1",
        "method.contract.holdout=0.2",
    )  # fmt: skip
    assert ask(tmp_path, *words) == 0
    output = capsys.readouterr().out
    assert "**chosen**" in output and "from 258,773 to" in output and "the head of 10 classes is" in output
    (found,) = tmp_path.glob("contract/*/contraction.json")
    assert json.loads(found.read_text())["params"] <= 200e3
    assert not list(found.parent.glob("candidates/*")), "networks of candidates are not kept"
    assert ask(tmp_path, *words) == 0
    assert capsys.readouterr().out == output, "a finished search is printed again"
    small = [word.replace("200e3", "50e3") for word in words]
    assert ask(tmp_path, *small) == 2
    assert "Give method.contract.steps=" in " ".join(capsys.readouterr().err.split())
    assert len(list(tmp_path.glob("contract/*"))) == 1, "a refused search leaves no folder"


def test_candidates_are_not_chosen_on_the_test_split() -> None:
    """Section 7: 99 to 1 of the training images; a set with a validation split keeps it."""
    dataset = load(["dataset=digits"]).config.dataset
    full, judged = open_splits(dataset, 0), open_splits(with_validation(dataset, 0, 0.01), 0)
    train, val, test = (set(judged[split].keys) for split in ("train", "val", "test"))
    assert not train & val and not val & test and train | val == set(full["train"].keys)
    assert test == set(full["test"].keys) and len(val) == 10, "one image of each digit: the nearest to a hundredth"
    apart = with_validation(dataset, 0, 0.2)
    assert with_validation(apart, 0, 0.01) == apart


def test_throughput_at_the_prompt(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "mode=throughput", f"run={stored}/pretrain", "debug.max_steps=1") == 0
    assert "student, teacher's labels" in capsys.readouterr().out


def test_modes_are_composed() -> None:
    for mode in ("verify", "convert", "contract", "throughput"):
        assert load([f"mode={mode}"]).config.mode == mode
