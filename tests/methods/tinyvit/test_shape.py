"""The closed forms of parameters and multiply-adds against the paper's numbers and against built networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlab.measure.cost import count_macs, count_params
from vitlab.methods.tinyvit.shape import Shape

S5 = Shape((64, 128, 160, 320), (2, 2, 6, 2), (7, 14, 7))
S11 = Shape((64, 128, 256, 448), (2, 2, 6, 2), (7, 14, 7))
S21 = Shape((96, 192, 384, 576), (2, 2, 6, 2), (7, 14, 7))


@pytest.mark.parametrize(
    ("shape", "size", "params", "macs"),
    [
        (S5, 224, 5_392_764, 1_255_174_720),
        (S11, 224, 10_996_972, 2_016_046_144),
        (S21, 224, 21_198_568, 4_250_329_536),
        (replace(S21, windows=(12, 24, 12)), 384, 21_230_488, 13_697_865_216),
        (replace(S21, windows=(16, 32, 16)), 512, 21_268_120, 26_883_623_424),
    ],
)
def test_published_sizes(shape: Shape, size: int, params: int, macs: int) -> None:
    assert (shape.params(1000), shape.macs(size, 1000)) == (params, macs)


@pytest.mark.parametrize(("shape", "params"), [(S5, 12_082_725), (S11, 20_354_581), (S21, 33_223_825)])
def test_sizes_with_the_22k_head(shape: Shape, params: int) -> None:
    assert shape.params(21_841) == params


def test_neighbours_of_21m() -> None:
    near = dict(S21.smaller())
    wanted = {
        "D1": (21_083_480, 3_889_263_040),
        "D3": (19_448_432, 3_889_771_072),
        "N3": (19_417_528, 3_873_332_160),
        "W3": (21_187_984, 4_117_563_840),
        "M": (17_950_696, 3_722_879_424),
        "E": (21_215_032, 4_250_329_536),
    }
    assert {name: (near[name].params(1000), near[name].macs(224, 1000)) for name in wanted} == wanted
    assert list(near) == ["D1", "D2", "D3", "D4", "N1", "N2", "N3", "N4", "W2", "W3", "R", "M", "E"]
    wide = replace(S21, windows=(14, 14, 7))
    assert dict(wide.smaller())["W2"].windows == (7, 14, 7), "the next smaller divisor of 28"
    assert near["W3"].windows == (7, 7, 7) and near["W2"].windows == (4, 14, 7) and near["E"].head_dim == 16


def test_moves_stop_at_the_least() -> None:
    least = Shape((32, 32, 32, 32), (1, 1, 1, 1), (4, 7, 7), 1.0, 1.0, 16)
    assert list(least.smaller()) == []
    narrow = replace(least, dims=(32, 64, 64, 64))
    assert [name for name, _ in narrow.smaller()] == ["D2"], "no stage may be narrower than the one before"


def test_windows_that_do_not_fill_a_side_are_padded() -> None:
    """Sides of 20, 10 and 5 with windows of 7, 14 and 7."""
    model = timm.create_model("tiny_vit_5m_224", num_classes=10, device="meta")
    assert S5.macs(160, 10) == count_macs(model, 160)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_closed_forms_are_the_built_network(data: st.DataObject) -> None:
    head = data.draw(st.sampled_from([16, 32]))
    dims = sorted(data.draw(st.lists(st.integers(1, 6), min_size=4, max_size=4)))
    shape = Shape(
        (dims[0] * 32, dims[1] * 32, dims[2] * 32, dims[3] * 32),
        data.draw(st.tuples(*[st.integers(1, 3)] * 4)),
        data.draw(st.tuples(*[st.sampled_from([2, 4, 5, 7])] * 3)),
        data.draw(st.sampled_from([1.0, 2.0, 4.0])),
        data.draw(st.sampled_from([1.0, 2.5, 4.0])),
        head,
    )
    size, classes = data.draw(st.sampled_from([64, 96, 224])), data.draw(st.integers(1, 30))
    model = timm.create_model("tiny_vit_5m_224", num_classes=classes, device="meta", **shape.args())
    assert (shape.params(classes), shape.macs(size, classes)) == (count_params(model), count_macs(model, size))
    assert Shape.of(shape.args()) == shape
