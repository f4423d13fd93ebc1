"""Speed of pruned networks on a CPU: DeiT-B, masked and exported to the budget of NViT-B, and its smaller sisters.

    python tests/bench/bench_pruned_vit.py [REPEATS]

One thread, batch 4, float32, 224 px; the least CPU time of the repeats (nvit.md, A9). Weights are random: the time does
not depend on them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitlab.models  # noqa: F401
from vitlab.models.pruning.export import export
from vitlab.models.pruning.gates import attach_gates
from vitlab.models.vit_structure import REFERENCE, count_macs


@dataclass
class Row:
    name: str
    seconds: float
    macs: int | None = None


def cpu_seconds(model: nn.Module, image: Tensor, repeats: int) -> float:
    """Least CPU time of a forward pass, after one that is not counted."""
    with torch.inference_mode():
        model.eval()(image)
        times = []
        for _ in range(repeats):
            start = time.process_time()
            model(image)
            times.append(time.process_time() - start)
    return min(times)


def mask_to_reference(model: nn.Module, name: str) -> None:
    """Gates that leave the widths of a stand-in, the first units of every axis."""
    gates = attach_gates(model)
    structure = REFERENCE[name]
    widths: dict[str, Any] = {kind: getattr(structure, kind) for kind in ("qk", "v", "mlp")}
    widths["head"] = structure.heads
    live = [structure.embed if axis.block is None else widths[axis.kind][axis.block] for axis in gates.axes]
    gates.update([torch.arange(axis.units) < left for axis, left in zip(gates.axes, live, strict=True)])
    gates.apply_to(model)


def main(repeats: int = 5) -> dict[str, Row]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    image = torch.randn(4, 3, 224, 224)
    model: Any = timm.create_model("deit_base_distilled_patch16_224").eval()
    rows = [Row("DeiT-B", cpu_seconds(model, image, repeats))]
    mask_to_reference(model, "base")
    rows.append(Row("masked to the stand-in for NViT-B", cpu_seconds(model, image, repeats)))
    for form in ("compact", "timm"):
        found = export(model, form, image[:1])
        seconds = cpu_seconds(found.model, image, repeats)
        rows.append(Row(f"exported, {form}", seconds, count_macs(found.structure)))
        print(f"exported, {form}: logits up to {found.logits:.2f} differ by {found.difference:.1e} at most")
    del model, found
    for name in ("nvit_ref_half", "nvit_ref_small", "nvit_ref_tiny", "revit_small", "revit_tiny"):
        one: Any = timm.create_model(name)
        rows.append(Row(name, cpu_seconds(one, image, repeats), count_macs(one.structure)))
    rows.append(Row("DeiT-S", cpu_seconds(timm.create_model("deit_small_distilled_patch16_224"), image, repeats)))
    print(f"{'network':<36} {'CPU s':>7} {'x DeiT-B':>9} {'G multiply-adds':>16}")
    for row in rows:
        macs = f"{row.macs / 1e9:.2f}" if row.macs else ""
        print(f"{row.name:<36} {row.seconds:>7.3f} {rows[0].seconds / row.seconds:>9.2f} {macs:>16}")
    return {row.name: row for row in rows}


@pytest.mark.bench
def test_bench() -> None:
    """A9: the exported network is at least 1.8 times as fast; the masked one gains nothing."""
    found = main()
    full = found["DeiT-B"].seconds
    for form in ("compact", "timm"):
        assert full / found[f"exported, {form}"].seconds >= 1.8
    assert found["masked to the stand-in for NViT-B"].seconds > 0.85 * full


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
