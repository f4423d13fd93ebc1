"""All runs in one picture: accuracy against latency, the size of a dot the number of parameters.

Read from the records of the runs, so it costs nothing to draw again. A panel holds one measured set of images; times
are compared only where they were measured on the same device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.errors import UserError
from vitlab.files import atomic_write, read_json, write_json
from vitlab.report import style
from vitlab.report.compare import clip, count, device, milliseconds, si, tick
from vitlab.report.curves import apart, line_share
from vitlab.report.data import CLASSIFICATION
from vitlab.report.task import ReportTask
from vitlab.run.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 12  # models of a panel that carry their names; more are numbered


@dataclass
class Point:
    """The result of one run."""

    run: str  # folder's name
    method: str
    stage: str
    dataset: str
    images: int  # measured
    synthetic: bool
    metric: str  # name of the headline metric of its task
    value: float  # of it, a share
    params: int
    macs: int
    device: str  # that the times are of, with its threads
    batch: int
    median_ms: float
    session: str  # times of one session were taken in turns; those of two may differ with the machine's mood


def collect_points(output: Path, find_task: Callable[[str], ReportTask]) -> list[Point]:
    """The results of all finished evaluations with a time below ``output``, at the smallest timed batch."""
    points = []
    for marker in sorted(output.glob("*/*/run.json")):
        try:
            run = Run.at(marker.parent)
        except UserError:  # of another version: mode=report run=... explains it
            continue
        point = _point(run, find_task)
        if point is not None:
            points.append(point)
    return points


def _point(run: Run, find_task: Callable[[str], ReportTask]) -> Point | None:
    if not (run.is_done("evaluation") and run.is_done("benchmark")):
        return None
    benchmark = run.read_done("benchmark")
    evaluation = run.read_done("evaluation")
    metrics, costs = evaluation["metrics"], benchmark["costs"]
    dataset: dict[str, Any] = read_json(run.folder / "evaluation" / "dataset.json")
    assert isinstance(metrics, dict) and isinstance(costs, dict)
    stage = str(evaluation["result"])
    cost = costs.get(stage)
    if cost is None or not cost["latency"]:
        return None
    least = min(cost["latency"], key=lambda one: one["batch"])
    method, task = run.tree["method"], run.tree.get("task")
    assert isinstance(method, dict)
    headline = find_task(str(task["name"]) if isinstance(task, dict) else CLASSIFICATION).headline
    return Point(
        run=run.name,
        method=str(method["name"]),
        stage=stage,
        dataset=f"{dataset['name']}, {dataset['split']} split, {dataset['test']:,} images",
        images=int(dataset["test"]),
        synthetic=bool(dataset["synthetic"]),
        metric=headline.name,
        value=float(metrics[stage][headline.key]),
        params=int(cost["params"]),
        macs=int(cost["macs"]),
        device=device(str(cost["device"]), int(cost["threads"])),
        batch=int(least["batch"]),
        median_ms=float(least["median_ms"]),
        session=str(benchmark.get("session", benchmark["time"])),
    )


def write_accuracy_latency(output: Path, find_task: Callable[[str], ReportTask]) -> list[Path]:
    """``benchmark/landscape.png`` and ``.json`` below ``output``; nothing where fewer than two runs have both numbers.

    ``find_task`` gives the task of a name. Of several devices, that of most runs is drawn; the JSON holds all points.
    """
    points = collect_points(output, find_task)
    if len(points) < 2:
        return []
    folder = output / "benchmark"
    write_json(folder / "landscape.json", [asdict(one) for one in points])
    device, batch = Counter((one.device, one.batch) for one in points).most_common(1)[0][0]
    shown = [one for one in points if (one.device, one.batch) == (device, batch)]
    with style.themed(style.LIGHT):
        drawing = draw(shown, style.LIGHT, len(points) - len(shown))
        if any(one.synthetic for one in shown):
            style.mark_synthetic(drawing, style.LIGHT)
        atomic_write(folder / "landscape.png", style.png(drawing))
    return [folder / "landscape.png", folder / "landscape.json"]


def draw(points: list[Point], theme: style.Theme, elsewhere: int = 0) -> Figure:
    """A panel for each set of images and metric; up and to the left is better.

    Args:
        points: all timed on the same device at the same batch size.
        theme: colours.
        elsewhere: runs that are not drawn because they were timed on another device, counted in the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys((one.dataset, one.metric) for one in points))
    methods = list(dict.fromkeys(one.method for one in points))
    colours = {method: theme.series[i % len(theme.series)] for i, method in enumerate(methods)}
    sizes = [[one for one in points if (one.dataset, one.metric) == measured] for measured in sets]
    heights = [1.2 + 0.24 * min(max(len(one), 6), 14) for one in sizes]
    drawing = Figure(figsize=(6.4, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle("Accuracy, latency and size of the runs", x=0.012, ha="left")
    panels = drawing.subplots(len(sets), 1, squeeze=False, height_ratios=heights)[:, 0]
    largest = max(one.params for one in points)
    for axes, (name, _), here in zip(panels, sets, sizes, strict=True):
        _panel(axes, name, here, theme, colours, largest)
    panels[-1].set_xlabel(f"milliseconds for a batch of {points[0].batch}, {points[0].device}")
    foot = f"area of a dot: parameters (the largest: {si(largest)})"
    sessions = len({one.session for one in points})
    foot += f"; times of {sessions} sessions, measured together they compare better" if sessions > 1 else ""
    foot += f"; not shown: {count(elsewhere, 'run')} timed elsewhere" if elsewhere else ""
    drawing.supxlabel(foot, fontsize=7.5, color=theme.quiet, x=0.012, ha="left")
    for i, method in enumerate(methods):
        drawing.text(
            0.995 - 0.16 * (len(methods) - 1 - i), 0.995, f"● {method}", ha="right", va="top", fontsize=8,
            color=colours[method],
        )  # fmt: skip
    return drawing


def _panel(
    axes: Axes, title: str, points: list[Point], theme: style.Theme, colours: dict[str, str], largest: int
) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    x, y = [one.median_ms for one in points], [100 * one.value for one in points]
    span = max(max(x) / min(x), 1.5)
    room = max(max(y) - min(y), 4.0)  # less would make chance look like a difference
    low, high = max(0.0, min(y) - 0.25 * room), min(max(y) + 0.25 * room, 100 + 0.08 * room)
    axes.set_title(title, loc="left", fontsize=8.5, color=theme.quiet)
    axes.set_xscale("log")
    axes.set_xlim(min(x) / span**0.15, max(x) * span**1.1)
    axes.set_ylim(low, high)
    axes.set_ylabel(f"{points[0].metric} %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: tick(value) if value >= 1 else f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    short = _distinct(points)
    share = line_share(axes) * (high - low) * 1.25
    order = sorted(range(len(points)), key=lambda i: x[i])
    places = list(y)
    while order:
        near = [i for i in order if x[i] <= x[order[0]] * span**0.5]
        order = [i for i in order if i not in near]
        for i, at in zip(near, apart([y[i] for i in near], [share] * len(near), low, high), strict=True):
            places[i] = at
    for number, (one, at) in enumerate(zip(points, places, strict=True), 1):
        colour = colours[one.method]
        area = 30 + 330 * one.params / largest
        axes.scatter([one.median_ms], [100 * one.value], s=area, color=colour, alpha=0.75, linewidths=0, clip_on=False)
        text = short[number - 1] if len(points) <= NAMED else str(number)
        text = f"{text}  {si(one.params, 2)}, {milliseconds(one.median_ms)} ms" if len(points) <= NAMED else text
        axes.annotate(
            text, (one.median_ms, at), xytext=(5 + area**0.5 / 2, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=colour,
        )  # fmt: skip
    if len(points) > NAMED:
        names = "\n".join(f"{i} {clip(name, 28)}" for i, name in enumerate(short, 1))
        axes.text(
            1.01, 1.0, names, transform=axes.transAxes, fontsize=6.5, va="top", color=theme.quiet, linespacing=1.3
        )


def _distinct(points: list[Point]) -> list[str]:
    """Names of the runs without the hash, unless two would be the same."""
    bare = [one.run.rpartition("-")[0] or one.run for one in points]
    count = Counter(zip(bare, (one.method for one in points), strict=True))
    return [clip(name if count[name, one.method] == 1 else one.run, 40) for name, one in zip(bare, points, strict=True)]
