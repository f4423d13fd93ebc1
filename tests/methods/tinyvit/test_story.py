"""All stages of TinyViT by command: stored, killed, continued, verified, pretrained, finetuned, evaluated."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.contract.story import TEACHER, assert_same, at, run_and_kill, run_command, the_run
from tests.modes.conftest import ask
from vitlab.compose.load import load
from vitlab.distill.store import TargetStore
from vitlab.distill.store_writer import SlotWriter
from vitlab.models.artifact import load_model, read_meta
from vitlab.models.imagenet22k import CLASSES, wordnet_ids_22k
from vitlab.models.tinyvit_weights import to_official
from vitlab.run.recorder import read_rows
from vitlab.training.learner import Learner

SMOKE = ("experiment=tinyvit_smoke", "method.finetune.validate_every=1ep", *TEACHER)

ABSENT = "n04399382"
"""The one class of ImageNet-1k that ImageNet-22k lacks."""

NAMES = sorted(["n01440764", "n01443537", "n02123045", "n07753592", ABSENT])
"""WordNet ids that stand for the digits 0 to 4."""

BLOCKS = 5
SHAPE: dict[str, Any] = {
    "embed_dims": [8, 16, 32, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_sizes": [8, 4, 2, 1],
}  # fmt: skip


def test_store_crash_resume_verify_pretrain_finetune_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Section 8's chain; what was killed twice ends with the bytes of what never was."""
    killed, full = tmp_path / "killed", tmp_path / "whole"
    writes = itertools.count()
    with at(SlotWriter, "flush", lambda writer: next(writes) == 1, signal.SIGKILL):
        run_and_kill(killed, *SMOKE)
    run = the_run(killed)
    assert ask(killed, "mode=verify", f"run={run}") == 2
    assert "not sealed" in capsys.readouterr().out

    finetuning = lambda learner: bool(learner.frozen) and learner.step == 6  # noqa: E731
    with at(Learner, "after_step", finetuning, signal.SIGKILL):
        run_and_kill(killed, *SMOKE)
    assert (run / "pretrain" / "done.json").exists() and not (run / "finetune" / "done.json").exists()
    assert ask(killed, "mode=verify", f"run={run}", "method.recheck=20") == 0
    output = capsys.readouterr().out
    assert "K=3 of 10 classes" in output and output.endswith("sound\n")

    assert run_command(killed, *SMOKE) == 0
    assert run_command(full, *SMOKE) == 0
    assert_same(run, the_run(full))
    capsys.readouterr()
    assert ask(killed, "mode=evaluate", f"run={run}") == 0
    assert "student, finetuned on labels" in capsys.readouterr().out


def test_several_runs_fill_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run labels the second view of every image and stops; another labels the rest and trains from both."""
    words = (*SMOKE, f"method.store_to={tmp_path / 'shared'}", "method.finetune=null")
    assert run_command(tmp_path / "part", *words, "method.store_views=[1,3]") == 2
    assert "2 views of every image" in capsys.readouterr().err.replace("\n", " ")
    assert run_command(tmp_path / "part", *words, "method.store_views=[1,2]", "fresh=true") == 0
    part = max((tmp_path / "part").glob("*/*/finished.json")).parent
    assert not (part / "pretrain").exists()
    assert [TargetStore.open(tmp_path / "shared", allow_partial=True).count(slot) for slot in (0, 1)] == [0, 80]
    assert run_command(tmp_path / "rest", *words) == 0
    rest = the_run(tmp_path / "rest")
    assert (rest / "pretrain" / "model.json").exists() and not (rest / "store" / "targets").exists()
    capsys.readouterr()
    assert ask(tmp_path, "mode=verify", f"run={rest}", "method.recheck=20") == 0
    assert "80 images x 2 views" in capsys.readouterr().out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits as files, in folders named like classes of ImageNet."""
    root = tmp_path_factory.mktemp("photos")
    data = load_digits(n_class=len(NAMES))
    for number, (pixels, label) in enumerate(zip(data.images[:160], data.target[:160], strict=True)):
        split = "test" if number % 4 == 0 else "train"
        folder = root / split / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 21,841 classes in the layout of the official checkpoints, look-up tables included."""
    torch.manual_seed(3)
    network = timm.create_model("tiny_vit_5m_224", num_classes=CLASSES, **SHAPE)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "attention_biases", "bias")):
                value.normal_(0, 0.1)
            elif name.endswith(("running_var", "bn.weight")):
                value.uniform_(0.5, 1.5)
    state = to_official(network.state_dict())
    tables = [name for name in state if name.endswith("attention_biases")]
    state |= {f"{name.removesuffix('es')}_idxs": torch.zeros(1, 1, dtype=torch.int64) for name in tables}
    path = tmp_path_factory.mktemp("official") / "tiny_vit_22k_distill.pth"
    torch.save({"model": state, "epoch": 89}, path)
    return path


def finetuning(photos: Path, start: Path, *more: str, recipe: str = "tinyvit_finetune", size: int = 32) -> list[str]:
    shape = [f"model.args.{key}={value}" for key, value in SHAPE.items() if f"model.args.{key}" not in str(more)]
    return [
        "method=tinyvit", "method.distill=false", f"recipe@method.finetune={recipe}", "dataset=folder",
        f"dataset.root={photos}", f"dataset.size={size}", "model=tiny_vit_digits", *shape,
        f"model.checkpoint={start}", "method.finetune.batch_size=16", "method.finetune.validate_every=2st",
        "method.finetune.augmentation.randaug=null", "method.finetune.duration=11st",
        "method.finetune.warmup=10%", "export=none", "report.figures=false", "logger.every=3",
        "evaluation.latency=false",
        *more,
    ]  # fmt: skip


def statistics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if ".running_" in name}


def test_from_an_official_checkpoint_to_fewer_classes_and_to_larger_views(
    photos: Path, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """22k to the classes of a folder, then to views twice as large: stopped, continued, evaluated."""
    first = finetuning(photos, official)
    with at(Learner, "after_step", lambda learner: learner.step == 4, signal.SIGTERM):
        assert ask(tmp_path / "stopped", *first) == 130
    assert ask(tmp_path / "stopped", *first) == 0
    assert ask(tmp_path / "whole", *first) == 0
    run = the_run(tmp_path / "whole")
    assert_same(run, the_run(tmp_path / "stopped"))

    small = load_model(run / "finetune")
    assert read_meta(run / "finetune").classes == NAMES and read_meta(run / "finetune").origin == str(official)
    before = timm.create_model("tiny_vit_5m_224", num_classes=CLASSES, **SHAPE)
    from vitlab.models.checkpoints import load_weights, read_weights

    load_weights(before, read_weights(official), "")
    old, new = before.state_dict(), small.state_dict()
    assert all(new[name].equal(value) for name, value in statistics(old).items()), "BatchNorm stood still"
    assert not new["stages.0.blocks.0.conv1.bn.weight"].equal(old["stages.0.blocks.0.conv1.bn.weight"])

    # Eleven steps of AdamW move no weight further than about the sum of their rates.
    rows = [row for row in read_rows(run / "metrics.jsonl") if "lr" in row]
    rates = [float(str(row["lr"])) for row in rows]
    assert [float(str(row["lr_lowest"])) / rate for row, rate in zip(rows, rates, strict=True)] == pytest.approx(
        [0.8 ** (BLOCKS - 1)] * len(rows)
    )
    reach = 11 * 5e-4
    place = {name: number for number, name in enumerate(wordnet_ids_22k())}
    there = [name for name in NAMES if name != ABSENT]
    found = torch.stack([old["head.fc.weight"][place[name]] for name in there])
    wanted = torch.stack([found.mean(0) if name == ABSENT else old["head.fc.weight"][place[name]] for name in NAMES])
    moved = (new["head.fc.weight"] - wanted).abs().max()
    assert 0 < moved <= reach, "the head began with its classes' rows of the 21,841"
    lowest = (new["patch_embed.conv1.conv.weight"] - old["patch_embed.conv1.conv.weight"]).abs().max()
    assert 0 < lowest <= reach * 0.8 ** (BLOCKS - 1)

    # To views twice as large, their windows doubled: 224 to 384 and 512 in small.
    more = ("dataset.crop_pct=1.0", "model.args.window_sizes=[16,8,4,2]", "method.finetune.accumulate=2")
    larger = finetuning(photos, run / "finetune", *more, recipe="tinyvit_resolution", size=64)
    capsys.readouterr()
    assert ask(tmp_path / "larger", *larger) == 0
    large_run = the_run(tmp_path / "larger")
    large = load_model(large_run / "finetune")
    assert read_meta(large_run / "finetune").size == 64
    state = large.state_dict()
    assert all(state[name].equal(value) for name, value in statistics(old).items())
    table = "stages.1.blocks.0.attn.attention_biases"
    assert (new[table].shape, state[table].shape) == ((1, 16), (1, 64))
    assert (state["head.fc.weight"] - new["head.fc.weight"]).abs().max() <= 11 * 4e-5, "the head was kept"
    assert large(torch.zeros(1, 3, 64, 64)).shape == (1, len(NAMES))
    assert ask(tmp_path / "larger", "mode=evaluate", f"run={large_run}") == 0
    output = capsys.readouterr().out
    assert "student, finetuned on labels" in output


def test_the_weights_a_finetuning_starts_from_are_the_checkpoints(photos: Path, official: Path) -> None:
    """Before the first step, on the same pixels: the mapped logits of the checkpoint itself."""
    from vitlab.models.build import build_model
    from vitlab.models.checkpoints import load_weights, read_weights

    config = load(finetuning(photos, official, "model.args.absent_class=zero")).config
    network = build_model(config.model, len(NAMES), 32, NAMES).eval()
    before = timm.create_model("tiny_vit_5m_224", num_classes=CLASSES, **SHAPE).eval()
    load_weights(before, read_weights(official), "")
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, all_logits = network(image), before(image)
    place = {name: number for number, name in enumerate(wordnet_ids_22k())}
    for column, name in enumerate(NAMES):
        wanted = torch.zeros(2) if name == ABSENT else all_logits[:, place[name]]
        torch.testing.assert_close(logits[:, column], wanted, rtol=1e-5, atol=1e-6)
