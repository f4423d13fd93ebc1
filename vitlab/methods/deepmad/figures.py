"""A structure as a table and as a picture, and the points of a sweep over budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.files import atomic_write
from vitlab.methods.deepmad.evaluate import unit_params
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.structure import Conv, Structure

HEAD = ("unit", "in", "out", "bottleneck", "kernel", "stride", "units", "side", "params")


def rows(structure: Structure, resolution: int) -> list[tuple[str, ...]]:
    """One row of strings for each unit, under :data:`HEAD`; ``side`` is that of the output."""
    found: list[tuple[str, ...]] = []
    channels, side = 3, resolution
    for number, unit in enumerate(structure.units):
        side //= unit.stride
        if isinstance(unit, Conv):
            name = "stem" if number == 0 else "conv"
            params = (channels * unit.kernel**2 + 2) * unit.out
            middle = ("", str(unit.kernel), str(unit.stride), "")
        else:
            name = unit.kind
            args = (unit.out, unit.bottleneck, unit.kernel)
            params = unit_params(unit.kind, channels, *args, True)
            params += (unit.depth - 1) * unit_params(unit.kind, unit.out, *args, False)
            middle = (str(unit.bottleneck), str(unit.kernel), str(unit.stride), str(unit.depth))
        found.append((name, str(channels), str(unit.out), *middle, str(side), f"{params:,}"))
        channels = unit.out
    return found


def text_table(structure: Structure, resolution: int) -> str:
    """A table for the terminal."""
    table = [HEAD, *rows(structure, resolution)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = [
        "  ".join(word.ljust(width) if not column else word.rjust(width) for column, (word, width) in enumerate(cells))
        for cells in (tuple(zip(row, widths, strict=True)) for row in table)
    ]
    return "\n".join(line.rstrip() for line in lines)


def summary(problem: Problem, structure: Structure) -> str:
    """Score and costs of a structure beside its budgets."""
    spent, budget = problem.evaluate(structure), problem.budget

    def beside(limit: float | None, text: str) -> str:
        return "" if limit is None else f" of {text}"

    lines = [
        f"score   {spent.score:,.2f}   (entropy {spent.entropy:,.2f} - depth penalty {spent.penalty:,.2f}; "
        f"{problem.scoring.mode}); it is no accuracy",
        f"params  {spent.params:,}{beside(budget.params, f'{budget.params:,}')}",
        f"flops   {spent.flops:,}{beside(budget.flops, f'{budget.flops:,}')}",
        f"rho     {spent.rho:.4f}{beside(budget.rho, f'{budget.rho}')}",
    ]
    if problem.costs is not None:
        limit = budget.latency
        lines.append(f"latency {problem.latency(structure):.3g} ms{beside(limit, f'{limit} ms')} (cost table)")
    return "\n".join(lines)


def picture(structure: Structure, resolution: int, title: str, path: Path) -> None:
    """Draw widths over depth: every superblock as wide as it has layers and as high as it has channels (PNG).

    The light box is the output, the dark one the bottleneck; what is written above is units, kernel and side.
    """
    from vitlab.report.style import LIGHT, figure, png, themed

    with themed(LIGHT):
        drawing, axes = figure(7.2, 3.2, title)
        at, side, top = 0, resolution, max(unit.out for unit in structure.units)
        colours = LIGHT.series
        level = -1
        for number, unit in enumerate(structure.units):
            side //= unit.stride
            level += unit.stride == 2
            colour = colours[level % len(colours)]
            layers = 1 if isinstance(unit, Conv) else 3 * unit.depth
            axes.add_patch(_box(at, layers, unit.out, colour, 0.22))
            if isinstance(unit, Conv):
                label = f"{'stem' if number == 0 else 'conv'}\n{side} px"
            else:
                axes.add_patch(_box(at, layers, min(unit.bottleneck, unit.out), colour, 0.75))
                label = f"{unit.depth} x k{unit.kernel}\n{side} px"
            # Short units are close together: there is room for their channels only.
            narrow = layers < 6
            axes.annotate(
                f"{unit.out}" if narrow else f"{unit.out}\n{label}",
                (at + layers / 2, unit.out),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color=LIGHT.ink,
                linespacing=1.15,
            )
            at += layers
        axes.set_xlim(-1, at + 1)
        axes.set_ylim(0, top * 1.3)
        axes.set_xlabel("layers from the image")
        axes.set_ylabel("channels: output, bottleneck (dark)")
        axes.grid(axis="x", visible=False)
        atomic_write(path, png(drawing))


def _box(at: float, width: float, height: float, colour: str, alpha: float):  # type: ignore[no-untyped-def]  # Patch
    from matplotlib.patches import Rectangle

    return Rectangle((at, 0), width, height, facecolor=colour, alpha=alpha, edgecolor=colour, linewidth=0.8)


def points_table(points: Sequence[dict[str, Any]], rho: float | None) -> str:
    """The rows of ``sweep.json`` in Markdown, aligned for the terminal; networks beyond ``rho`` are listed."""
    from vitlab.report.compare import milliseconds, si

    latency = any(point["latency_ms"] is not None for point in points)
    rows = [("network", "score", "params", "FLOPs", "rho", *(("latency ms",) if latency else ()))]
    for point in points:
        cells = [
            "-" if point[key] is None else show(point[key])
            for key, show in (
                ("score", lambda value: f"{value:,.0f}"),
                ("params", si),
                ("flops", si),
                ("rho", lambda value: f"{value:.3f}"),
                *((("latency_ms", milliseconds),) if latency else ()),
            )
        ]
        rows.append((f"designed {point['name']}" if point["designed"] else point["name"], *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(w.rjust(n) if at else w.ljust(n) for at, (w, n) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join(f" {'-' * (n - 1)}{':' if at else '-'} " for at, n in enumerate(widths)) + "|")
    notes = [f"{point['name']} has no score: {point['why']}." for point in points if point.get("why")]
    beyond = [point["name"] for point in points if rho is not None and (point["rho"] or 0) > rho]
    if beyond:
        notes.append(f"Beyond the limit of rho, {rho:g}, and so no solutions of the programme: {', '.join(beyond)}.")
    notes.append("A score is an entropy, not an accuracy: a higher score need not mean a better classifier.")
    if latency:
        notes.append("Latency: of designs by the cost table, of hand-made networks measured on the same device.")
    return "\n".join([*lines, "", *notes]) + "\n"


def pareto_picture(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw score over FLOPs, parameters and, where known, latency (PNG); points are rows of ``sweep.json``.

    Networks without a score are left out (the table names them).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from vitlab.report.compare import tick
    from vitlab.report.style import LIGHT, png, themed

    points = [point for point in points if point["score"] is not None]
    costs = [("flops", "FLOPs"), ("params", "parameters")]
    if all(point["latency_ms"] is not None for point in points):
        costs.append(("latency_ms", "latency (ms)"))
    designed = [point for point in points if point["designed"]]
    others = [point for point in points if not point["designed"]]
    with themed(LIGHT):
        drawing = Figure(figsize=(3.2 * len(costs) + 0.6, 3.2), layout="constrained")
        FigureCanvasAgg(drawing)
        panels = drawing.subplots(1, len(costs), sharey=True)
        for axes, (key, name) in zip(panels, costs, strict=True):
            for group, label, colour, line in (
                (sorted(designed, key=lambda p, key=key: float(p[key])), "designed", LIGHT.series[0], "-"),  # type: ignore[misc]
                (others, "made by hand", LIGHT.series[2], ""),
            ):
                if not group:
                    continue
                x, y = [float(p[key]) for p in group], [float(p["score"]) for p in group]
                axes.plot(x, y, marker="o", markersize=4, linestyle=line, color=colour, label=label)
                # Labels of designs go below right of their points, the others above: they do not overlap on the line.
                place: dict[str, Any] = (
                    {"xytext": (4, -9)} if group is not others else {"xytext": (-3, 5), "ha": "center"}
                )
                for point, across, up in zip(group, x, y, strict=True):
                    axes.annotate(str(point["name"]), (across, up), textcoords="offset points", fontsize=6.5, **place)
            axes.set_xscale("log")
            axes.margins(0.2)
            axes.set_xlabel(name)
            axes.xaxis.set_major_formatter(lambda value, _: tick(value))
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        panels[0].set_ylabel("score (no accuracy)")
        if others:
            panels[0].legend(frameon=False, fontsize=7, loc="upper left")
        drawing.suptitle("score over cost", x=0.012, ha="left")
        atomic_write(path, png(drawing))
