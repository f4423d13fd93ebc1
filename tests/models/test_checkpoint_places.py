"""A checkpoint's weights are found wherever the program that wrote it kept them, and the report names the place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.build import build_model
from vitlab.models.checkpoints import load_checkpoint

State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def lightning(state: State) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": state, "callbacks": {"Timer": {"seconds": 1.0}}, "hyper_parameters": {"lr": 0.1}}


def averaged_model(state: State) -> State:
    network = build_model(CONFIG, 4, 32)
    network.load_state_dict(state)
    return AveragedModel(network).state_dict()


CONFIG = ModelConfig(name="test_resnet", pretrained=False)
OTHER = torch.ones(3)

PLACES: dict[str, tuple[Callable[[State, State], Any], str]] = {
    "plain": (lambda s, _: s, ""),
    "net": (lambda s, _: lightning(under("net.", s)), "entry state_dict, names under net."),
    "student": (lambda s, _: lightning(under("student.", s)), "names under student."),
    "backbone": (lambda s, _: lightning(under("backbone.", s)), "names under backbone."),
    "encoder": (lambda s, _: under("module.encoder.", s), "names under module.encoder."),
    "with a loss": (
        lambda s, _: lightning(under("model.", s) | {"criterion.weight": OTHER}),
        "names under model., 1 other tensors left out",
    ),
    "with a metric": (
        lambda s, _: lightning(under("net.", s) | {"val_acc.correct": torch.tensor(3)}),
        "1 other tensors left out",
    ),
    "student and teacher": (
        lambda s, o: lightning(under("student.", s) | under("teacher.", o)),
        "names under student.",
    ),
    "the teacher inside the wrapper": (
        lambda s, o: under("module.", s | under("teacher.", o)),
        "names under module., ",
    ),
    "the teacher beside a plain network": (lambda s, o: s | under("teacher.", o), "other tensors left out"),
    "a teacher beside the average": (lambda s, o: {"model": o, "ema": s | under("teacher.", o)}, "entry ema, averaged"),
    "a twin that is the average": (lambda s, o: o | under("ema.", s), "names under ema., averaged weights"),
    "vitlab": (
        lambda s, o: lightning(under("student.", o) | under("average.module.", s)),
        "names under average.module., averaged weights",
    ),
    "AveragedModel": (lambda s, _: averaged_model(s), "averaged weights"),
    "entry net": (lambda s, _: {"net": s, "acc": 93.0, "epoch": 7}, "entry net"),
    "entry of an average": (lambda s, o: {"model": o, "ema": under("module.", s)}, "entry ema"),
    "DINO": (lambda s, o: {"student": under("module.", s), "teacher": o}, "entry student"),
    "NumPy number": (lambda s, _: {"state_dict": s, "best": np.float64(0.5), "n": np.int64(3)}, "entry state_dict"),
    "no counts": (lambda s, _: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")}, ""),
    "two usual entries": (lambda s, o: {"model": o, "state_dict": s}, "entry state_dict"),
}


def states() -> tuple[State, State]:
    """Those of two networks of other weights."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = build_model(CONFIG, 4, 32)
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1)
        found.append(network.state_dict())
    return found[0], found[1]


@pytest.mark.parametrize("name", list(PLACES))
def test_the_weights_are_found_and_the_report_names_their_place(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, place = PLACES[name]
    state, other = states()
    torch.save(make(state, other), tmp_path / "file.ckpt")
    caplog.set_level(logging.INFO, "vitlab")
    config = ModelConfig(name=CONFIG.name, pretrained=False, checkpoint=str(tmp_path / "file.ckpt"))
    loaded = build_model(config, 4, 32).state_dict()
    wrong = [one for one, value in state.items() if "num_batches" not in one and not torch.equal(loaded[one], value)]
    assert not wrong
    assert place in caplog.text, caplog.text


def test_official_names_are_found_under_a_prefix(tmp_path: Path, tiny: ModelConfig) -> None:
    from vitlab.models.tinyvit_weights import to_official

    torch.manual_seed(1)
    state = build_model(tiny, 4, 32).state_dict()
    torch.save(lightning(under("student.", to_official(state)) | {"loss.weight": OTHER}), tmp_path / "file.ckpt")
    network = build_model(tiny, 4, 32)
    assert load_checkpoint(network, tmp_path / "file.ckpt").adapted
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_two_networks_that_fit_equally_are_both_named(tmp_path: Path) -> None:
    state, other = states()
    torch.save(under("first.", state) | under("second.", other), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"several networks that fit: names under first\..*names under second\."):
        load_checkpoint(build_model(CONFIG, 4, 32), tmp_path / "file.pth")


def test_where_nothing_fits_two_names_of_the_file_are_shown(tmp_path: Path, tiny: ModelConfig) -> None:
    state, _ = states()
    torch.save(lightning(under("net.", state)), tmp_path / "file.pth")
    network: nn.Module = build_model(tiny, 4, 32)
    with pytest.raises(UserError, match=r"The file has net\.conv1\.\S+, net\.conv1\.\S+, \.\.\."):
        load_checkpoint(network, tmp_path / "file.pth")


PICKLES = [b"(lp0\n.", b"\x80\x02}q\x00.", b"cos\nsystem\n", b"\x80\x02K", b"\x80\x02h\x05.", b"PK\x03\x04 text"]


@pytest.mark.parametrize("content", PICKLES)
def test_bytes_that_look_like_a_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.txt"):
        load_checkpoint(build_model(CONFIG, 4, 32), tmp_path / "notes.txt")
