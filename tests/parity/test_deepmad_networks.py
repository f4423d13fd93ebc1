"""The built networks are the ones that were counted, and compute what the official code computes (11.2, 11.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vitlab.config import ModelConfig
from vitlab.methods.deepmad.build import count_network, verify
from vitlab.methods.deepmad.evaluate import Scoring, evaluate
from vitlab.methods.deepmad.structure import Structure
from vitlab.models.build import build_model
from vitlab.models.deepmad import PUBLISHED, DeepMAD, published_structure

ALPHAS = (1.0, 1.0, 1.0, 1.0, 8.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_the_module(name: str) -> None:
    structure, side = Structure.from_list(published_structure(name)), 288 if name == "29m_288" else 224
    params = evaluate(structure, side, Scoring(ALPHAS, 0.0)).params
    found = verify(structure, side, params)
    with torch.device("meta"):
        network = timm.create_model(f"deepmad_{name}")
    assert count_network(network, side) == found


def test_a_wrong_count_is_refused() -> None:
    structure = Structure.from_list(published_structure("r18"))
    with pytest.raises(RuntimeError, match="designed"):
        verify(structure, 224, 11_153_089)


def noise(shape: torch.Size, layer: int) -> torch.Tensor:
    """h(n, l) of the specification."""
    index = np.arange(1, shape.numel() + 1)
    value = 43758.5453 * np.sin(12.9898 * index + 78.233 * (layer + 1))
    return torch.from_numpy(value - np.floor(value)).reshape(shape)


def filled(name: str, gain: float) -> tuple[nn.Module, int]:
    """The network in float64 with the specification's weights, and how many layers it has."""
    network = build_model(ModelConfig(name=f"deepmad_{name}"), 1000, 224).double().eval()
    layer = 0
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                layer += 1
                fan_in = module.weight[0].numel()
                module.weight.copy_(gain * (noise(module.weight.shape, layer) - 0.5) * (12 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
    return network, layer


@pytest.mark.parametrize(
    ("name", "gain", "layers", "mean", "std", "top", "first"),
    [
        ("r18", 1, 121, -0.015611276, 0.45946702, 196, (0.36427219, -0.30897172, -0.31676023)),
        ("29m_224", 2, 118, 43433.997, 5284500.9, 696, (-188852.19, 6574302.7, -180023.7)),
    ],
)
def test_forward(
    name: str, gain: float, layers: int, mean: float, std: float, top: int, first: tuple[float, ...]
) -> None:
    network, count = filled(name, gain)
    assert count == layers
    with torch.no_grad():
        logits = network(2 * noise(torch.Size((1, 3, 64, 64)), 0) - 1)[0]
    close = 1e-5 * std
    assert logits.shape == (1000,)
    assert logits.mean().item() == pytest.approx(mean, abs=close)
    assert logits.std(unbiased=False).item() == pytest.approx(std, abs=close)
    assert logits.argmax().item() == top
    assert logits[:3].tolist() == pytest.approx(first, abs=close)


SMALL = [
    {"block": "conv", "out": 16, "kernel": 3, "stride": 2},
    {"block": "K1DWSEK1", "out": 24, "bottleneck": 48, "kernel": 5, "stride": 2, "depth": 2},
    {"block": "K1DWK1", "out": 24, "bottleneck": 48, "kernel": 3, "stride": 2, "depth": 2},
    {"block": "K1KXK1", "out": 40, "bottleneck": 16, "kernel": 3, "stride": 1, "depth": 2},
    {"block": "conv", "out": 64, "kernel": 1, "stride": 1},
]


def test_any_structure_by_argument() -> None:
    network: Any = build_model(ModelConfig(name="deepmad", args={"structure": SMALL}), 7, 32)
    assert isinstance(network, DeepMAD)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    params = evaluate(Structure.from_list(SMALL), 32, Scoring((1.0, 1.0, 1.0), 0.0)).params
    assert sum(p.numel() for p in network.parameters()) == params + 64 * 7 + 7
    network.reset_classifier(3)
    assert network.get_classifier()(torch.zeros(1, 64)).shape == (1, 3)


def test_features() -> None:
    network: Any = timm.create_model("deepmad", structure=SMALL, features_only=True, out_indices=(0, 1, 2))
    image = torch.randn(2, 3, 64, 64)
    assert [tuple(x.shape[1:]) for x in network(image)] == [(16, 32, 32), (24, 16, 16), (64, 8, 8)]
    assert network.feature_info.channels() == [16, 24, 64]
    assert network.feature_info.reduction() == [2, 4, 8]
    full: Any = timm.create_model("deepmad", structure=SMALL)
    network.eval()
    full.eval()
    state = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
    full.load_state_dict({**full.state_dict(), **state})
    last, found = full.forward_intermediates(image)
    assert torch.equal(found[-1], last)
    assert all(torch.equal(a, b) for a, b in zip(found, network(image), strict=True))


def test_names_are_the_official_ones() -> None:
    names = set(build_model(ModelConfig(name="deepmad", args={"structure": SMALL}), 7, 32).state_dict())
    for name in (
        "block_list.0.conv1.weight",
        "block_list.0.bn1.weight",
        "block_list.1.block_list.1.conv2.bn1.running_mean",
        "block_list.1.block_list.0.se2.conv1.conv1.weight",
        "block_list.3.block_list.0.residual_proj.conv1.weight",
        "fc_linear.bias",
    ):
        assert name in names


def test_classifier_init() -> None:
    network: Any = timm.create_model("deepmad_r18", num_classes=400)
    assert network.fc_linear.weight.std().item() == pytest.approx(
        0.05, rel=0.02
    )  # 1 / sqrt(classes), not of the inputs


def test_drop_path_only_beside_a_shortcut() -> None:
    network: Any = timm.create_model("deepmad", structure=SMALL, drop_path_rate=0.3)
    rates = {name: m.drop_prob for name, m in network.named_modules() if type(m).__name__ == "DropPath"}
    assert rates["block_list.3.block_list.1.drop_path"] == pytest.approx(0.3)
    assert "block_list.1.block_list.0.drop_path" not in rates  # 16 -> 24 channels: nothing to fall back on


@pytest.mark.parametrize("block", ["K1KXK1", "K1DWSEK1"])
def test_one_training_step(block: str) -> None:
    torch.manual_seed(0)
    unit = {"block": block, "out": 16, "bottleneck": 24, "kernel": 3, "stride": 2, "depth": 2}
    network = DeepMAD([SMALL[0], unit], num_classes=5)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    image, label = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert losses[-1] < losses[0]


def test_one_image_cannot_train_squeeze_and_excitation() -> None:
    network = DeepMAD(SMALL, num_classes=5).train()
    with pytest.raises(ValueError, match="more than 1 value"):
        network(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    "change", [{"kernel": 4}, {"stride": 3}, {"block": "K1KXK2"}, {"depth": 0}, {"bottleneck": 1.5}, {"extra": 1}]
)
def test_malformed_structures_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unit 1"):
        DeepMAD([SMALL[0], {**SMALL[1], **change}])
