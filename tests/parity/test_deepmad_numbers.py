"""The published networks' numbers, exactly: structures, counts, scores and reference effectiveness."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vitlab.files import stable_dict
from vitlab.methods.deepmad.build import squeeze_macs
from vitlab.methods.deepmad.evaluate import (
    MODES,
    Scoring,
    conv_macs,
    depth_penalty,
    effectiveness,
    evaluate,
    head_params,
    mlp_entropy,
    squeezed,
)
from vitlab.methods.deepmad.structure import Conv, Structure, Superblock
from vitlab.models.deepmad import PUBLISHED, published_structure

ALPHAS = (1.0, 1.0, 1.0, 1.0, 8.0)
NETS = {name: Structure.from_list(published_structure(name)) for name in PUBLISHED}

COUNTS = {  # params, params with 1000 classes, FLOPs, convolutions' multiply-adds
    "r18": (11_153_088, 11_826_088, 1_837_323_208, 1_810_902_016),
    "r34": (21_073_160, 21_690_160, 3_675_274_792, 3_634_297_856),
    "r50": (24_208_144, 25_441_144, 4_087_263_656, 4_041_529_408),
    "29m_224": (26_876_956, 28_669_956, 4_448_877_776, 4_306_501_808),
    "29m_288": (26_910_630, 28_703_630, 4_434_568_884, 4_304_990_592),
    "50m": (47_359_964, 49_408_964, 8_611_349_082, 8_420_620_992),
    "89m": (85_764_780, 88_325_780, 15_257_277_784, 14_973_331_408),
}
SCORES = {  # entropy official, entropy corrected, penalty, final official, rho
    "r18": (32120.203452, 32120.203452, 34.806502, 32085.396949, 0.29909555),
    "r34": (43142.672768, 43142.672768, 34.806502, 43107.866265, 0.29999058),
    "r50": (48919.276905, 48919.276905, 34.806502, 48884.470403, 0.29975227),
    "29m_224": (11915.370483, 19135.928286, 44.667584, 11870.702899, 0.49647883),
    "29m_288": (11705.137059, 19349.382855, 22.255409, 11682.881649, 0.49663051),
    "50m": (14833.202959, 23605.337481, 189.042675, 14644.160284, 0.49302048),
    "89m": (18020.378581, 28445.336867, 274.012620, 17746.365961, 0.49513853),
}
SQUEEZE = {"29m_224": 15_474_944, "29m_288": 15_496_576, "50m": 27_754_368, "89m": 50_560_000}


def scoring(name: str, mode: str) -> Scoring:
    return Scoring(ALPHAS, 10.0, mode, "last3" if name.startswith("r") else "all")


def side(name: str) -> int:
    return 288 if name == "29m_288" else 224


@pytest.mark.parametrize("name", NETS)
def test_counts(name: str) -> None:
    structure = NETS[name]
    found = evaluate(structure, side(name), scoring(name, "official"))
    params, with_head, flops, macs = COUNTS[name]
    assert (found.params, found.flops, conv_macs(structure, side(name))) == (params, flops, macs)
    assert params + head_params(structure.units[-1].out, 1000) == with_head
    assert squeeze_macs(structure) == SQUEEZE.get(name, 0)


@pytest.mark.parametrize("name", NETS)
def test_scores(name: str) -> None:
    official, corrected, penalty, final, rho = SCORES[name]
    found = {mode: evaluate(NETS[name], side(name), scoring(name, mode)) for mode in MODES}
    close = 6e-7  # the printed digits
    assert found["official"].entropy == pytest.approx(official, abs=close)
    assert found["corrected"].entropy == pytest.approx(corrected, abs=close)
    assert found["paper"].entropy == pytest.approx(2 * corrected, abs=2 * close)
    assert found["official"].penalty == pytest.approx(penalty, abs=close)
    assert found["official"].score == pytest.approx(final, abs=close)
    assert found["official"].rho == pytest.approx(rho, abs=6e-9)


def test_the_papers_penalty_beside_the_codes_half_entropy() -> None:
    """exp(Var) is a choice of its own: with beta 10 the published 50M and 89M would score below 0 (section 10.4)."""
    for name, variance in (("50m", 8.64), ("89m", 10.96)):
        both = replace(scoring(name, "corrected"), spread="variance")
        found = evaluate(NETS[name], side(name), both)
        assert found.entropy == evaluate(NETS[name], side(name), scoring(name, "corrected")).entropy
        assert math.log(found.penalty / 10) == pytest.approx(variance, abs=1e-9) and found.score < 0
    r18 = replace(scoring("r18", "paper"), spread="std")
    assert evaluate(NETS["r18"], 224, r18).penalty == pytest.approx(SCORES["r18"][2], abs=6e-7)
    with pytest.raises(ValueError, match="spread"):
        Scoring(ALPHAS, 10.0, spread="range")
    assert "spread" not in stable_dict(Scoring(ALPHAS, 10.0)), "journals from before it are known by the rest"


def test_stage_terms() -> None:
    r18 = evaluate(NETS["r18"], 224, scoring("r18", "official"))
    assert r18.terms == pytest.approx((21.262653, 109.487341, 726.977523, 2782.778974, 28479.696960), abs=6e-7)
    assert [stage.rho for stage in r18.stages] == pytest.approx(
        (0.037037, 0.052169, 0.116735, 0.246445, 0.299096), abs=6e-7
    )
    tiny = evaluate(NETS["29m_288"], 288, scoring("29m_288", "official"))
    assert tiny.terms == pytest.approx((22.458666, 114.745122, 255.441522, 754.738431, 10557.753317), abs=6e-7)
    tiny = evaluate(NETS["29m_288"], 288, scoring("29m_288", "corrected"))
    assert tiny.terms == pytest.approx((22.4587, 353.4907, 656.5413, 1565.7110, 16751.1811), abs=6e-5)
    assert evaluate(NETS["r18"], 224, scoring("r18", "paper")).entropy == pytest.approx(64240.4069, abs=6e-5)


def test_the_variance_was_not_used_for_the_largest() -> None:
    for name, var in (("50m", 8.64), ("89m", 10.96)):
        depths = [block.depth for block in NETS[name].blocks]
        assert depth_penalty(depths, 1.0, variance=True) == pytest.approx(math.exp(var))
        assert evaluate(NETS[name], 224, scoring(name, "official")).entropy < depth_penalty(depths, 10.0, True)


def test_worked_example() -> None:
    """Section 4, by hand."""
    structure = Structure((Conv(16, 3, 2), Superblock("K1KXK1", 32, 8, 3, 2, 2)))
    found = evaluate(structure, 32, Scoring((1.0, 8.0), 0.0, "official"))
    assert (found.params, found.flops) == (3280, 344_576)
    assert [stage.rho for stage in found.stages] == pytest.approx([1 / 27, 7 / 24])
    assert found.terms[0] == pytest.approx(13.7070, abs=5e-5)
    assert found.terms[1] == pytest.approx(8 * 84.8101, abs=5e-4)
    assert found.score == pytest.approx(692.1876, abs=5e-5)


@pytest.mark.parametrize(
    ("kind", "params", "official"), [("K1DWSEK1", 25_936, 479.351874), ("K1DWK1", 16_240, 944.996748)]
)
def test_second_worked_example(kind: str, params: int, official: float) -> None:
    structure = Structure((Conv(16, 3, 2), Superblock(kind, 24, 96, 5, 2, 2), Conv(64, 1, 1)))
    found = evaluate(structure, 32, Scoring((1.0, 8.0), 0.0, "official"))
    assert (found.params, found.flops) == (params, 1_514_496)
    assert found.rho == pytest.approx(0.24185156, abs=5e-9)
    assert found.score == pytest.approx(official, abs=6e-7)
    assert evaluate(structure, 32, Scoring((1.0, 8.0), 0.0, "corrected")).score == pytest.approx(944.996748, abs=6e-7)


# --------------------------------------------------- section 2: effectiveness of networks of other hands


def resnet(units: tuple[int, ...], bottleneck: bool) -> list[int]:
    """Widths of a ResNet's convolutions."""
    widths, into = [147], 64
    for number, count in enumerate(units):
        base = 64 * 2**number
        for _ in range(count):
            if bottleneck:
                widths += [into, 9 * base, base]
                into = 4 * base
            else:
                widths += [9 * into, 9 * base]
                into = base
    return widths


def mobile(stem: int, rows: list[tuple[int, int, int, int]], tail: int) -> list[int]:
    """Widths of inverted bottlenecks (expansion, out, units, kernel)."""
    widths, into = [27], stem
    for expansion, out, count, kernel in rows:
        for _ in range(count):
            inner = expansion * into
            widths += [into, kernel**2, inner] if expansion > 1 else [kernel**2, inner]
            into = out
    return [*widths, into] if tail else widths


V2 = [(1, 16, 1, 3), (6, 24, 2, 3), (6, 32, 3, 3), (6, 64, 4, 3), (6, 96, 3, 3), (6, 160, 3, 3), (6, 320, 1, 3)]
B0 = [(1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3)]


@pytest.mark.parametrize(
    ("widths", "layers", "rho"),
    [
        (resnet((2, 2, 2, 2), False), 17, 0.0136),
        (resnet((3, 4, 6, 3), False), 33, 0.0222),
        (resnet((3, 4, 6, 3), True), 49, 0.0868),
        (mobile(32, V2, 1280), 52, 0.939),
        (mobile(32, B0, 1280), 49, 0.629),
    ],
    ids=["resnet18", "resnet34", "resnet50", "mobilenet_v2", "efficientnet_b0"],
)
def test_reference_effectiveness(widths: list[int], layers: int, rho: float) -> None:
    assert len(widths) == layers
    assert effectiveness(layers, sum(map(math.log, widths))) == pytest.approx(rho, rel=5e-3)


def test_mlp_entropy() -> None:
    assert mlp_entropy([2.0, 8.0], 10.0) == pytest.approx(10 * math.log(16))


def test_squeezed_channels_are_rounded_before_they_are_floored() -> None:
    assert [squeezed(width) for width in (8, 62, 64, 66, 126)] == [8, 16, 16, 16, 32]
