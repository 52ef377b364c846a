"""Where the curves of a comparison lie."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.comparison import Comparison, Curve, Point
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.comparison import COLOURS, plot_comparison

NAN = math.nan


def point(images: int, value: float, half: float = 0.05, **more: object) -> Point:
    score = Interval(value=value, low=value - half, high=value + half, method="t")
    given = {"fraction": images / 1000, "images": images, "score": score, "seconds": 1.0}
    return Point(**{**given, **more})


def comparison(*curves: tuple[Point, ...]) -> Comparison:
    made = [
        Curve(name=f"m{i}", backbone="b", method=f"m{i}", points=points)
        for i, points in enumerate(curves)
    ]
    return Comparison(
        name="photos",
        task="classification",
        measure="accuracy",
        results=(),
        curves=tuple(made),
        effects=(),
        sentences=(),
        test="",
        split="",
        budget="",
        seconds=1.0,
    )


def test_numbers_of_images_lie_on_a_logarithmic_axis() -> None:
    plot = plot_comparison(comparison((point(10, 0.5), point(100, 0.6), point(1000, 0.7))))
    first, middle, last = (mark.x for mark in plot.lines[0].marks)
    assert middle - first == pytest.approx(last - middle)
    assert [text for _, text in plot.x_ticks] == ["10", "100", "1,000"]
    assert plot.is_curve


def test_curves_at_one_number_have_places_of_their_own() -> None:
    plot = plot_comparison(comparison(*[(point(90, 0.5 + 0.1 * k),) for k in range(3)]))
    assert [line.marks[0].x for line in plot.lines] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert [text for _, text in plot.x_ticks] == ["m0", "m1", "m2"]
    assert not plot.is_curve
    assert plot.x_title == "trained on 90 images"


def test_heights_are_scores_between_round_levels() -> None:
    plot = plot_comparison(comparison((point(10, 0.62, 0.04), point(20, 0.75, 0.04))))
    levels = [float(text) for _, text in plot.y_ticks]
    assert (levels[0], levels[-1]) == (0.55, 0.8)
    mark = plot.lines[0].marks[0]
    assert mark.y == pytest.approx((0.62 - 0.55) / 0.25)
    assert (mark.low, mark.high) == pytest.approx(((0.58 - 0.55) / 0.25, (0.66 - 0.55) / 0.25))


def test_single_trainings_lie_at_their_scores() -> None:
    scores = (0.41, 0.62, 0.83)
    plot = plot_comparison(comparison((point(10, 0.62, 0.01, scores=scores), point(20, 0.7))))
    levels = [float(text) for _, text in plot.y_ticks]
    placed_at = [
        levels[0] + y * (levels[-1] - levels[0]) for y in plot.lines[0].marks[0].single_runs
    ]
    assert placed_at == pytest.approx(scores)


def test_what_is_not_known_is_not_drawn() -> None:
    alone = Interval(value=0.7, low=NAN, high=NAN, method="t")
    nothing = Interval(value=NAN, low=NAN, high=NAN, method="t")
    plot = plot_comparison(comparison((point(10, 0.5, score=nothing), point(20, 0.7, score=alone))))
    (mark,) = plot.lines[0].marks
    assert (mark.low, mark.high) == (None, None)
    assert plot_comparison(comparison((point(10, 0.5, score=nothing),))).lines[0].marks == ()


def test_simple_rules_are_levels_where_the_axis_has_them() -> None:
    rules = {"majority class": 0.5, "random guess": 0.1}
    plot = plot_comparison(comparison((point(10, 0.45, rules=rules), point(20, 0.6, rules=rules))))
    assert [baseline.name for baseline in plot.baselines] == ["majority class"]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 0.6)).map(lambda p: point(8, *p)),
        min_size=1,
        max_size=12,
    )
)
def test_everything_lies_on_the_figure(points: list[Point]) -> None:
    plot = plot_comparison(comparison(*[(one, point(800, 0.5)) for one in points]))
    levels = [level for level, _ in plot.y_ticks]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 1)
    assert 2 <= len(levels) <= 7
    for line in plot.lines:
        for mark in line.marks:
            assert 0 <= mark.x <= 1
            assert mark.low is not None
            assert mark.high is not None
            assert 0 <= mark.low <= mark.y + 1e-9
            assert mark.y - 1e-9 <= mark.high <= 1
    firsts = [line.marks[0].x for line in plot.lines]
    assert all(a < b for a, b in pairwise(firsts))


def test_curves_differ_in_more_than_colour() -> None:
    plot = plot_comparison(comparison(*[(point(9, 0.5),) for _ in range(12)]))
    looks = {(line.colour, line.shape, line.is_hollow) for line in plot.lines}
    assert len(looks) == 12
    assert len(set(COLOURS)) == len(COLOURS)
