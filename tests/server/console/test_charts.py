"""Geometry of charts."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from craft_server.console.charts import Series, bar_chart, line_chart, marks, thinned_rows


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 50, 100]),
        (0, 72, [0, 20, 40, 60, 80]),
        (81.3, 93.8, [80, 85, 90, 95]),
        (0.0012, 0.0041, [0.001, 0.002, 0.003, 0.004, 0.005]),
    ],
)
def test_axes_have_round_marks_around_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert marks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1.0, 50.0, -3.5, 1e-12, 1e12])
def test_one_value_has_an_axis_around_it(value: float) -> None:
    found = marks(value, value)
    assert found[0] <= value <= found[-1]
    assert found[0] < found[-1]


def test_bars_stand_on_the_lower_edge_and_the_highest_reaches_the_upper() -> None:
    chart = bar_chart([0, 5, 10])
    assert chart.top == 10
    assert [(bar.y, bar.height) for bar in chart.bars] == [(50, 50), (0, 100)]
    assert bar_chart([0, 0]).bars == []


def test_lines_go_from_the_left_to_the_last_point() -> None:
    chart = line_chart(
        [Series("a", [(10, 1.0), (20, 2.0), (40, 2.0)]), Series("b", [(10, None), (50, None)])]
    )
    assert chart is not None
    (line,) = chart.lines
    assert line.points.split()[0].startswith("25.0,")
    assert line.last_x == 100
    assert all(0 <= tick.at <= 100 for tick in [*chart.x_ticks, *chart.y_ticks])


def test_percentages_have_an_axis_of_percentages() -> None:
    chart = line_chart([Series("a", [(1, 99.0), (2, 100.0)])], bounds=(0, 100))
    assert chart is not None
    assert max(float(tick.text) for tick in chart.y_ticks) == 100


def test_nothing_makes_no_chart() -> None:
    assert line_chart([]) is None
    assert line_chart([Series("a", [])]) is None
    assert line_chart([Series("a", [(1, None)], before=50.0)]) is None


def test_what_a_line_began_from_is_a_level_that_the_axis_covers() -> None:
    chart = line_chart(
        [
            Series("nothing yet", [(1, None)], before=5.0),
            Series("a", [(1, 80.0), (2, 90.0)], before=40.0),
            Series("b", [(7, 60.0)]),
        ]
    )
    assert chart is not None
    assert [line.name for line in chart.lines] == ["a", "b"]
    (level,) = chart.levels
    assert (level.name, level.line) == ("a", 1)
    assert level.at == chart.y_ticks[0].at == 100
    assert chart.y_ticks[0].text == "40"


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    chart = line_chart([Series("a", [(n, float(n)) for n in range(20_000)])])
    assert chart is not None
    assert len(chart.lines[0].points.split()) <= 501
    assert chart.lines[0].last_x == 100
    assert thinned_rows(10, most=3) == [0, 4, 8, 9]
    assert thinned_rows(0, most=3) == []


_VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False)
_POINTS = st.lists(st.tuples(st.integers(0, 10**15), _VALUES, _VALUES), max_size=6)


@given(_POINTS, st.integers(0, 10**15))
@example([(5, 1e308, -1e308), (2**53, -1e308, 1e308)], 0)
@example([(9, 5e-324, 1.7e308), (1, None, 0.0)], 0)
def test_any_finite_numbers_make_a_chart(
    points: list[tuple[int, float | None, float | None]], right: int
) -> None:
    one = Series("one", [(at, value) for at, value, _ in points])
    other = Series("other", [(at, value) for at, _, value in points])
    chart = line_chart([one, other], right=right)
    if chart is None:
        assert all(value is None for _, value in [*one.points, *other.points])
        return
    for line in chart.lines:
        places = [float(place) for pair in line.points.split() for place in pair.split(",")]
        assert all(math.isfinite(place) and -1 <= place <= 101 for place in places)
    for tick in [*chart.x_ticks, *chart.y_ticks]:
        assert 0 <= tick.at <= 100
        assert len(tick.text) < 30
