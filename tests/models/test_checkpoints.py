from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitlab.config import ModelConfig
from vitlab.errors import UserError
from vitlab.models.build import build_model
from vitlab.models.checkpoints import head_names, load_weights, read_weights, strip_prefixes, zero_head


@pytest.fixture
def model(tiny: ModelConfig) -> nn.Module:
    return build_model(tiny, 4, 32)


def _other(tiny: ModelConfig, classes: int = 4) -> nn.Module:
    return build_model(tiny, classes, 32)


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model."])
@pytest.mark.parametrize("entry", [None, "model", "state_dict"])
def test_wrappers_of_a_checkpoint_are_seen_through(
    tmp_path: Path, model: nn.Module, prefix: str, entry: str | None
) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    content = state if entry is None else {entry: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "weights.pth")
    assert _same(read_weights(tmp_path / "weights.pth"), model.state_dict())


def test_averaged_weights_win(tmp_path: Path, model: nn.Module) -> None:
    averaged = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged}, tmp_path / "weights.pth")
    assert _same(read_weights(tmp_path / "weights.pth"), averaged)


def test_safetensors_are_read(tmp_path: Path, model: nn.Module) -> None:
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert _same(read_weights(tmp_path / "weights.safetensors"), model.state_dict())


def test_a_prefix_on_some_names_only_is_part_of_the_names() -> None:
    state = {"model.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert strip_prefixes(state) == state


class Planted:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.planted_by_checkpoint = True",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Planted()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds Python objects"):
        read_weights(tmp_path / "weights.pth")
    assert not hasattr(sys, "planted_by_checkpoint")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.pth", None, "There is no checkpoint"),
        ("text.pth", b"not a checkpoint", "text.pth"),
        ("empty.pth", b"", "not a readable checkpoint"),
        ("text.safetensors", b"not a checkpoint", "not a readable safetensors file"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / name)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "weights.pth")


def test_equal_networks_load_whole(tiny: ModelConfig, model: nn.Module) -> None:
    other = _other(tiny)
    report = load_weights(other, model.state_dict(), "a file")
    assert _same(other.state_dict(), model.state_dict())
    assert (report.loaded, report.head, report.adapted) == (len(model.state_dict()), [], False)


def test_only_the_head_may_differ(tiny: ModelConfig, model: nn.Module) -> None:
    trunk = {name: value for name, value in model.state_dict().items() if not name.startswith("head.fc")}
    for state, classes in ((model.state_dict(), 6), (trunk, 4), (model.state_dict(), 0)):
        other = _other(tiny, classes)
        report = load_weights(other, state, "a file")
        assert all(torch.equal(other.state_dict()[name], value) for name, value in trunk.items())
        assert report.head == (["head.fc.bias", "head.fc.weight"] if classes else [])
        assert report.loaded == len(trunk)
        assert not any(other.state_dict()[name].any() for name in report.head)


def test_every_other_difference_is_listed(tiny: ModelConfig, model: nn.Module) -> None:
    state = dict(model.state_dict())
    state["stages.1.blocks.0.attn.qkv.bias"] = torch.zeros(5)
    state["stray.weight"] = torch.zeros(1)
    del state["patch_embed.conv1.conv.weight"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, state, "a file")
    message = str(caught.value)
    assert "missing patch_embed.conv1.conv.weight" in message
    assert "unexpected stray.weight" in message
    assert "stages.1.blocks.0.attn.qkv.bias is [5], expected [48]" in message
    assert _same(model.state_dict(), before)


def test_position_tables_are_resized_by_timm_and_it_is_reported() -> None:
    cfg = ModelConfig(name="vit_tiny_patch16_224", args={"embed_dim": 24, "depth": 1, "num_heads": 1})
    state = build_model(cfg, 3, 32).state_dict()
    larger = build_model(cfg, 3, 64)
    report = load_weights(larger, state, "a file")
    assert report.adapted
    assert "renamed or resized" in str(report)
    assert torch.equal(
        larger.get_parameter("pos_embed")[:, 0], state["pos_embed"][:, 0]
    )  # the class token's place is kept
    assert torch.equal(larger.get_parameter("head.weight"), state["head.weight"])


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("resnet18", {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}, {"fc.weight", "fc.bias"}),
        (
            "deit_tiny_distilled_patch16_224",
            {"embed_dim": 24, "depth": 1, "num_heads": 1},
            {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
        ),
    ],
)
def test_the_head_is_found_and_zeroed(name: str, args: dict[str, Any], expected: set[str]) -> None:
    model = build_model(ModelConfig(name=name, args=args), 3, 32)
    assert head_names(model) == expected
    assert zero_head(model) == sorted(expected)
    assert not model.eval()(torch.randn(2, 3, 32, 32)).any()
    assert head_names(nn.Linear(2, 2)) == set()
