"""Masked and exported are one function (A6), for every kind of network and both forms; what the export promises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.pruning.vits import ISSUE, NETWORKS, images, network, random_gates
from vitlab.errors import UserError
from vitlab.models.pruned_vit import FORMS
from vitlab.models.pruning.export import compare, cut, export
from vitlab.models.pruning.gates import Gates, LiveLayerNorm, NormStats, attach_gates, detach_gates, live_structure
from vitlab.models.pruning.norms import WidthLayerNorm
from vitlab.models.pruning.units import count_live


def masked(kind: str, seed: int, dtype: torch.dtype = torch.float64, norm_stats: NormStats = "live") -> nn.Module:
    model = network(kind, dtype)
    gates = attach_gates(model, norm_stats)
    gates.update(random_gates(gates.axes, seed, live=0.3 + 0.03 * (seed % 20)))
    gates.apply_to(model)
    return model


def gates_of(model: nn.Module) -> Gates:
    found = model.get_submodule("pruning")
    assert isinstance(found, Gates)
    return found


def live_state(model: nn.Module) -> dict[str, Tensor]:
    """What the compact form has of the parameters of a masked network."""
    gates = gates_of(model)
    return cut(model, live_structure(model, gates.axes, gates.gates), "compact", gates.axes, gates.gates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", ISSUE)
def test_masked_equals_exported(kind: str, dtype: torch.dtype) -> None:
    """A6: 20 random masks."""
    for seed in range(20):
        model = masked(kind, seed, dtype)
        gates = gates_of(model)
        for form in FORMS:
            found = export(model, form)
            assert found.difference <= (1e-5 if dtype == torch.float32 else 1e-10)
            assert compare(model, found.model, images(model))[0] <= (1e-5 if dtype == torch.float32 else 1e-10)
            if form == "compact":
                assert all(bool(value.any()) for value in found.model.parameters())
                assert sum(value.numel() for value in found.model.parameters()) == count_live(
                    model, gates.axes, gates.gates
                )


@pytest.mark.parametrize("norm_stats", ["live", "full"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_network_and_of_statistics(kind: str, norm_stats: NormStats) -> None:
    for seed in (1, 2):
        model = masked(kind, seed, norm_stats=norm_stats)
        for form in FORMS:
            found = export(model, form)
            assert found.difference <= 1e-12 and found.logits > 0.05
            if form == "compact" and norm_stats == "full":
                wide = [one for one in found.model.modules() if isinstance(one, WidthLayerNorm)]
                assert wide and {one.width for one in wide} <= {24, 8}


def test_statistics_over_all_channels_are_another_function() -> None:
    """What the official export does: it takes the live channels' statistics, after masking with all of them."""
    model = masked("plain", 3, norm_stats="full")
    args = {key: value for key, value in export(model).args.items() if key != "norm_width"}
    official = timm.create_model("pruned_vit", num_classes=5, **args).double().eval()
    gates = gates_of(model)
    official.load_state_dict(
        cut(model, live_structure(model, gates.axes, gates.gates), "compact", gates.axes, gates.gates)
    )
    assert compare(model, official)[0] > 0.01


@pytest.mark.parametrize("kind", ISSUE)
def test_gradients_in_train_mode_are_equal(kind: str) -> None:
    model = masked(kind, 5)
    small = export(model).model
    image = images(model)
    weight = torch.randn(3, 5, dtype=torch.float64)
    for one in (model.train(), small.train()):
        (one(image) * weight).sum().backward()
    for value in model.parameters():
        assert value.grad is not None
        value.data = value.grad
    expected = live_state(model)
    for name, value in small.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, expected[name], rtol=0, atol=1e-8, msg=name)


def test_gates_have_no_gradient_and_are_in_the_state() -> None:
    model = masked("qk norm", 4)
    gates = gates_of(model)
    assert not list(gates.parameters()) and all(one.dtype == torch.bool for one in gates.gates)
    again = network("qk norm", seed=9)
    other = attach_gates(again)
    again.load_state_dict(model.state_dict())
    assert other.live == gates.live and other.structure == gates.structure
    image = images(model)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(image), model(image))
    twin_gates = gates_of(twin)
    assert twin_gates is not gates
    assert all(norm._gates[0] is twin_gates for norm in twin.modules() if isinstance(norm, LiveLayerNorm))


def test_nothing_changes_until_a_unit_is_pruned() -> None:
    model = network("distilled", torch.float32)
    image = images(model)
    names = [name for name, _ in model.named_parameters()]
    identities = [id(value) for value in model.parameters()]
    with torch.no_grad():
        before = model(image)
        attach_gates(model)
        assert torch.equal(model(image), before)
    assert [name for name, _ in model.named_parameters()] == names
    assert [id(value) for value in model.parameters()] == identities
    detach_gates(model)
    assert not any(isinstance(one, LiveLayerNorm) for one in model.modules())
    assert sorted(model.state_dict()) == sorted(names) and [id(one) for one in model.parameters()] == identities
    with pytest.raises(ValueError, match="has no gates"):
        detach_gates(model)


def test_a_pruned_unit_stays_pruned() -> None:
    model = masked("plain", 1)
    gates = gates_of(model)
    with pytest.raises(ValueError, match="cannot be made live again"):
        gates.update([torch.ones_like(one) for one in gates.gates])
    with pytest.raises(ValueError, match="no unit would be left"):
        gates.update([torch.zeros_like(one) for one in gates.gates])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(images(model)).square().sum().backward()
        optimizer.step()
        gates.apply_to(model)
    found = export(model)
    assert found.difference < 1e-10
    assert all(torch.isfinite(value).all() for value in found.model.parameters())


def test_a_compiled_network_follows_its_gates() -> None:
    model = network("qk norm", torch.float32)
    gates, image = attach_gates(model), images(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for seed in (1, 2):
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), model(image))
        gates.update([gate & one for gate, one in zip(gates.gates, random_gates(gates.axes, seed, 0.9), strict=True)])
        gates.apply_to(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), export(model).model(image), rtol=0, atol=1e-5)


def test_live_statistics_in_half_precision() -> None:
    model = masked("plain", 2, torch.float32)
    image = images(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = model(image)
    with torch.no_grad():
        torch.testing.assert_close(mixed.float(), model(image), rtol=0.1, atol=0.1)
        assert model.bfloat16()(image.bfloat16()).dtype == torch.bfloat16


def test_a_pruned_network_is_pruned_further() -> None:
    for form in FORMS:
        first = export(masked("distilled", 6), form)
        gates = attach_gates(first.model)
        gates.update(random_gates(gates.axes, 7))
        again = export(first.model)
        assert again.difference < 1e-12 and again.structure.embed < first.structure.embed
    wide = export(masked("plain", 6, norm_stats="full")).model
    with pytest.raises(UserError, match="has the statistics of 24 channels but"):
        attach_gates(wide)
    assert wide.state_dict().keys() == export(masked("plain", 6, norm_stats="full")).model.state_dict().keys()
    gates = attach_gates(wide, "full")
    gates.update(random_gates(gates.axes, 8))
    assert export(wide).difference < 1e-12


def test_an_export_that_is_not_the_masked_network_is_refused() -> None:
    model = masked("plain", 3)
    norm = next(one for one in model.modules() if isinstance(one, LiveLayerNorm))
    norm.forward = lambda x: nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="is not the masked one: logits differ by"):
        export(model)


def test_what_cannot_be_exported_is_named() -> None:
    model = network("plain")
    with pytest.raises(ValueError, match="has no gates"):
        export(model)
    attach_gates(model)
    with pytest.raises(ValueError, match="'onnx' is not one of compact, timm"):
        export(model, "onnx")
    mixed: Any = network("plain")
    mixed.blocks[1].norm1.eps = 1e-3
    attach_gates(mixed)
    with pytest.raises(UserError, match="norms have different eps"):
        export(mixed)
    other: Any = network("plain")
    other.blocks[0].mlp.act = nn.Mish()
    attach_gates(other)
    with pytest.raises(UserError, match="its activation is Mish"):
        export(other)
    uneven: Any = network("plain")
    uneven.blocks[1].attn.proj.bias = None
    attach_gates(uneven)
    with pytest.raises(UserError, match="its blocks are not of one kind"):
        export(uneven)


def test_layer_norm_of_another_width() -> None:
    """n channels with the statistics of more, and of fewer, against LayerNorm over what is meant."""
    torch.manual_seed(0)
    x = torch.randn(4, 6).double()
    for width in (9, 6, 4):
        norm = WidthLayerNorm(6, width).double()
        torch.nn.init.normal_(norm.weight)
        if width < 6:
            x = torch.cat([x[:, :width], torch.zeros(4, 6 - width).double()], 1)
        padded = torch.cat([x, torch.zeros(4, 3).double()], 1)[:, :width]
        expected = nn.functional.layer_norm(padded, (width,), eps=1e-6)
        got = norm(x)[:, : min(width, 6)]
        torch.testing.assert_close(got, expected[:, :6] * norm.weight[: min(width, 6)])
