"""The figures about corrupted images and shifted sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitlab.measure.robustness import Robustness, Shifted
from vitlab.report.compare import percent, wrap
from vitlab.report.style import WIDTH, Theme, blend, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def radar(rows: Sequence[tuple[str, Robustness]], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Top-1 under each corruption, mean over its severities: the further out, the better. The faint ring of a model is
    its accuracy without corruption. None for fewer than three corruptions, which span no area."""
    if not rows or len(rows[0][1].names) < 3:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = rows[0][1].names
    angles = [2 * math.pi * place / len(names) for place in range(len(names))]
    drawing = Figure(figsize=(WIDTH, WIDTH + 0.22 * len(rows)), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle("Top-1 % under corruption", x=0.012, ha="left")
    axes = drawing.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]  # a polar axes
    axes.set_theta_direction(-1)  # type: ignore[attr-defined]
    around = [2 * math.pi * step / 180 for step in range(181)]
    for name, state in rows:
        colour = theme.series[colours[name]]
        if state.clean is not None:
            ring = [100 * state.clean.top1] * len(around)
            axes.plot(around, ring, color=blend(colour, theme.paper, 0.4), linewidth=0.9, linestyle=(0, (4, 3)))
        values = [100 * state.mean("top1", name=one) for one in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], color=colour, linewidth=1.6, label=wrap(name, 44))
        axes.fill(angles, values, color=colour, alpha=0.08)
        axes.plot(angles, values, "o", color=colour, markersize=3.2)
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", ""])
    axes.set_rlabel_position(180 / len(names))  # type: ignore[attr-defined]  # between two spokes
    axes.tick_params(axis="y", labelsize=7, colors=theme.quiet)
    axes.set_xticks(angles, [one.replace("_", "\n") for one in names], fontsize=7.5)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        lean = math.sin(angle)
        text.set_horizontalalignment("center" if abs(lean) < 0.1 else "left" if lean > 0 else "right")
        text.set_color(theme.ink)
    axes.tick_params(axis="x", pad=1)
    axes.spines["polar"].set_color(theme.faint)
    drawing.legend(loc="outside lower left", frameon=False, fontsize=8, labelcolor="linecolor")
    return drawing


def by_severity(rows: Sequence[tuple[str, Robustness]], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Top-1 and ECE against severity, means over the corruptions; severity 0 is the clean image. None for a single
    point."""
    if not rows or len(rows[0][1].severities) + (rows[0][1].clean is not None) < 2:
        return None
    drawing, axes = figure(WIDTH, 3.9, "Top-1 % and ECE % by severity")
    axes.remove()
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for name, state in rows:
        colour = theme.series[colours[name]]
        for panel, metric in ((above, "top1"), (below, "ece")):
            clean = [(0, 100 * getattr(state.clean, metric))] if state.clean is not None else []
            points = clean + [(level, 100 * state.mean(metric, severity=level)) for level in state.severities]
            panel.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4)
    above.set_ylabel("top-1 %")
    above.set_ylim(bottom=0, top=100)
    below.set_ylabel("ECE %")
    below.set_ylim(bottom=0)
    below.set_xlabel("severity of the corruption")
    below.set_xticks(sorted({0 if rows[0][1].clean is not None else rows[0][1].severities[0], *rows[0][1].severities}))
    for panel in (above, below):
        panel.grid(axis="x", visible=False)
    return drawing


def shifted_bars(rows: Sequence[tuple[str, Shifted]], theme: Theme, colours: Mapping[str, int]) -> Figure | None:
    """Top-1 on every shifted set, the models of a set together."""
    titles = list(dict.fromkeys(one.title for _, state in rows for one in state.sets))
    if any(state.corrupted is not None and state.corrupted.cells for _, state in rows):
        titles.append("ImageNet-C")
    if not titles:
        return None
    tall = 0.9 + len(titles) * (0.16 + 0.2 * len(rows)) + 0.22 * len(rows)
    drawing, axes = figure(WIDTH, tall, "Top-1 % on shifted sets")
    height = 0.8 / len(rows)
    for row, (name, state) in enumerate(rows):
        shares = {one.title: one.full.top1 for one in state.sets}
        if state.corrupted is not None and state.corrupted.cells:
            shares["ImageNet-C"] = state.corrupted.mean("top1")
        colour = theme.series[colours[name]]
        for title, share in shares.items():
            at = titles.index(title) + (row - (len(rows) - 1) / 2) * height
            axes.barh(at, 100 * share, height * 0.86, color=colour, label=name if title == next(iter(shares)) else None)
            axes.annotate(
                percent(share, 1), (100 * share, at), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=7, color=colour,
            )  # fmt: skip
    drawing.legend(loc="outside lower left", frameon=False, fontsize=8, labelcolor="linecolor")
    axes.set_yticks(range(len(titles)), [wrap(title, 20) for title in titles])
    axes.set_ylim(len(titles) - 0.45, -0.55)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing
