"""A checkpoint is checked before a training continues from it."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.contract.story import at, run_command, the_run
from vitlab.errors import UserError
from vitlab.training.checkpoint import CHECKPOINT, read_done
from vitlab.training.learner import Learner

FIXTURE = (
    next((Path(__file__).parents[1] / "fixtures" / "outputs" / "supervised").glob("interrupted-*"))
    / "train"
    / CHECKPOINT
)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """At 400 places of a checkpoint that an earlier version wrote. A bit of the padding between members may flip."""
    sound, path = FIXTURE.read_bytes(), tmp_path / CHECKPOINT
    expected = torch.load(FIXTURE, weights_only=True)
    rng, found = random.Random(0), 0
    for _ in range(400):
        data, place = bytearray(sound), rng.randrange(len(sound))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert read_done(path).step == 7
        except UserError as error:
            assert str(path) in error.what and "Delete it" in error.cure
            found += 1
        else:
            assert _equal(torch.load(path, weights_only=True), expected), place
    assert found > 100


def _equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def _in_a_weight(path: Path) -> None:
    """Flip a bit of the first weight, as stored."""
    state = torch.load(path, weights_only=True)["state_dict"]
    raw = next(value for value in state.values() if value.ndim > 1).numpy().tobytes()[:64]
    data = bytearray(path.read_bytes())
    data[data.index(raw) + 3] ^= 0x40
    path.write_bytes(data)


def _of_another_network(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["state_dict"] = {f"{name}_": value for name, value in state["state_dict"].items()}
    torch.save(state, path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES: list[Callable[[Path], object]] = [
    _in_a_weight,
    _truncate,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("a note"),
    lambda path: torch.save({"state_dict": {}}, path),
    lambda path: torch.save([1, 2], path),
    _of_another_network,
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that was stopped in mid-training."""
    output = tmp_path_factory.mktemp("stopped")
    with at(Learner, "after_step", lambda learner: learner.step + 1 == 7, signal.SIGTERM):
        assert run_command(output, "method=supervised", "evaluation=quick") == 130
    return output


def test_a_damaged_checkpoint_is_not_continued(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = the_run(stopped) / "train" / CHECKPOINT
    sound = checkpoint.read_bytes()
    for damage in DAMAGES:
        checkpoint.write_bytes(sound)
        damage(checkpoint)
        damaged = checkpoint.read_bytes()
        capsys.readouterr()
        assert run_command(stopped, "method=supervised", "evaluation=quick") == 2
        message = " ".join(capsys.readouterr().err.split())
        assert str(checkpoint) in message and "Delete it" in message and "Traceback" not in message, message
        assert checkpoint.read_bytes() == damaged, "the file is the user's to delete"
    shutil.copytree(stopped, tmp_path / "again")
    (the_run(tmp_path / "again") / "train" / CHECKPOINT).unlink()
    assert run_command(tmp_path / "again", "method=supervised", "evaluation=quick") == 0
