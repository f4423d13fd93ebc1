"""Learning sanity (section 11.L): a fixed teacher, ten labelled digits of each class, as many steps and views for all.

One seed of the three of tests/bench/bench_reinforce_digits.py, whose table stands in the head of
experiment=reinforce_digits.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlab.cli.main import main
from vitlab.files import read_json

QUIET = ("hardware=cpu", "hardware.threads=1", "evaluation.latency=false", "evaluation.resamples=0", "export=none")


def run(output: Path, *words: str) -> Path:
    assert main([*QUIET, *words, f"output={output}"]) == 0
    (marker,) = output.glob("*/*/finished.json")
    return marker.parent


@pytest.mark.slow
def test_stored_views_come_near_the_teacher_and_beat_labels(tmp_path: Path) -> None:
    network: tuple[str, ...] = ("model=resnet18", "model.args.channels=[32,64,128,256]", "model.args.layers=[1,1,1,1]")
    network += ("model.args.stem_type=deep", "model.args.stem_width=16", "model.args.replace_stem_pool=true")
    full = run(tmp_path / "teacher", "method=supervised", *network, "recipe.duration=12ep")
    words: tuple[str, ...] = (
        "experiment=reinforce_digits",
        "teacher.train=false",
        f"teacher.members.0.checkpoint={full / 'train'}",
    )
    words += ("recipe.batch_size=50", "recipe.validate_every=1000ep")
    student = run(tmp_path / "student", *words, "method.views.variant=rrc", "method.samples=400")
    found = read_json(student / "evaluation" / "done.json")["metrics"]
    labels, online, stored = (found[name] for name in ("erm", "kd", "train"))
    print(
        *(f"{name}: top-1 {found[name]['top1']:.4f}, ECE {found[name]['ece']:.4f}" for name in ("erm", "kd", "train"))
    )
    assert stored["top1"] > labels["top1"] and stored["ece"] < labels["ece"]
    assert stored["top1"] > online["top1"] - 0.025
