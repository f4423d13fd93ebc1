"""Times of models in several backends, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitlab.measure.timing import Timing
from vitlab.report.compare import milliseconds, wrap
from vitlab.report.style import WIDTH, Theme, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latency_bars(timings: Sequence[Timing], titles: Mapping[str, str], theme: Theme) -> Figure:
    """Median milliseconds of one batch size, a group of bars a model and a colour a backend; the line spans the 10 to
    90 % range."""
    models = list(dict.fromkeys(one.name for one in timings))
    backends = list(dict.fromkeys(one.backend for one in timings))
    colours = {name: theme.series[i % len(theme.series)] for i, name in enumerate(backends)}
    height = 1.0 + 0.3 * len(timings) + 0.15 * len(models)
    drawing, axes = figure(WIDTH, height, f"Milliseconds for a batch of {timings[0].batch}")
    place, ticks = 0.0, []
    for model in models:
        own = [one for one in timings if one.name == model]
        ticks.append(place + (len(own) - 1) / 2)
        for one in own:
            colour = colours[one.backend]
            axes.barh(place, one.median_ms, 0.8, color=colour)
            axes.plot([one.p10_ms, one.p90_ms], [place, place], color=theme.ink, linewidth=1.1)
            label = milliseconds(one.median_ms) + (f"  {one.backend}" if len(backends) > 1 else "")
            axes.annotate(
                label, (max(one.p90_ms, one.median_ms), place), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8, color=colour, fontweight="bold",
            )  # fmt: skip
            place += 1
        place += 0.5
    axes.set_yticks(ticks, [wrap(titles[one], 20) for one in models])
    axes.set_ylim(place - 0.7, -0.8)
    axes.set_xlim(0, 1.45 * max(max(one.p90_ms, one.median_ms) for one in timings))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return drawing
