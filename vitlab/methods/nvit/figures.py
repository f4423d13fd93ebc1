"""Events of a pruning as a table and as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.files import atomic_write
from vitlab.models.vit_structure import WIDTHS, VitStructure, read_structure
from vitlab.report.stage_figures import name_figures
from vitlab.report.style import DARK, LIGHT, Theme, blend, figure, png, themed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"heads": "heads", "qk": "QK channels", "v": "V channels", "mlp": "MLP neurons"}


def write_figures(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``events.csv``, and for the report ``structure.png`` (before and after) and ``events.png``, each for a
    light and for a dark page."""
    atomic_write(folder / "events.csv", events_csv(record["events"]).encode())
    dense, pruned = read_structure(record["dense"]), read_structure(record["structure"])
    target = record["target"]
    for theme, suffix in ((LIGHT, ""), (DARK, "_dark")):
        with themed(theme):
            atomic_write(folder / f"structure{suffix}.png", png(draw_structures(dense, pruned, theme)))
            if record["events"]:
                drawing = draw_events(dense, record["events"], target, theme)
                atomic_write(folder / f"events{suffix}.png", png(drawing))
    named = [("structure.png", "Widths of every block", "Light: the dense network. Dark: what pruning left.")]
    if record["events"]:
        caption = "Line: cost by the target's measure. Steps: mean width of each kind, as shares of the dense network."
        named.append(("events.png", f"Pruning towards {target['share']:g} of the {target['name']}", caption))
    name_figures(folder, named)


def events_csv(events: Sequence[Mapping[str, Any]]) -> str:
    """A row an event: what it cost, and the widths of all blocks after it."""
    text = io.StringIO()
    numbers = [name for name in (events[0] if events else ()) if name not in ("structure", "pruned")]
    depth = len(events[0]["structure"]["heads"]) if events else 0
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*numbers, "pruned", "embed", *(f"{name}_{block}" for name in WIDTHS for block in range(depth))])
    for event in events:
        pruned = " ".join(f"{axis}:{len(units)}" for axis, units in event["pruned"].items())
        widths = event["structure"]
        row = [event[name] for name in numbers]
        writer.writerow([*row, pruned, widths["embed"], *(value for name in WIDTHS for value in widths[name])])
    return text.getvalue()


def draw_structures(dense: VitStructure, pruned: VitStructure, theme: Theme) -> Figure:
    """The widths of every block, the dense ones behind those that are left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.2, 3.4), layout="constrained")
    FigureCanvasAgg(drawing)
    blocks = np.arange(1, dense.depth + 1)
    for axes, (name, title) in zip(drawing.subplots(2, 2, sharex=True).flat, TITLES.items(), strict=True):
        axes.bar(blocks, getattr(dense, name), color=blend(theme.series[0], theme.paper, 0.25), width=0.8)
        axes.bar(blocks, getattr(pruned, name), color=theme.series[0], width=0.8)
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_xticks(blocks if dense.depth <= 12 else blocks[:: dense.depth // 12 + 1])
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", visible=False)
    drawing.suptitle("Widths of every block before and after pruning", x=0.012, ha="left")
    drawing.supxlabel(f"block; the embedding went from {dense.embed} to {pruned.embed} channels", fontsize=8)
    return drawing


def draw_events(
    dense: VitStructure, events: Sequence[Mapping[str, Any]], target: Mapping[str, Any], theme: Theme
) -> Figure:
    """The cost, and the mean width of each kind as a share of the dense one, over the events."""
    numbers = [0, *(event["number"] for event in events)]
    drawing, axes = figure(7.2, 3.0, "Cost and widths over the pruning events")
    cost = [1.0, *(event[target["name"]] for event in events)]
    axes.plot(numbers, cost, color=theme.ink, linewidth=2, label=str(target["name"]))
    axes.axhline(target["share"], color=theme.ink, linewidth=0.8, linestyle=":")
    shares = {"embedding": [1.0, *(event["structure"]["embed"] / dense.embed for event in events)]}
    for name, title in TITLES.items():
        full = sum(getattr(dense, name))
        shares[title] = [1.0, *(sum(event["structure"][name]) / full for event in events)]
    for (title, values), colour in zip(shares.items(), theme.series, strict=False):
        axes.step(numbers, values, where="post", linewidth=1.2, color=colour, label=title)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("event")
    axes.set_ylabel("share of the dense network")
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower left")
    return drawing
