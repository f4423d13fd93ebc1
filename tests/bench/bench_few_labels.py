"""Few labels and a short training: where distillation shows. Three seeds of every student, means and their spread.

Real digits, ten labelled images of each class (``experiment=tinyvit_digits``); the teacher learns from the same hundred
images. Run as a script; it prints the table and writes it to a Markdown file when one is named:
``bench_few_labels.py [FILE]``. What was run before is not run again: the runs lie in ``outputs/few_labels``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vitlab.cli.main import main as vitlab
from vitlab.files import read_json

SEEDS = (0, 1, 2)
COMMON = (
    "experiment=tinyvit_digits", "hardware=cpu", "hardware.threads=1", "evaluation.latency=false", "export=none",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "labels alone": ("labels", ("method.topk=10",)),
    "teacher": ("teacher", ("method.topk=10",)),
    "teacher run at every step": ("pretrain", ("method.online=true", "method.baseline=false")),
    "stored, K=10 (all classes)": ("pretrain", ("method.topk=10",)),
    "stored, K=3": ("pretrain", ("method.topk=3", "method.baseline=false")),
    "stored, K=1": ("pretrain", ("method.topk=1", "method.baseline=false")),
}
"""Row of the table to the stage that is measured and the overrides of its run."""

Metrics = dict[str, float]


def measure(output: Path, seeds: Sequence[int], words: Sequence[str]) -> dict[str, list[Metrics]]:
    """Run what is not there yet; for each variant its metrics, one a seed.

    Raises:
        RuntimeError: a command failed.
    """
    found: dict[str, list[Metrics]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        for name, (stage, own) in VARIANTS.items():
            label = f"{'-'.join(word.partition('.')[2].replace('=', '') for word in own)}-seed{seed}"
            command = [*COMMON, *words, *own, f"seed={seed}", f"name={label}", f"output={output}"]
            if vitlab(command) != 0:
                raise RuntimeError(f"failed: {' '.join(command)}")
            (run,) = output.glob(f"tinyvit/{label}-*/finished.json")
            found[name].append(read_json(run.parent / "evaluation" / "done.json")["metrics"][stage])
    return found


def table(found: dict[str, list[Metrics]]) -> str:
    """Markdown: mean ± sample standard deviation over the seeds; gains over labels alone are taken seed by seed."""
    columns = {"top1": ("Top-1 %", 100.0, 2), "nll": ("NLL", 1.0, 3), "ece": ("ECE %", 100.0, 2)}
    titles = [title for title, *_ in columns.values()]
    titles += ["Top-1 gained", "NLL gained"]
    lines = ["| Student | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]
    alone = found["labels alone"]
    for name, rows in found.items():
        cells = [
            _mean(tuple(unit * row[key] for row in rows), f".{digits}f") for key, (_, unit, digits) in columns.items()
        ]
        for key, (_, unit, digits) in list(columns.items())[:2]:
            gains = tuple(unit * (row[key] - one[key]) for row, one in zip(rows, alone, strict=True))
            cells.append(_mean(gains, f"+.{digits}f") if rows is not alone else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], how: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{how}} ± {spread:{how.removeprefix('+')}}"


@pytest.mark.slow
def test_every_variant_is_a_row(tmp_path: Path) -> None:
    short = ("debug=smoke", "debug.max_steps=2", "recipe.batch_size=16", "teacher.recipe.batch_size=16")
    found = measure(tmp_path, (0,), short)
    assert all(len(rows) == 1 for rows in found.values())
    text = table(found)
    assert text.count("\n") == 2 + len(VARIANTS) and "| stored, K=1 |" in text


def main() -> None:
    """Run and print."""
    quiet = ("recipe.validate_every=1000ep", "teacher.recipe.validate_every=1000ep")
    text = table(measure(Path("outputs/few_labels"), SEEDS, quiet))
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
