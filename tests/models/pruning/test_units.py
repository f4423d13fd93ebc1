"""The dependency map: every parameter is perturbed and its claimed slices checked; identities (A7); scores (A4)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor, nn
from torch.nn import functional

from tests.models.pruning.vits import NETWORKS, images, network, random_gates
from vitlab.errors import UserError
from vitlab.models.pruning.export import export
from vitlab.models.pruning.gates import attach_gates
from vitlab.models.pruning.units import Axis, all_live, apply_gates, count_live, find_axes, table


def dead_elements(model: nn.Module, axes: list[Axis], gates: list[Tensor]) -> dict[str, Tensor]:
    """Where the map claims that elements of each parameter belong to pruned units."""
    claims = {name: torch.ones_like(value) for name, value in model.named_parameters()}
    for axis, gate in zip(axes, gates, strict=True):
        for one in axis.slices:
            one.gate_(claims[one.parameter], gate)
    return {name: claim == 0 for name, claim in claims.items()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_claimed_slices_are_those_that_do_nothing(kind: str) -> None:
    """What belongs to a pruned unit can be anything, slice by slice; every other element of every parameter counts."""
    model = network(kind)
    gates = attach_gates(model)
    axes = list(gates.axes)
    gates.update(random_gates(axes, seed=3))
    gates.apply_to(model)
    image = images(model)
    logits = model(image)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    dead = dead_elements(model, axes, gates.gates)
    parameters = dict(model.named_parameters())
    for name, value in parameters.items():
        assert value.grad is not None
        assert not value.grad[dead[name]].abs().gt(1e-12).any(), name
        if name.endswith("qkv.bias"):  # a bias of the keys shifts all logits of a query, which the softmax ignores
            dead[name][len(value) // 3 : -len(value) // 3] = True
        assert name.endswith("k_norm.bias") or bool((value.grad[~dead[name]].abs() > 1e-9).all()), name
    perturbed = 0
    for axis, gate in zip(axes, gates.gates, strict=True):
        for one in axis.slices:
            value = parameters[one.parameter]
            before = value.detach().clone()
            part, dim = one.unfold(value.detach())
            noise = torch.randn(part.shape, dtype=part.dtype)
            part.copy_(torch.where(gate.view([-1 if at == dim else 1 for at in range(part.ndim)]), part, noise))
            perturbed += int((value != before).sum())
            with torch.no_grad():
                torch.testing.assert_close(model(image), logits.detach(), rtol=0, atol=1e-12, msg=one.parameter)
                value.copy_(before)
    assert perturbed >= sum(int(one.sum()) for one in dead.values()) * 0.9  # all but the key biases, some twice


def test_order_counts_and_group_sizes() -> None:
    with torch.device("meta"):
        axes = find_axes(timm.create_model("deit_base_distilled_patch16_224"))
    assert [axis.name for axis in axes[:6]] == [
        *("embedding", "blocks.0.head", "blocks.0.qk", "blocks.0.v", "blocks.0.mlp", "blocks.1.head")
    ]
    assert len(axes) == 49 and [axis.units for axis in axes[:5]] == [768, 12, 64, 64, 3072]
    assert [axis.group for axis in axes[:5]] == [16, 2, 8, 8, 16]
    assert sum(axis.groups for axis in axes) == 2616 == 48 + 12 * (6 + 8 + 8 + 192)
    text = table(axes, slices=True)
    assert text.endswith("49 axes, 39,312 units, 2,616 groups")
    assert "* blocks.0.attn.qkv.weight (3 x 12 x 64 x 768)[0, :, unit, :]" in text
    assert "  blocks.0.attn.proj.weight (768 x 12 x 64)[:, unit, :]" in text


def test_groups_can_be_chosen() -> None:
    axes = find_axes(network("plain"), {"embedding": 8, "head": 1})
    assert [axis.group for axis in axes[:3]] == [8, 1, 8] and axes[0].groups == 3
    with pytest.raises(UserError, match="Groups of 0 units of 'v'"):
        find_axes(network("plain"), {"v": 0})


def test_what_is_not_understood_is_refused_by_name() -> None:
    def refused(name: str, **args: Any) -> str:
        with torch.device("meta"):
            model = timm.create_model(name, **args)
        with pytest.raises(UserError) as caught:
            find_axes(model)
        return caught.value.what

    assert "SwinTransformer is not one of" in refused("swin_tiny_patch4_window7_224", depths=(1, 1))
    assert "Eva is not one of" in refused("vit_base_patch16_rope_reg1_gap_256", depth=1)
    assert "attn_pool is a AttentionPoolLatent" in refused("vit_base_patch16_siglip_224", depth=1)
    assert "head is a Identity" in refused("vit_small_patch16_224", num_classes=0, depth=1)
    assert "patch_embed is a HybridEmbed" in refused("vit_small_r26_s32_224", depth=1)
    assert "blocks.0 is a ParallelThingsBlock" in refused("vit_tiny_patch16_224", block_fn=ParallelThingsBlock, depth=1)
    assert "blocks.0.mlp is a GluMlp, not Mlp" in refused("vit_giant_patch14_dinov2", num_classes=3, depth=1)
    assert "blocks.0.attn.norm is a LayerNorm" in refused("vit_tiny_patch16_224", scale_attn_norm=True, depth=1)
    assert "blocks.0.attn is a DiffAttention" in refused("vit_tiny_patch16_224", attn_layer="diff", depth=1)
    assert "norm_pre is a RmsNorm" in refused("vit_tiny_patch16_224", pre_norm=True, norm_layer="rmsnorm")
    model = network("plain")
    model.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match="how extra depend on its units"):
        find_axes(model)


def test_a_pruned_network_has_its_own_axes() -> None:
    structure = {"embed": 16, "heads": [2, 1], "qk": [4, 3], "v": [5, 6], "mlp": [24, 7]}
    for attention, units in (("compact", [4, 5, 24, 1, 3, 6, 7]), ("timm", [5, 5, 24, 1, 6, 6, 7])):
        model = timm.create_model("pruned_vit", structure=structure, attention=attention, num_classes=3)
        assert [axis.units for axis in find_axes(model)][2:] == units


@torch.no_grad()
def test_gates_zero_what_they_claim_and_no_more() -> None:
    model = network("distilled")
    axes = find_axes(model)
    other = copy.deepcopy(model)
    apply_gates(other, axes, all_live(axes))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    gates = random_gates(axes, seed=4)
    apply_gates(other, axes, gates)
    dead = dead_elements(model, axes, gates)
    for (name, old), new in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(new == 0, dead[name]) and torch.equal(new[~dead[name]], old[~dead[name]])
    assert count_live(model, axes, gates) == sum(int((~one).sum()) for one in dead.values())


def products(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() * value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_identities_of_the_bilinear_pairs() -> None:
    """A7: for any loss the sums over Q and over K are equal, and those over V and over the projection."""
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=7).double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    functional.cross_entropy(model(torch.randn(2, 3, 32, 32).double()), torch.tensor([1, 4])).backward()
    found = products(model)
    seen = []
    for axis in find_axes(model):
        if axis.kind in ("qk", "v"):
            scored = axis.scores(found)
            rest = axis.scores(found, "full") - scored
            torch.testing.assert_close(scored, rest, rtol=0, atol=1e-12)
            seen.append(float(scored.abs().max()))
    assert len(seen) == 4 and min(seen) > 1e-5  # not an equality of zeros


def fixture_network() -> tuple[nn.Module, list[Axis]]:
    """A4's network: parameter i, element j is 0.3 sin(0.7 j + 0.37 i), plus 1 for the weights of norms."""
    args: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", **args, mlp_ratio=1.5, num_classes=3)
    model = model.double().eval()
    with torch.no_grad():
        for i, (name, value) in enumerate(model.named_parameters()):
            j = torch.arange(value.numel(), dtype=torch.float64)
            one = 1 if "norm" in name and name.endswith("weight") else 0
            value.copy_((0.3 * torch.sin(0.7 * j + 0.37 * i) + one).view_as(value))
    return model, find_axes(model)


def test_official_scores_of_a_small_network() -> None:
    """A4: logits, losses and every official score at t = 0, and means over t = 0, 1."""
    model, axes = fixture_network()
    divisor = {"embedding": 12, "head": 12, "qk": 2, "v": 2, "mlp": 1}
    losses, scores = [], []
    for t in (0, 1):
        model.zero_grad()
        image = torch.sin(0.05 * torch.arange(2 * 3 * 64, dtype=torch.float64) * (t + 1) + 0.5 * t).view(2, 3, 8, 8)
        logits = model(image)
        loss = functional.cross_entropy(logits, torch.tensor([0, 2]))
        loss.backward()
        losses.append(loss.item())
        found = products(model)
        scores.append({axis.kind: (axis.scores(found) / divisor[axis.kind]).square() for axis in axes})
        if t == 0:
            expected = [[1.06251724, 0.79414197, 0.16440546], [0.98318201, 0.72310926, 0.13355961]]
            torch.testing.assert_close(logits, torch.tensor(expected).double(), rtol=0, atol=1e-7)
    assert losses == pytest.approx([1.2065299282, 1.2349154145], abs=1e-9)
    official = {
        "embedding": [
            *(5.591122e-05, 8.374803e-05, 6.823396e-05, 1.007853e-05),
            *(1.799962e-05, 2.186565e-05, 9.720502e-06, 1.879752e-04),
        ],
        "head": [1.008130e-05, 6.808930e-05],
        "qk": [1.739394e-03, 5.824684e-05, 7.115201e-04, 4.156596e-05],
        "v": [5.795785e-06, 2.294724e-04, 2.370054e-04, 1.009083e-05],
        "mlp": [
            *(4.474889e-06, 1.756128e-07, 5.019514e-08, 5.231992e-04, 9.095045e-04, 7.618368e-05),
            *(6.940266e-07, 1.417166e-06, 9.052664e-06, 7.143484e-06, 1.194578e-06, 1.003409e-07),
        ],
    }
    for axis in axes:
        assert scores[0][axis.kind].tolist() == pytest.approx(official[axis.kind], rel=1e-6), axis.kind
    mean = {kind: ((scores[0][kind] + scores[1][kind]) / 2).tolist() for kind in ("head", "qk")}
    assert mean["head"] == pytest.approx([7.988416e-05, 1.488603e-04], rel=1e-6)
    assert mean["qk"] == pytest.approx([1.695439e-03, 5.641975e-05, 4.328663e-04, 1.045139e-04], rel=1e-6)


def test_scores_of_a_padded_or_compact_network_are_those_of_the_original() -> None:
    """The units of all three forms of one network have the same signed sums."""
    model = network("distilled")
    image = images(model)
    sums = []
    gates = attach_gates(model)
    for one in (model, export(model, "compact").model, export(model, "timm").model):
        functional.cross_entropy(one(image), torch.tensor([0, 1, 2])).backward()
        axes = find_axes(one) if one is not model else list(gates.axes)
        found = products(one)
        sums.append([axis.scores(found, "full") for axis in axes])
    for reference, compact, padded in zip(*sums, strict=True):
        torch.testing.assert_close(compact, reference, rtol=0, atol=1e-12)
        torch.testing.assert_close(padded, reference, rtol=0, atol=1e-12)
