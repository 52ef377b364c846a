"""Places on a page, held against arithmetic done another way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from headstart.metrics.classification import Reliability, reliability_curve
from headstart.metrics.confidence_intervals import Interval, wilson_interval
from headstart.reports import charts

finite = st.floats(0, 1e6, allow_nan=False)


@given(st.tuples(finite, finite, finite).map(sorted))
def test_an_axis_holds_its_interval_and_wastes_less_than_three_fifths(ends: list[float]) -> None:
    low, value, high = ends
    interval = Interval(value=value, low=low, high=high, method="")
    end = charts.axis_end(interval)
    assert end >= high
    assert high == 0 or end <= 2.5 * high * (1 + 1e-9)
    bar = charts.interval_bar(interval, end)
    assert bar.left is not None
    assert bar.width is not None
    assert 0 <= bar.left <= bar.left + bar.width <= 100 + 1e-9
    assert bar.point == pytest.approx(100 * value / end, abs=0.01)


def test_an_interval_beyond_the_axis_is_cut_at_its_ends() -> None:
    wide = Interval(value=3.0, low=-1.0, high=2.0, method="")
    assert charts.interval_bar(wide) == charts.Bar(point=100.0, left=0.0, width=100.0)


def test_a_number_without_an_interval_keeps_its_point() -> None:
    half = Interval(value=0.5, low=math.nan, high=math.nan, method="")
    assert charts.interval_bar(half) == charts.Bar(point=50.0, left=None, width=None)


def test_confused_pairs_are_all_wrong_answers_most_frequent_first() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 6, 300), rng.integers(0, 6, 300)
    table = confusion_matrix(truth, said)
    pairs = charts.confused_pairs(table)
    assert sum(pair.count for pair in pairs) == (truth != said).sum()
    assert [pair.count for pair in pairs] == sorted((p.count for p in pairs), reverse=True)
    shares = confusion_matrix(truth, said, normalize="true")
    assert all(pair.share == pytest.approx(shares[pair.truth, pair.prediction]) for pair in pairs)
    np.testing.assert_allclose(charts.row_shares(table), shares)
    assert charts.confused_pairs(table, 4) == pairs[:4]


def test_reliability_points_lie_at_confidence_and_accuracy() -> None:
    rng = np.random.default_rng(1)
    chances = rng.dirichlet((1.0, 1.0, 1.0), 200)
    found = reliability_curve(rng.integers(0, 3, 200), chances, 10)
    plot = charts.reliability_plot(found)
    filled = np.flatnonzero(found.weight)
    assert len(plot.bins) == len(filled) < 10
    assert sum(one.share for one in plot.bins) == pytest.approx(1)
    assert max(one.height for one in plot.bins) == charts.STRIP
    for i, one in zip(filled, plot.bins, strict=True):
        assert one.x == pytest.approx(charts.SIDE * found.confidence[i], abs=0.01)
        assert one.y == pytest.approx(charts.SIDE * (1 - found.accuracy[i]), abs=0.01)
        ends = wilson_interval(found.accuracy[i] * found.weight[i], found.weight[i])
        assert one.low == pytest.approx(charts.SIDE * (1 - ends.low), abs=0.01)
        assert one.high == pytest.approx(charts.SIDE * (1 - ends.high), abs=0.01)
        assert one.left <= one.x <= one.left + plot.step
    bare = charts.reliability_plot(found, independent=False)
    assert {(one.low, one.high) for one in bare.bins} == {(None, None)}


def test_a_reliability_diagram_of_nothing_is_empty() -> None:
    nothing = np.full(10, np.nan)
    found = Reliability(confidence=nothing, accuracy=nothing, weight=np.zeros(10))
    assert charts.reliability_plot(found).bins == ()


def test_the_curve_marks_its_lowest_point_and_every_decade() -> None:
    xs = [10.0**e for e in (-1, -1.5, -2, -2.5, -3)]
    ys = [0.9, 0.5, 0.4, 0.45, 0.6]
    drawn = charts.curve(list(zip(xs, ys, strict=True)))
    assert drawn.chosen == 2
    assert drawn.points[2] == (charts.CURVE_WIDTH / 2, charts.CURVE_HEIGHT)
    assert drawn.points[0] == (charts.CURVE_WIDTH, 0)
    assert [tick.text for tick in drawn.x_ticks] == ["10⁻³", "10⁻²", "10⁻¹"]
    assert [tick.text for tick in drawn.y_ticks] == ["0.4", "0.65", "0.9"]


def test_a_flat_curve_and_a_single_point_have_a_place() -> None:
    assert charts.curve([(0.1, 1.0)]).points == ((150.0, 75.0),)
    assert {y for _, y in charts.curve([(0.1, 1.0), (0.01, 1.0)]).points} == {75.0}


def test_epochs_lie_evenly_and_the_one_kept_is_chosen() -> None:
    losses = [2.0, 1.5, 1.0, 1.25, 1.75, 1.5]
    drawn = charts.epoch_curve(list(enumerate(losses, 1)), best=3)
    assert drawn is not None
    assert drawn.chosen == 2
    for (x, y), epoch, loss in zip(drawn.points, range(6), losses, strict=True):
        assert x == pytest.approx(charts.CURVE_WIDTH * epoch / 5)
        assert y == pytest.approx(charts.CURVE_HEIGHT * (2 - loss))
    assert [tick.text for tick in drawn.y_ticks] == ["1", "1.5", "2"]
    assert drawn.line.split() == [f"{x:g},{y:g}" for x, y in drawn.points]


@pytest.mark.parametrize("count", [2, 5, 6, 7, 40, 1000])
def test_epoch_ticks_are_few_distinct_and_hold_the_first_and_the_last(count: int) -> None:
    drawn = charts.epoch_curve([(i, float(i)) for i in range(1, count + 1)])
    assert drawn is not None
    numbers = [int(tick.text) for tick in drawn.x_ticks]
    assert numbers == sorted(set(numbers))
    assert (numbers[0], numbers[-1]) == (1, count)
    assert len(numbers) <= 6
    for tick in drawn.x_ticks:
        assert tick.at == drawn.points[int(tick.text) - 1][0]


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_epochs_without_a_number_leave_a_gap_not_an_error(nothing: float | None) -> None:
    drawn = charts.epoch_curve([(1, 1.0), (2, nothing), (3, 2.0)], best=2)
    assert drawn is not None
    assert len(drawn.points) == 2
    assert drawn.chosen == -1
    assert charts.epoch_curve([(1, 1.0), (2, nothing)]) is None
    assert charts.epoch_curve([]) is None


@pytest.mark.parametrize("text", ["a|b", "<b>", "[x](y)", "*a* _b_", "`c`", "# d", "two\nlines"])
def test_markdown_text_keeps_its_characters_and_loses_their_meaning(text: str) -> None:
    written = charts.markdown(text)
    assert "\n" not in written
    assert written.replace("\\", "") == " ".join(text.split())
    unescaped = [c for i, c in enumerate(written) if c in "|<>[]*_`#" and written[i - 1] != "\\"]
    assert unescaped == []
