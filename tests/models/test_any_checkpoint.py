"""Any checkpoint file: the right weights are loaded, or the answer names the file; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import hunts
from tests.models.weights_files import State, weights_files
from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.build import build_model
from vitlab.models.checkpoints import load_checkpoint
from vitlab.models.finite import non_finite

CONFIG = ModelConfig(name="test_resnet")


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    network = build_model(CONFIG, 4, 32)
    # Values that every type of the files holds exactly, and that no initialisation gives.
    return {
        name: (value * 0 + 0.5 + 0.25 * (index % 3)) if value.is_floating_point() else value + 7
        for index, (name, value) in enumerate(network.state_dict().items())
    }


def check_file(data: st.DataObject, state: State, folder: Path) -> None:
    marker = folder / "executed"
    file = data.draw(weights_files(state, marker))
    path = folder / f"weights{file.suffix}"
    path.write_bytes(file.data)
    network = build_model(CONFIG, 4, 32)
    try:
        report = load_checkpoint(network, path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        assert not file.sound, str(error)
    else:
        assert report.loaded and str(path) in report.source
        assert non_finite(network) == []
        if file.sound:
            counts = [name for name in state if not name.endswith("num_batches_tracked")]
            assert all(network.state_dict()[name].equal(state[name]) for name in counts)
    assert not marker.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@hunts.quick(30)
@given(data=st.data())
def test_some_files(state: State, folder: Path, data: st.DataObject) -> None:
    check_file(data, state, folder)


@hunts.slow
@hunts.complete(3000)
@given(data=st.data())
def test_many_files(state: State, folder: Path, data: st.DataObject) -> None:
    check_file(data, state, folder)


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to_sparse(), "sparse_coo float32"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "strided qint8"),
    ],
)
def test_weights_that_are_no_plain_numbers(
    change: Callable[[Tensor], Tensor], form: str, state: State, tmp_path: Path
) -> None:
    """Found by the hunt: integers were copied as they are, a sparse tensor ended in a stack trace."""
    name = "conv1.0.weight"
    torch.save(state | {name: change(state[name])}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"weights\.pth.*{name} holds {form}, expected floating-point"):
        load_checkpoint(build_model(CONFIG, 4, 32), tmp_path / "weights.pth")
