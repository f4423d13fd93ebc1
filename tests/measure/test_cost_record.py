"""Cost records: today's JSON stays as it is, further counts of multiply-adds are kept and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from torch import Tensor, nn

from vitlab.measure.cost import measure_cost
from vitlab.measure.cost_record import Cost, Latency, Memory
from vitlab.report.compare import compare
from vitlab.report.data import ModelRow
from vitlab.tasks.classification import Classification


class Drops(nn.Module):
    """A layer of 2 x 3 products that counts itself in a second way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layer(image[:, 0, 0, :2])
        return out

    def extra_macs(self, size: int) -> Mapping[str, int]:
        return {"reference": 100 * size}


def test_records_of_before_have_the_same_keys() -> None:
    report = Cost(5, 10, 20, [Latency(1, 2.0, 1.5)], "CPU", [Memory(1, 8)])
    assert report.to_dict() == {
        "params": 5, "macs": 10, "bytes": 20, "device": "CPU", "memory": [{"batch": 1, "bytes": 8}],
        "latency": [{"batch": 1, "median_ms": 2.0, "p10_ms": 1.5, "p90_ms": None}],
    }  # fmt: skip
    measured = measure_cost(nn.Linear(4, 2), 4, batches=[1], repeats=2)
    plain = measured.to_dict()
    assert set(plain) == {"params", "macs", "size", "bytes", "latency", "memory", "device", "threads"}
    assert set(plain["latency"][0]) == {"batch", "median_ms", "p10_ms", "p90_ms", "repeats"}
    for one in (report, measured, Cost()):
        assert Cost.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(TypeError, match="colour"):
        Cost.from_dict({"colour": 1})


def test_further_counts_are_measured_kept_and_shown() -> None:
    cost = measure_cost(Drops(), 4)
    assert (cost.macs, cost.extra_macs) == (6, {"reference": 400})
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    rows = [
        ModelRow("a", "a", "student", {"top1": 0.5}, cost=cost),
        ModelRow("b", "b", "student", {"top1": 0.5}, cost=Cost(macs=8, extra_macs={"other": 7})),
    ]
    table = compare(rows, Classification().columns)
    assert table.titles == ["Top-1 %", "Params", "MACs", "MACs, reference", "MACs, other"]
    cells = {line.name: dict(zip(table.titles, line.cells, strict=True)) for line in table.lines}
    assert (cells["a"]["MACs, reference"], cells["b"]["MACs, reference"]) == ("400", "\u2013")
    assert (cells["a"]["MACs, other"], cells["b"]["MACs, other"]) == ("\u2013", "7")
