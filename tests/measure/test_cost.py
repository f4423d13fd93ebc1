from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitlab.measure.cost import count_macs, count_params, measure_cost, measure_latency
from vitlab.measure.cost_record import Cost, Latency
from vitlab.models.eval_mode import eval_mode


@pytest.mark.parametrize(
    ("name", "args", "size", "params", "macs"),
    [
        ("tiny_vit_5m_224", {}, 224, 5_392_764, 1_255_174_720),
        ("tiny_vit_11m_224", {}, 224, 10_996_972, 2_016_046_144),
        ("tiny_vit_21m_224", {}, 224, 21_198_568, 4_250_329_536),
        ("tiny_vit_21m_384", {}, 384, 21_230_488, 13_697_865_216),
        ("tiny_vit_21m_512", {}, 512, 21_268_120, 26_883_623_424),
        ("tiny_vit_21m_224", {"embed_dims": [64, 192, 384, 576]}, 224, 21_083_480, 3_889_263_040),
        ("tiny_vit_21m_224", {"window_sizes": [7, 7, 7, 7]}, 224, 21_187_984, 4_117_563_840),
        ("tiny_vit_21m_224", {"mlp_ratio": 3.0}, 224, 17_950_696, 3_722_879_424),
    ],
)
def test_tiny_vit_has_the_papers_counts(name: str, args: dict[str, Any], size: int, params: int, macs: int) -> None:
    """tinyvit.md, section 9.1."""
    model = timm.create_model(name, num_classes=1000, device="meta", **args)
    assert (count_params(model), count_macs(model, size)) == (params, macs)


@pytest.mark.parametrize(
    ("name", "giga"),
    [("deit_small_patch16_224", 4.6), ("swin_tiny_patch4_window7_224", 4.5), ("resnet50", 4.1)],
)
def test_published_macs_of_other_networks(name: str, giga: float) -> None:
    model = timm.create_model(name, device="meta")
    assert count_macs(model, 224) / 1e9 == pytest.approx(giga, abs=0.05)


class Known(nn.Module):
    """A convolution, attention and a linear layer whose products are counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4, groups=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.conv(image)).flatten(2).transpose(1, 2)  # [B, 16, 8] of 16 px
        mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens)
        logits: Tensor = self.head(mixed.mean(1))
        return logits


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_by_hand(device: str) -> None:
    model = Known().to(device)
    assert count_macs(model, 16) == 16 * 8 * (3 * 4 * 4) + 2 * 16 * 16 * 8 + 8 * 5
    assert count_params(model) == 3 * 16 * 8 + 8 + 2 * 8 + 8 * 5 + 5


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = Known().train()
    model.norm.eval()  # frozen statistics inside a training network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure_cost(model, 16, batches=[1], repeats=2)
    assert [module.training for module in (model, model.conv, model.norm, model.head)] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert cost.bytes is None


def test_no_table_of_old_parameters_stays_behind() -> None:
    model = timm.create_model(
        "tiny_vit_5m_224", embed_dims=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 2], num_classes=3,
        window_sizes=[8, 4, 2, 1],
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 32, 32)
    with eval_mode(model):
        first = model(image)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.normal_(std=10)
        assert not torch.equal(model(image), first)


def test_latency_is_of_every_batch_size_asked_for(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    cost = measure_cost(Known(), 16, batches=[1, 4], repeats=5, file=tmp_path / "weights")
    assert [(latency.batch, latency.repeats) for latency in cost.latency] == [(1, 5), (4, 5)]
    for latency in cost.latency:
        assert latency.p10_ms is not None
        assert latency.p90_ms is not None
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
    assert (cost.bytes, cost.size, cost.device, cost.threads) == (5, 16, "cpu", torch.get_num_threads())
    assert isinstance(cost, Cost)


def test_throughput_follows_from_the_median() -> None:
    assert Latency(batch=32, median_ms=8.0, p10_ms=7.0, p90_ms=9.0, repeats=5).images_per_second == 4000.0


def test_latency_is_in_milliseconds() -> None:
    class Sleeper(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return x

    begun = time.perf_counter()
    found = measure_latency(Sleeper(1, 1), size=1, batch=1, repeats=4, warmup=0)
    full = 1000 * (time.perf_counter() - begun)
    assert found.p10_ms is not None
    assert found.p90_ms is not None
    assert 10 <= found.p10_ms <= found.median_ms <= found.p90_ms
    assert 4 * found.p10_ms <= full


def test_latency_needs_a_repeat() -> None:
    with pytest.raises(ValueError, match="at least one repeat"):
        measure_latency(Known(), 16, 1, 0)
