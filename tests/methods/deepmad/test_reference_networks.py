"""Networks made by hand are measured by the rules of designed ones: on the published networks both agree."""

from __future__ import annotations

import pytest
import timm

from vitlab.config import ModelConfig
from vitlab.methods.deepmad.evaluate import Scoring, evaluate
from vitlab.methods.deepmad.reference_networks import evaluate_network, handmade_point
from vitlab.methods.deepmad.structure import Structure
from vitlab.models.deepmad import published_structure

SCORING = Scoring((1.0, 1.0, 1.0, 1.0, 8.0), 10.0)


@pytest.mark.parametrize("name", ["r18", "29m_224"])
@pytest.mark.parametrize("classes", [None, 10])
def test_a_published_network_is_what_its_structure_is(name: str, classes: int | None) -> None:
    wanted = evaluate(Structure.from_list(published_structure(name)), 224, SCORING, classes)
    found = evaluate_network(timm.create_model(f"deepmad_{name}", num_classes=0), 224, SCORING, classes)
    assert (found.params, found.flops) == (wanted.params, wanted.flops)
    assert found.terms == pytest.approx(wanted.terms, rel=1e-12)
    assert found.rho == pytest.approx(wanted.rho, rel=1e-12)
    assert found.penalty == pytest.approx(wanted.penalty)


@pytest.mark.parametrize(
    ("name", "layers", "rho", "ends"),
    [
        ("resnet18", 17, 0.0136, [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]),
        ("mobilenetv2_100", 52, 0.939, [(16, 112), (24, 56), (32, 28), (96, 14), (1280, 7)]),
        ("efficientnet_b0", 49, 0.629, [(16, 112), (24, 56), (40, 28), (112, 14), (1280, 7)]),
    ],
)
def test_effectiveness_of_known_networks(name: str, layers: int, rho: float, ends: list[tuple[int, int]]) -> None:
    """The values of the paper's table, here from timm's modules."""
    found = evaluate_network(timm.create_model(name, num_classes=0), 224, SCORING)
    assert found.stages[-1].depth == layers
    assert found.stages[-1].rho == pytest.approx(rho, rel=5e-3)
    assert [(stage.channels, stage.side) for stage in found.stages] == ends


def test_a_network_without_a_score_has_a_reason() -> None:
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    point = handmade_point("a ViT", ModelConfig("vit_tiny_patch16_224", args=args), 32, SCORING)
    assert point["score"] is None
    assert "neither convolution nor batch norm" in point["why"]
    assert point["params"] > 0
    small = timm.create_model("resnet10t", num_classes=0)
    assert len(evaluate_network(small, 32, SCORING).terms) == 5
    with pytest.raises(ValueError, match="different weights"):
        evaluate_network(small, 32, Scoring((1.0, 2.0, 8.0), 10.0))
