"""What the figures show is what was measured; labels do not overlap; both themes draw."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitlab.measure.classification import Evaluation, wilson_interval
from vitlab.measure.cost_record import Cost
from vitlab.report import curves, plots, style
from vitlab.report.data import ModelRow, ReportData, curves_of
from vitlab.report.figures import drawings
from vitlab.tasks.classification import Classification
from vitlab.tasks.parts import classification_figures

TASK = Classification()


@given(st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(0.02, 0.12)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_labels_are_kept_apart_inside_and_in_order(labels: list[tuple[float, float]]) -> None:
    wanted, heights = [w for w, _ in labels], [h for _, h in labels]
    placed = curves.apart(wanted, heights, 0.0, 1.0)
    order = sorted(range(len(labels)), key=lambda i: wanted[i])
    for i, j in pairwise(order):
        assert placed[j] - placed[i] >= (heights[i] + heights[j]) / 2 - 1e-9
    assert placed[order[0]] - heights[order[0]] / 2 >= -1e-9
    assert placed[order[-1]] + heights[order[-1]] / 2 <= 1 + 1e-9


def test_labels_with_room_stay_where_they_belong() -> None:
    assert curves.apart([0.8, 0.2, 0.5], [0.1, 0.1, 0.1], 0, 1) == pytest.approx([0.8, 0.2, 0.5])
    assert curves.apart([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])


def test_running_mean_keeps_constants_and_length() -> None:
    assert curves.running_mean(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert curves.running_mean(np.array([0.0, 3.0, 6.0]), share=0.01) == pytest.approx([1.5, 3.0, 4.5])


def test_every_model_has_its_own_colour_and_the_primary_is_blue() -> None:
    roles = ["teacher", "student", "baseline", "student", "student"]
    rows = [ModelRow(f"m{i}", f"s{i}", role) for i, role in enumerate(roles)]
    found = style.slots(rows, "m1")
    assert found["m1"] == 0 and found["m0"] == 1 and found["m2"] == 2
    assert len(set(found.values())) == 5
    assert all(len(theme.series) == len(style.SLOTS) for theme in (style.LIGHT, style.DARK))


def test_blend() -> None:
    assert style.blend("#000000", "#ffffff", 0.5) == "#808080"
    assert style.blend("#123456", "#ffffff", 1.0) == "#123456"


def test_curves_show_the_record(data: ReportData) -> None:
    with style.themed(style.LIGHT):
        drawing = curves.accuracy(data.curves, style.LIGHT, {"teacher": 1, "pretrain": 0, "labels": 2}, TASK.headline)
        assert drawing is not None
        axes = drawing.axes[0]
        lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 4]
        assert [line.get_ydata()[-1] for line in lines] == pytest.approx([95, 93, 70])  # type: ignore[index]
        names = [text.get_text().replace("\n", " ") for text in axes.texts]
        assert names == ["teacher", "student, stored labels", "labels"]
        assert [text.get_color() for text in axes.texts] == [style.LIGHT.series[i] for i in (1, 0, 2)]
        assert curves.accuracy([], style.LIGHT, {}, TASK.headline) is None


@pytest.mark.parametrize("values", [[0.0, 0.1, 0.9, 0.99], [0.9, 0.91, 0.92], [0.5, 1.0], [1.0, 1.0], [0.0, 0.0]])
def test_every_point_of_a_curve_is_within_its_axes(values: list[float]) -> None:
    """The first ones, too: of the validation and of the loss, whose range is that of the records, not of their mean."""
    points = [{"step": float(n), "val_top1": v, "loss": 10.0 ** (1 - n)} for n, v in enumerate(values, 1)]
    record = curves_of([{"stage": "train", **point} for point in points])
    with style.themed(style.LIGHT):
        drawn = [
            curves.accuracy(record, style.LIGHT, {"train": 0}, TASK.headline),
            curves.loss(record, style.LIGHT, {"train": 0}),
        ]
        for drawing, shown in zip(drawn, ([100 * v for v in values], [p["loss"] for p in points]), strict=True):
            assert drawing is not None
            drawing.draw_without_rendering()
            axes = drawing.axes[0]
            low, high = axes.get_ylim()
            assert low - 1e-9 <= min(shown) and max(shown) <= high + 1e-9
            ends = [axes.transData.transform((1.0, value))[1] for value in shown]
            assert np.isfinite(ends).all() and len({round(end, 1) for end in ends}) == len(set(shown))
            assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 2 or len(set(shown)) == 1


def test_names_at_the_ends_do_not_overlap(data: ReportData) -> None:
    with style.themed(style.LIGHT):
        for draw in (curves.loss, curves.learning_rate):
            drawing = draw(data.curves, style.LIGHT, {})
            assert drawing is not None
            drawing.draw_without_rendering()
            notes = [t for t in drawing.axes[0].texts if isinstance(t, Annotation)]
            boxes = sorted((note.get_window_extent() for note in notes), key=lambda box: box.y0)
            assert len(boxes) == 3
            for below, above in pairwise(boxes):
                assert below.y1 <= above.y0 + 1
            assert max(box.x1 for box in boxes) <= drawing.bbox.x1


def test_intervals_are_wilsons_where_none_was_drawn(data: ReportData) -> None:
    with style.themed(style.LIGHT):
        drawing = classification_figures.accuracy_intervals(
            data.rows, style.LIGHT, style.slots(data.rows, data.primary)
        )
    assert drawing is not None
    found = data.rows[0].evaluation
    assert isinstance(found, Evaluation)
    lo, hi = wilson_interval(round(found.top1 * found.n), found.n)
    assert drawing.axes[0].lines[0].get_xdata() == pytest.approx([100 * lo, 100 * hi])


def test_confusion_shows_every_count(data: ReportData) -> None:
    found = data.main.evaluation
    assert isinstance(found, Evaluation)
    with style.themed(style.DARK):
        drawing = classification_figures.confusion(found, style.DARK)
    assert drawing is not None
    shown = np.zeros_like(found.confusion)
    for text in drawing.axes[0].texts:
        column, line = text.get_position()
        shown[int(line), int(column)] = int(text.get_text())
    assert np.array_equal(shown, found.confusion)


def test_reliability_draws_every_bin_that_has_images(data: ReportData) -> None:
    found = data.main.evaluation
    assert isinstance(found, Evaluation)
    with style.themed(style.LIGHT):
        drawing = classification_figures.reliability("name", found, style.LIGHT, 0)
    above, below = drawing.axes
    assert [bar.get_height() for bar in above.patches] == pytest.approx(  # type: ignore[attr-defined]
        [each.accuracy for each in found.reliability if each.n]
    )
    assert sum(bar.get_height() for bar in below.patches) == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_cost_axis_is_one_that_tells_models_apart() -> None:
    def rows(*costs: Cost) -> list[ModelRow]:
        return [ModelRow(f"m{i}", "s", "student", {"top1": 0.5}, cost=cost) for i, cost in enumerate(costs)]

    assert plots.cost_axis(rows(Cost(1, 10), Cost(2, 20))) == "macs"
    assert plots.cost_axis(rows(Cost(1, 10), Cost(2, 10))) == "params"
    assert plots.cost_axis(rows(Cost(1, 10), Cost(2))) == "params"
    assert plots.cost_axis(rows(Cost(1), Cost(1))) is None
    assert plots.cost_axis(rows(Cost())) is None


def test_every_figure_draws_in_both_themes_and_says_when_data_are_synthetic(data: ReportData) -> None:
    for theme in (style.LIGHT, style.DARK):
        with style.themed(theme):
            for each in drawings(data, TASK):
                drawing = each.draw(theme)
                assert isinstance(drawing, Figure), each.name
                style.mark_synthetic(drawing, theme)
                assert "synthetic data" in [text.get_text() for text in drawing.texts]
                assert drawing.get_facecolor()[:3] == pytest.approx(
                    [int(theme.paper[i : i + 2], 16) / 255 for i in (1, 3, 5)]
                )
