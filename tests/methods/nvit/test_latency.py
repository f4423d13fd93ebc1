"""The latency table: its grid, the rest of the network shared over the blocks, the released file's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vitlab.errors import UserError
from vitlab.measure.grids import make_monotone
from vitlab.measure.latency_table import LatencyTable
from vitlab.methods.nvit.latency import grid_points, load_table, measure, random_structure
from vitlab.methods.nvit.options import LatencyOptions
from vitlab.methods.nvit.stages import structure_of

GROUPS = {"embedding": 8, "head": 1, "qk": 4, "v": 4, "mlp": 8}


def test_grids_reach_from_one_group_to_the_full_width() -> None:
    assert grid_points(768, 16, 3) == [16, 384, 768]
    assert grid_points(12, 2, 9) == [2, 4, 6, 8, 10, 12]
    assert grid_points(3, 2, 3) == [2, 3]
    assert grid_points(1, 2, 3) == [1]


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=10
    )
    options = LatencyOptions(batch=2, points=2, mlp_points=3, rounds=2, held_out=2)
    return measure(network, structure_of(network), GROUPS, options, device=torch.device("cpu"))


def test_a_table_covers_the_network_and_predicts_others(table: LatencyTable, tmp_path: Path) -> None:
    assert table.axes == {"embed": (8, 32), "heads": (1, 2), "qk": (4, 16), "v": (4, 16), "mlp": (8, 128)}
    assert [grid.seconds.size for grid in table.grids.values()] == [16, 6, 2]
    assert all((grid.seconds > 0).all() for grid in table.grids.values())
    for one in table.held_out:
        assert one.predicted == pytest.approx(table.network_seconds(one.structure))
        assert len(one.structure) == 3 and one.measured > 0
    table.save(tmp_path / "latency.json")
    assert load_table(tmp_path / "latency.json").fingerprint == table.fingerprint


def test_the_rest_of_the_network_counts_once(table: LatencyTable) -> None:
    """Its part is the same for all widths of the blocks, and three blocks together have all of it."""
    smallest = {"embed": 32, "heads": 1, "qk": 4, "v": 4, "mlp": 8}
    rest = float(make_monotone(table.grids["rest"].seconds).max())
    alone = LatencyTable(table.what, table.conditions, 1, False, {n: g for n, g in table.grids.items() if n != "rest"})
    assert table.network_seconds([smallest] * 3) - alone.network_seconds([smallest] * 3) == pytest.approx(3 * rest)


def test_random_structures_have_whole_groups() -> None:
    network = timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=3, num_heads=2)
    full, draws = structure_of(network), np.random.default_rng(0)
    for _ in range(20):
        one = random_structure(full, GROUPS, draws)
        assert one.embed % 8 == 0 and all(value % 4 == 0 for value in (*one.qk, *one.v))
        assert one.embed <= 32 and max(one.mlp) <= 128 and one.depth == 3


def released(value: float = 2.0) -> dict[str, object]:
    """A small file of the released layout: seconds e h (q + v + m)."""
    return {
        str(e): {
            f"({h}, {q})": {str(v): {str(m): value * e * h * (q + v + max(m, 1)) for m in (0, 128)} for v in (1, 16)}
            for h in (1, 3)
            for q in (1, 16)
        }
        for e in (0, 256, 512)
    }


def test_the_released_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lut.json"
    path.write_text(json.dumps(released()))
    table = load_table(path)
    assert table.axes == {"embed": (256, 512), "heads": (1, 3), "qk": (1, 16), "v": (1, 16), "mlp": (1, 128)}
    found = table.seconds({"embed": 384, "heads": 2, "qk": 8, "v": 4, "mlp": 64})
    assert found == pytest.approx(2.0 * 384 * 2 * (8 + 4 + 64))


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"256": 1.0}', '{"256": {"(1, 2)": {"1": {"1": "x"}}}}', json.dumps(released(-1.0))]
)
def test_files_that_are_no_tables_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lut.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"lut\.json"):
        load_table(path)
