"""Latency tables: smoothing, interpolation, what a file must hold, and one measured of a small transformer block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from vitlab.errors import UserError
from vitlab.measure.grids import interpolate, make_monotone
from vitlab.measure.latency_table import Grid, HeldOut, HeldOutNetwork, LatencyTable, Part, measure_table
from vitlab.measure.timing import Conditions

CONDITIONS = Conditions("a device", 1, 256, "32", "eager", False, "2.0", "1.0")


def separable() -> LatencyTable:
    """attention = embed heads (qk + v) and mlp = embed hidden, in billionths, which multilinear interpolation meets
    exactly; the zeros of a grid are measured as nothing."""
    axes = {"embed": (0, 256, 768), "heads": (1, 3, 12), "qk": (1, 64), "v": (1, 64)}
    e, h, q, v = np.meshgrid(*axes.values(), indexing="ij")
    attention = Grid(axes, 1e-9 * e * h * (q + v), np.zeros(e.shape))
    more = {"embed": (0, 256, 768), "hidden": (0, 128, 3072)}
    e, m = np.meshgrid(*more.values(), indexing="ij")
    mlp = Grid(more, 1e-9 * e * m, np.full(e.shape, 0.1))
    held = [HeldOut([{"embed": 1}], 1.0, 2.0), HeldOut([], 3.0, 2.5)]
    return LatencyTable("a block", CONDITIONS, 5, False, {"attention": attention, "mlp": mlp}, held)


def test_smoothing_increases_along_every_axis() -> None:
    rng = np.random.default_rng(0)
    rising = rng.random((4, 5, 6)).cumsum(0).cumsum(1).cumsum(2)
    assert np.array_equal(make_monotone(rising), rising)
    noisy = rising + rng.normal(size=rising.shape)
    found = make_monotone(noisy)
    assert all(np.diff(found, axis=axis).min() >= -1e-12 for axis in range(3))
    assert any(np.diff(noisy, axis=axis).min() < 0 for axis in range(3))
    assert found.mean() == pytest.approx(noisy.mean())  # least squares keeps the mean of a line
    assert make_monotone(np.array([1.0, 4.0, 2.0, 3.0])).tolist() == [1, 3, 3, 3]


def test_smoothing_of_part_of_a_grid() -> None:
    """Where costly layers are not timed, lines end early: what is there increases, and the rest stays unknown."""
    stairs = np.array([[3.0, 1.0, 5.0], [2.0, 6.0, np.nan], [4.0, np.nan, np.nan]])
    found = make_monotone(stairs)
    assert np.array_equal(np.isnan(found), np.isnan(stairs))
    for axis in (0, 1):
        steps = np.diff(found, axis=axis)
        assert (steps[np.isfinite(steps)] >= 0).all()


def test_interpolation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    points = [np.array([1.0, 3.0, 6.0, 12.0]), np.array([1.0, 16.0, 64.0]), np.array([5.0, 6.0])]
    values = rng.random((4, 3, 2))
    at = [rng.uniform(one[0], one[-1], 50) for one in points]
    expected = RegularGridInterpolator(points, values)(np.stack(at, 1))
    assert interpolate(points, values, at) == pytest.approx(expected, rel=1e-12)
    corners = [np.array([one[0], one[-1]]) for one in points]
    assert interpolate(points, values, corners).tolist() == [values[0, 0, 0], values[-1, -1, -1]]
    assert interpolate([np.array([7.0])], np.array([2.5]), [np.array([7.0])]).tolist() == [2.5]


def test_a_block_is_the_sum_of_its_parts() -> None:
    table = separable()
    assert table.axes == {"embed": (0, 768), "heads": (1, 12), "qk": (1, 64), "v": (1, 64), "hidden": (0, 3072)}
    dims = {"embed": 500, "heads": 7, "qk": 40, "v": 56, "hidden": 1000}
    one = 1e-9 * 500 * (7 * 96 + 1000)
    assert float(table.seconds(dims)) == pytest.approx(one)
    less = table.seconds({**dims, "heads": np.array([7, 6])})
    assert less[0] - less[1] == pytest.approx(1e-9 * 500 * 96)
    assert table.network_seconds([dims, {**dims, "embed": 0}]) == pytest.approx(one)
    assert table.mean_error == pytest.approx((0.5 + 0.2) / 2)


@pytest.mark.parametrize(("name", "value"), [("embed", 769), ("heads", 0.5), ("hidden", -1), ("qk", float("nan"))])
def test_nothing_is_extrapolated(name: str, value: float) -> None:
    dims: dict[str, float] = {"embed": 500, "heads": 7, "qk": 40, "v": 56, "hidden": 1000, name: value}
    with pytest.raises(UserError, match=f"measured for {name} from"):
        separable().seconds(dims)


def test_every_axis_is_given() -> None:
    with pytest.raises(ValueError, match="axes are embed, heads"):
        separable().seconds({"embed": 1})


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    table = separable()
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again.to_dict() == table.to_dict()
    assert again.fingerprint == table.fingerprint
    assert again.conditions == CONDITIONS
    plain = json.loads((tmp_path / "table.json").read_text())
    assert [one["relative_error"] for one in plain["held_out"]] == pytest.approx([-0.5, 0.2])
    again.grids["mlp"].seconds[1, 1] += 1e-9
    assert again.fingerprint != table.fingerprint


def test_noise_is_smoothed_when_used_and_not_in_the_file(tmp_path: Path) -> None:
    grid = Grid({"width": (8, 16, 32)}, np.array([1.0, 3.0, 2.0]), np.zeros(3))
    LatencyTable("layers", CONDITIONS, 3, True, {"layer": grid}).save(tmp_path / "table.json")
    table = LatencyTable.load(tmp_path / "table.json")
    assert table.grids["layer"].seconds.tolist() == [1, 3, 2]
    assert table.seconds({"width": np.array([8, 16, 24, 32])}).tolist() == [1, 2.5, 2.5, 2.5]
    assert (table.busy, table.mean_error) == (True, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.pop("format"), "no key 'format'"),
        (lambda v: v.update(format=2), "its format is 2, and 1 is what is read"),
        (lambda v: v.pop("busy"), "busy is missing"),
        (lambda v: v.update(colour=1), "colour is no key"),
        (lambda v: v.update(repeats=True), "repeats is True"),
        (lambda v: v.update(repeats=0), "repeats is below 1"),
        (lambda v: v.update(grids={}), "grids is empty"),
        (lambda v: v["conditions"].update(threads="two"), "conditions.threads is 'two'"),
        (lambda v: v["grids"]["mlp"]["axes"].update(hidden=[0, 3072, 128]), "grids.mlp.axes.hidden is no ascending"),
        (lambda v: v["grids"]["mlp"]["seconds"].pop(), r"shape \(2, 3\), and its axes have \(3, 3\)"),
        (lambda v: v["grids"]["mlp"]["seconds"][0].pop(), "grids.mlp.seconds is no array"),
        (lambda v: v["grids"]["mlp"]["spread"][0].__setitem__(0, -1), "grids.mlp.spread has a value below 0"),
        (lambda v: v["held_out"][0].pop("measured"), "held_out.0.measured is missing"),
        (lambda v: v["held_out"][1].update(measured=0), "held_out.1.measured is not above 0"),
    ],
)  # fmt: skip
def test_files_that_are_none(change: Any, expected: str, tmp_path: Path) -> None:
    value = deepcopy(separable().to_dict())
    change(value)
    (tmp_path / "table.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=expected):
        LatencyTable.load(tmp_path / "table.json")


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no latency table"):
        LatencyTable.load(tmp_path / "table.json")
    for text in ("{", "[]", "1"):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(UserError, match="is no latency table"):
            LatencyTable.load(tmp_path / "table.json")


class MLP(nn.Sequential):
    """A block's MLP, residual left out."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(embed), nn.Linear(embed, hidden), nn.GELU(), nn.Linear(hidden, embed))


def test_a_table_of_layers_measured_here(tmp_path: Path) -> None:
    """Two parts of a block; the held-out network is one of two blocks, whose hidden widths are between the points."""
    built: list[dict[str, int]] = []

    def tokens(embed: int) -> torch.Tensor:
        return torch.randn(2, 64, embed)

    def mlp(dims: Mapping[str, int]) -> tuple[nn.Module, torch.Tensor]:
        built.append(dict(dims))
        return MLP(dims["embed"], dims["hidden"]), tokens(dims["embed"])

    def norm(dims: Mapping[str, int]) -> tuple[nn.Module, torch.Tensor]:
        return nn.LayerNorm(dims["embed"]), tokens(dims["embed"])

    parts = {"mlp": Part({"embed": (32, 96), "hidden": (0, 64, 256)}, mlp), "norm": Part({"embed": (32, 96)}, norm)}
    blocks = [{"embed": 64, "hidden": 100}, {"embed": 64, "hidden": 200}]
    held = HeldOutNetwork(blocks, lambda: (nn.Sequential(MLP(64, 100), MLP(64, 200)), tokens(64)))
    file, totals = tmp_path / "partial.json", []

    def stop(done: int, total: int) -> None:
        totals.append(total)
        if len(totals) == 5:
            raise KeyboardInterrupt

    def measure(**more: Any) -> LatencyTable:
        return measure_table(
            "norm and MLP", parts, device=torch.device("cpu"), batch=2, held_out=[held], rounds=3, seconds=0.001,
            partial=file, **more,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        measure(progress=stop)
    kept = json.loads(file.read_text())["seconds"]
    table = measure()
    assert totals == [3 * (4 + 2 + 1)] * 5, "points without work are not timed"
    assert {"embed": 32, "hidden": 0} not in built
    grid = table.grids["mlp"]
    assert grid.seconds[:, 0].tolist() == [0, 0]
    assert (grid.seconds[:, 1:] > 0).all()
    assert sum(map(len, kept.values())) == 5
    times = json.loads(file.read_text())["seconds"]
    assert all(times[name][: len(row)] == row for name, row in kept.items())
    assert grid.seconds[1, 2] == np.median(times["mlp embed=96 hidden=256"])
    (network,) = table.held_out
    assert network.structure == blocks
    assert network.measured == np.median(times["held out 0"])
    assert network.predicted == pytest.approx(table.network_seconds(blocks))
    assert table.conditions == Conditions.of(torch.device("cpu"), 2)
    assert (table.conditions.threads, table.repeats) == (torch.get_num_threads(), 3)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json").to_dict() == table.to_dict()
    with pytest.raises(ValueError, match="precision '16'"):
        measure(precision="16")
