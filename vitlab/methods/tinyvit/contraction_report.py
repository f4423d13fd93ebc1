"""The result of a contraction: a table, a plot, and the network as a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vitlab.files import atomic_write, write_json
from vitlab.methods.tinyvit.contract import Row
from vitlab.methods.tinyvit.families import Args
from vitlab.report.style import LIGHT, WIDTH, figure, png, themed

SCORES = {"train": ("val. top-1 %", 100.0), "params": ("score (parameters, M)", 1e-6)}
"""Proxy to its name in table and plot, and the factor to the unit."""


def table(rows: Sequence[Row], proxy: str, scored_only: bool = True) -> str:
    """Markdown: the start, the scored candidates of each step, best first, and the number of rejected ones."""
    name, unit = SCORES[proxy]
    lines = [
        f"| Step | Moves | Params M | GMACs | Images/s | {name} | |",
        "| ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for step in sorted({row.step for row in rows}):
        of_step = [row for row in rows if row.step == step]
        shown = [row for row in of_step if row.score is not None or row.verdict == "start" or not scored_only]
        for row in sorted(shown, key=lambda row: -(row.score or 0.0)):
            speed = "–" if row.throughput is None else f"{row.throughput:,.0f}"
            score = "–" if row.score is None else f"{unit * row.score:.2f}"
            mark = {"chosen": "**chosen**", "start": "start"}.get(row.verdict, "")
            cost = f"{row.params / 1e6:.3f} | {row.macs / 1e9:.3g}"
            lines.append(f"| {step} | {row.moves or '–'} | {cost} | {speed} | {score} | {mark} |")
        if step:
            verdicts = ("over budget", "too slow", "dead end", "not scored")
            counts = {v: sum(row.verdict == v for row in of_step) for v in verdicts}
            lines.append(f"| {step} | " + ", ".join(f"{n} {v}" for v, n in counts.items()) + " | | | | | |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], proxy: str) -> bytes:
    """PNG: score against parameters of every scored candidate, the chosen networks joined by a line."""
    name, unit = SCORES[proxy]
    with themed(LIGHT):
        drawing, axes = figure(WIDTH, 3.2, "Contraction: candidates and chosen networks")
        scored = [row for row in rows if row.score is not None]
        for step in sorted({row.step for row in scored}):
            points = [row for row in scored if row.step == step]
            colour = LIGHT.series[(step - 1) % len(LIGHT.series)]
            x, y = [row.params / 1e6 for row in points], [unit * (row.score or 0.0) for row in points]
            axes.plot(x, y, "o", color=colour, markersize=5, alpha=0.75)
            best = max(points, key=lambda row: row.score or 0.0)
            axes.annotate(
                f"step {step}",
                (best.params / 1e6, unit * (best.score or 0.0)),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        chosen = [row for row in scored if row.verdict == "chosen"]
        axes.plot(
            [row.params / 1e6 for row in chosen],
            [unit * (row.score or 0.0) for row in chosen],
            color=LIGHT.quiet,
            zorder=1.5,
        )
        axes.margins(0.1, 0.15)
        axes.set_xlabel("parameters, millions")
        axes.set_ylabel(name)
        return png(drawing)


def head_text(params: int, classes: int, head: int) -> str:
    """What the head counts in ``params``, and the same network with ImageNet-1k's classes, as papers count it."""
    text = f"the head of {classes:,} classes is {head:,} of these parameters"
    return (
        text if classes == 1000 else f"{text}; with 1,000 classes they are {params - head + head // classes * 1000:,}"
    )


def write(folder: Path, rows: Sequence[Row], name: str, fixed: Args, proxy: str, classes: int, head: int) -> list[Path]:
    """``contraction.md``, ``.png`` and ``.json``, and ``model.yaml``: the last network, a file for ``conf/model``.

    ``head`` are its parameters for ``classes`` classes.
    """
    last = [row for row in rows if row.verdict == "chosen"][-1]
    args: dict[str, Any] = fixed | last.args
    size = f"{last.params / 1e6:.2f}M parameters ({classes} classes), {last.macs / 1e9:.2f} GMACs"
    note = f"# {name} contracted to {size}.\n"
    atomic_write(folder / "model.yaml", note + yaml.safe_dump({"name": name, "args": args}, sort_keys=False))
    atomic_write(folder / "contraction.md", table(rows, proxy))
    atomic_write(folder / "contraction.png", plot(rows, proxy))
    costs = {"params": last.params, "head_params": head, "classes": classes, "macs": last.macs}
    write_json(folder / "contraction.json", {"name": name, "args": args, **costs})
    return [folder / file for file in ("contraction.md", "contraction.png", "contraction.json", "model.yaml")]
