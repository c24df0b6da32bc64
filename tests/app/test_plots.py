"""Coordinates of plots and lineage drawings."""

from __future__ import annotations

import math

import pytest

from app.plots import (
    BOTTOM,
    COLUMN_GAP,
    LEFT,
    MARGIN,
    NODE_HEIGHT,
    NODE_WIDTH,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    RIGHT,
    ROW_GAP,
    WHISKER_MARGIN,
    WHISKER_WIDTH,
    Measured,
    Node,
    line_plot,
    lineage_layout,
    metric_plots,
    short_number,
    thin,
    ticks,
    whiskers,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.61, 0.69, [0.62, 0.64, 0.66, 0.68]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.6134, "0.613"), (12.5, "12.5"), (1200, "1,200"), (-0.5, "−0.5"), (3e-5, "3e-05"), (-2e-6, "−2e-06")],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_a_line_runs_from_the_left_to_the_right_edge() -> None:
    plot = line_plot("loss", {"loss": [(0, 1.0), (10, 0.5)]})
    assert plot is not None
    # y has a margin of 6 % of the span on both sides: 0.03 of 0.56.
    height = PLOT_HEIGHT - BOTTOM - plot.top
    top, bottom = plot.top + height * 0.03 / 0.56, plot.bottom - height * 0.03 / 0.56
    assert plot.lines[0].path == f"M{LEFT} {round(top, 1):g}L{PLOT_WIDTH - RIGHT} {round(bottom, 1):g}"
    assert plot.lines[0].last == "0.5"


def test_a_single_point_stands_in_the_middle() -> None:
    plot = line_plot("kl", {"kl": [(3, 0.1)]})
    assert plot is not None
    assert plot.lines[0].end == ((LEFT + PLOT_WIDTH - RIGHT) / 2, (plot.top + plot.bottom) / 2)


def test_points_are_joined_where_x_rises_and_the_last_one_is_the_end() -> None:
    plot = line_plot(
        "gao", {"rises": [(0.0, 0.0), (1.0, 4.0), (2.0, 3.0)], "back": [(0.0, 0.0), (2.0, 4.0), (1.0, 3.0)]}
    )
    assert plot is not None
    rises, back = plot.lines
    middle = (LEFT + PLOT_WIDTH - RIGHT) / 2
    assert (rises.is_joined, rises.path.count("M"), rises.path.count("L")) == (True, 1, 2)
    # A dot for each point: to itself, and to no other.
    dots = [dot.split("L") for dot in back.path.split("M")[1:]]
    assert (back.is_joined, len(dots)) == (False, 3)
    assert all(start == end for start, end in dots)
    assert (back.last, back.end[0]) == ("3", middle)


def test_an_interval_is_a_band_that_the_axis_holds() -> None:
    points = [Measured(0, 0.5, 0.3, 0.7), Measured(1, 0.6, 0.5, 0.7)]
    plot = line_plot("wins", {"wins": points, "half": [(0, 0.5)]})
    assert plot is not None
    wins, half = plot.lines
    # Along the lower ends, and back along the upper ones; 0.3 to 0.7 fill the axis but for a margin of 6 % of that.
    places = [float(number) for place in wins.band.strip("MZ").split("L") for number in place.split()]
    height, right = plot.bottom - plot.top, PLOT_WIDTH - RIGHT
    y = {value: plot.bottom - (value - 0.3 + 0.024) / 0.448 * height for value in (0.3, 0.5, 0.7)}
    assert places == pytest.approx([LEFT, y[0.3], right, y[0.5], right, y[0.7], LEFT, y[0.7]], abs=0.06)
    assert wins.last == "0.6 (0.5–0.7)"
    assert (half.band, half.last) == ("", "0.5")
    assert line_plot("wins", {"wins": [Measured(0, 0.5, math.nan, 0.7)]}) is None


def test_an_axis_of_steps_has_no_half_step_and_another_has() -> None:
    steps, roots = line_plot("kl", {"kl": [(0, 1.0), (2, 2.0)]}), line_plot("gao", {"gao": [(0.0, 1.0), (1.5, 2.0)]})
    assert steps is not None
    assert roots is not None
    assert [tick.text for tick in steps.x_ticks] == ["0", "1", "2"]
    assert [tick.text for tick in roots.x_ticks] == ["0", "0.5", "1", "1.5"]


def test_what_is_not_finite_is_left_out() -> None:
    plot = line_plot("kl", {"kl": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]})
    assert plot is not None
    assert plot.lines[0].path.count("L") == 1


def test_no_point_no_plot() -> None:
    assert line_plot("kl", {"kl": [(0, math.nan)]}) is None


def test_train_and_validation_share_a_plot() -> None:
    plots = metric_plots({"accuracy/train": [(0, 1)], "loss/reward": [(0, 1)], "accuracy/validation": [(0, 1)]})
    assert [(plot.name, [line.name for line in plot.lines]) for plot in plots] == [
        ("accuracy", ["accuracy/train", "accuracy/validation"]),
        ("loss/reward", ["loss/reward"]),
    ]


def test_thinning_keeps_the_ends() -> None:
    points = [(float(x), 0.0) for x in range(10_001)]
    kept = thin(points, 100)
    assert (len(kept), kept[0], kept[-1]) == (100, points[0], points[-1])


NODES = [
    Node("v1", "policy v1"),
    Node("v2", "reward v2", lane=1),
    Node("v3", "policy v3"),
    Node("v4", "reward v4", lane=1),
]
EDGES = [("v1", "v2"), ("v1", "v3"), ("v2", "v3"), ("v1", "v4")]


def test_a_version_stands_right_of_all_its_parents() -> None:
    placed = {node.key: node for node in lineage_layout(NODES, EDGES).nodes}
    step = NODE_WIDTH + COLUMN_GAP
    assert [placed[key].x - MARGIN for key in ("v1", "v2", "v4", "v3")] == [0, step, step, 2 * step]


def test_lanes_and_boxes_never_overlap() -> None:
    placed = {node.key: node for node in lineage_layout(NODES, EDGES).nodes}
    rows = [(placed[key].y - MARGIN) / (NODE_HEIGHT + ROW_GAP) for key in ("v1", "v3", "v2", "v4")]
    assert rows == [0, 0, 1, 2]


def test_every_edge_is_drawn_and_unknown_ones_are_not() -> None:
    assert len(lineage_layout(NODES, [*EDGES, ("gone", "v1")]).edges) == len(EDGES)


def test_an_empty_lineage_has_no_size_to_speak_of() -> None:
    assert lineage_layout([], []).nodes == []


def test_a_version_can_not_be_its_own_ancestor() -> None:
    with pytest.raises(ValueError, match="ancestor"):
        lineage_layout(NODES[:2], [("v1", "v2"), ("v2", "v1")])


def test_whiskers_share_an_axis_that_holds_them_all() -> None:
    first, second = whiskers([(0.5, 0.4, 0.6, 0.5), (0.9, 0.8, 1.0, None)])
    assert first.at == first.expected
    assert (
        WHISKER_MARGIN < first.low < first.at < first.high < second.low < second.high < WHISKER_WIDTH - WHISKER_MARGIN
    )
    assert second.expected is None
    assert whiskers([]) == []
