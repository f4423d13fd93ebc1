"""What a training promises beyond the methods' contract: every switch of a recipe, together and one by one."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.story import assert_same, at, run_command, the_run
from vitlab.config import RecipeConfig
from vitlab.data.batch import Batch
from vitlab.distill.teachers import OnlineTeacher
from vitlab.run.recorder import read_rows
from vitlab.tasks.parts import losses
from vitlab.training import objectives
from vitlab.training.learner import Learner, step_seed
from vitlab.training.schedule import Schedule, slow_average

PLAIN = ("method=supervised", "evaluation=quick")
EVERYTHING = (
    *PLAIN,
    "recipe.ema=0.9",
    "recipe.accumulate=2",
    "recipe.layer_decay=0.8",
    "recipe.label_smoothing=0.1",
    "model.args.drop_path_rate=0.2",
    "recipe.augmentation.randaug=rand-m9-mstd0.5-inc1",
    "recipe.augmentation.erase=0.25",
    "recipe.augmentation.mixup=0.8",
    "recipe.augmentation.cutmix=1.0",
    "recipe.optimizer=lamb",
    "recipe.head_lr=3",
    "recipe.balance=sampler",
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "train" / "model.safetensors")


def test_everything_at_once_continues_bit_for_bit(tmp_path: Path) -> None:
    """Weight average, accumulation, drop path, mixing, erasing: stopped in mid-epoch between two records."""
    assert run_command(tmp_path / "a", *EVERYTHING) == 0
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7, signal.SIGTERM):
        assert run_command(tmp_path / "b", *EVERYTHING) == 130
    assert run_command(tmp_path / "b", *EVERYTHING) == 0
    assert_same(the_run(tmp_path / "a"), the_run(tmp_path / "b"))


@pytest.mark.parametrize("balance", ["weight", "sampler", "logit_adjust"])
def test_training_on_a_teachers_outputs_is_not_balanced(
    balance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the teacher is trained."""
    assert run_command(tmp_path, "method=tinyvit", f"recipe.balance={balance}") == 2
    assert f"recipe.balance={balance}: method=tinyvit trains on a teacher's outputs" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not list(tmp_path.glob("tinyvit/*/teacher/*"))


def test_the_objective_is_balanced_by_the_classes_of_the_training_images(tmp_path: Path) -> None:
    """Digits with many zeros: the first loss differs between the objectives, all else being equal."""
    lines = ["path,split"]
    for key, label in zip(*_digits(), strict=True):
        lines.append(f"{key},{'test' if int(key) % 4 == 0 else 'unused' if label and int(key) > 200 else 'train'}")
    (tmp_path / "split.csv").write_text("\n".join(lines) + "\n")
    losses = {}
    for balance in ("none", "weight", "logit_adjust"):
        words = (f"dataset.split_file={tmp_path / 'split.csv'}", f"recipe.balance={balance}", "logger.every=1")
        assert run_command(tmp_path / balance, *PLAIN, *words, "debug.max_images=null", "debug.max_steps=1") == 0
        run = the_run(tmp_path / balance)
        losses[balance] = next(float(row["loss"]) for row in read_rows(run / "metrics.jsonl") if "loss" in row)  # type: ignore[arg-type]
    assert len({round(one, 4) for one in losses.values()}) == 3


def _digits() -> tuple[list[str], list[int]]:
    from vitlab.config import DatasetConfig
    from vitlab.data.sets.digits import splits
    from vitlab.data.sources import Pool, labels_of

    pool = Pool(splits(DatasetConfig(name="digits", size=32)))
    return list(pool.keys), labels_of(pool).tolist()


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    """Four micro-batches of 4 = one batch of 16, for a network whose output does not depend on the batch."""
    sizes = ("model.args.embed_dim=32", "model.args.depth=1", "model.args.num_heads=2", "model.args.patch_size=8")
    model = ("model=deit_tiny", "model.pretrained=false", *sizes, "recipe.optimizer=sgd")
    for name, parts in (("whole", 1), ("parts", 4)):
        assert run_command(tmp_path / name, *PLAIN, *model, f"recipe.accumulate={parts}") == 0
    full, parts_ = weights(the_run(tmp_path / "whole")), weights(the_run(tmp_path / "parts"))
    for name in full:
        torch.testing.assert_close(full[name], parts_[name], rtol=0, atol=1e-6)


def sgd(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters())


def test_weight_average_follows_the_student_and_is_the_result() -> None:
    """After the first step the average is the student; then average = decay * average + (1 - decay) * student."""
    student = torch.nn.Linear(1, 1, bias=False)
    learner = Learner(student, objectives.label_cross_entropy, Schedule("constant", 1.0, 3), sgd, ema=0.75)
    for value in (1.0, 5.0, 3.0):
        student.weight.data.fill_(value)
        learner.after_step()
    assert isinstance(learner.result, torch.nn.Linear)
    assert learner.result.weight.item() == 0.75 * (0.75 * 1.0 + 0.25 * 5.0) + 0.25 * 3.0
    assert learner.result is not student


def test_processes_and_batches_draw_different_random_numbers() -> None:
    """Dropout would else drop the same units in every process; the same process and batch draw the same again."""

    class Ranked(Learner):
        global_rank = 0

    schedule = Schedule("constant", lr=0.1, total=4, warmup=0, warmup_lr=0.0, min_lr=0.0)
    drawn = []
    for rank, batches in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)):
        learner = Ranked(torch.nn.Linear(2, 2), objectives.label_cross_entropy, schedule, sgd, seed=3)
        Ranked.global_rank, learner.batches = rank, batches
        learner.on_train_batch_start(Batch.__new__(Batch), 0)
        drawn.append(tuple(torch.rand(3).tolist()))
    assert len(set(drawn)) == 4 and drawn[0] == drawn[-1]
    assert len({step_seed(*key) for key in itertools.product(range(8), repeat=3)}) == 512


def test_an_average_that_is_too_slow_is_named_and_warmed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.9999 over 11 steps keeps the network that was just initialised."""
    assert run_command(tmp_path / "slow", *PLAIN, "recipe.ema=0.9999") == 0
    assert "recipe.ema=0.9999 is too slow for 11 steps: 100 % of the kept weights" in capsys.readouterr().err
    done = json.loads((the_run(tmp_path / "slow") / "train" / "done.json").read_text())
    assert "too slow for 11 steps" in done["notes"][0]
    words = (*PLAIN, "recipe.ema=0.9999", "recipe.ema_warmup=true")
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7, signal.SIGTERM):
        assert run_command(tmp_path / "warm", *words) == 130
    assert run_command(tmp_path / "warm", *words) == 0, "the decay follows from the step"
    assert "too slow" not in capsys.readouterr().err
    assert run_command(tmp_path / "straight", *words) == 0
    assert_same(the_run(tmp_path / "straight"), the_run(tmp_path / "warm"))
    kept, first = weights(the_run(tmp_path / "warm")), weights(the_run(tmp_path / "slow"))
    assert max(float((kept[name] - first[name]).abs().max()) for name in kept if kept[name].is_floating_point()) > 1e-3


def test_an_average_that_follows_is_not_remarked_on() -> None:
    recipe = RecipeConfig(duration="1ep", batch_size=1, optimizer="sgd", lr=1.0, weight_decay=0.0, ema=0.9)
    assert slow_average(recipe, 100) == "" and slow_average(recipe, 1) == "" and "0.9" in slow_average(recipe, 3)


def test_teacher_is_in_no_checkpoint() -> None:
    """Nor in .parameters(), so that neither optimiser nor gradient buckets know it."""
    network = torch.nn.Linear(1, 1)
    teacher = OnlineTeacher(torch.nn.Linear(3, 3), [0.5] * 3, [0.5] * 3, 8, [0.5] * 3, [0.5] * 3)
    schedule = Schedule("constant", 1.0, 1)
    learner = Learner(network, objectives.distillation, schedule, sgd, teacher=teacher)
    assert set(learner.state_dict()) == {"student.weight", "student.bias"}
    assert len(list(learner.parameters())) == 2


def test_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = losses.label_cross_entropy

    def at_fifth(logits: torch.Tensor, label: torch.Tensor, target: object = None, *, smoothing: float = 0.0) -> object:
        calls.append(label)
        losses = honest(logits, label, smoothing=smoothing)
        return {"loss": losses["loss"] * float("nan")} if len(calls) == 8 else losses

    calls: list[torch.Tensor] = []
    monkeypatch.setattr(losses, "label_cross_entropy", at_fifth)
    assert run_command(tmp_path, *PLAIN) == 2
    output = " ".join(capsys.readouterr().err.split())
    assert "the loss is not finite at step 7" in output and "recipe.lr" in output
    what = json.loads((the_run(tmp_path) / "train" / "not_finite.json").read_text())
    assert (what["step"], what["batch"]) == (7, 7)
    assert len(what["index"]) == 16 and set(what["slot"]) == {1}  # five batches an epoch: the second epoch
    monkeypatch.setattr(losses, "label_cross_entropy", honest)
    assert run_command(tmp_path, *PLAIN) == 0, "the last checkpoint is from before, and the run goes on from it"


def test_one_value_per_channel_ends_a_training_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a network that the preflight does not see: a stage's own."""
    monkeypatch.setattr("vitlab.launch.stages.preflight", lambda *_: None)
    words = ("model=resnet18", "model.name=test_resnet", "model.pretrained=false", "recipe.accumulate=16")
    assert run_command(tmp_path, *PLAIN, *words) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "leave BatchNorm one value per channel" in message and "Traceback" not in message


def test_a_network_that_overflows_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After one step at such a rate the weights are finite still, and so was the loss."""
    words = ("recipe.optimizer=sgd", "recipe.lr=1e30", "recipe.schedule=constant", "recipe.clip=null")
    assert run_command(tmp_path, *PLAIN, *words, "debug.max_steps=1") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "after step 1 the network's outputs for 80 validation images are not finite" in message
    assert "No checkpoint was written before." in message and "Lower recipe.lr" in message
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("checkpoint.ckpt"))


@pytest.mark.parametrize(("kind", "words"), [("weights", ()), ("averaged weights", ("recipe.ema=0.9",))])
def test_a_checkpoint_has_finite_weights(
    kind: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is named, and what is said of the checkpoint is true: the run goes on from it."""

    def spoil(learner: Learner) -> bool:
        if learner.step + 1 == 5:
            spoiled = learner.student if kind == "weights" else learner.result
            next(spoiled.parameters()).data.view(-1)[0] = float("inf")
        return False

    words = (*PLAIN, *words, "recipe.checkpoint_every=1st", "recipe.validate_every=11st")
    with at(Learner, "after_step", spoil, signal.SIGTERM):
        assert run_command(tmp_path, *words) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"Stage train: {kind} that are not finite after step 5 (" in message
    assert "The checkpoint is of step 4, with finite weights." in message
    assert run_command(tmp_path, *words) == 0


def test_record_has_named_losses_rates_and_norms(tmp_path: Path) -> None:
    assert run_command(tmp_path, *PLAIN, "recipe.clip=0.5") == 0
    rows = [row for row in read_rows(the_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 11]
    for row in rows:
        assert {"loss", "train_accuracy", "lr", "gradient_norm", "images_per_second", "data_ms"} <= row.keys()


def test_lower_precision_trains(tmp_path: Path) -> None:
    assert run_command(tmp_path, *PLAIN, "trainer.precision=bf16-mixed") == 0


@pytest.mark.slow
def test_compiled_student_learns_the_same(tmp_path: Path) -> None:
    for name, on in (("eager", "false"), ("compiled", "true")):
        assert run_command(tmp_path / name, *PLAIN, f"hardware.compile={on}") == 0
    eager, compiled = (first_loss(the_run(tmp_path / name)) for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-3)


def first_loss(run: Path) -> float:
    """Mean loss of the first three steps."""
    return next(float(str(row["loss"])) for row in read_rows(run / "metrics.jsonl") if "loss" in row)
