"""Charts as geometry: numbers in, positions in percent of the drawing out.

Templates draw them as SVG that stretches to its place, with the texts outside of what is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_DRAWN = 500  # points of a line; more could not be told apart
_GAP = 0.25  # of a bar's place
_FARTHEST = 1e300  # what lies beyond is drawn there: differences of floats are floats
_LONGEST = 1e16  # numbers from here on are shown by their power of ten


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent from the left or from the top, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """One bar, in percent of the drawing."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Line:
    """One line: `points` as SVG writes them, and its last point; both in percent."""

    name: str
    points: str
    last_x: float
    last_y: float


@dataclass(frozen=True)
class Level:
    """A value to compare a line with: its name, its height in percent, and the line's number."""

    name: str
    at: float
    line: int  # from 1


@dataclass(frozen=True)
class LineChart:
    """Lines over one axis of counts, and the levels that they began from."""

    lines: list[Line]
    levels: list[Level]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class BarChart:
    """Bars from zero; `top` is what the drawing's upper edge stands for."""

    bars: list[Bar]
    top: int


def bar_chart(values: Sequence[int]) -> BarChart:
    """Bars of equal width, one a value that is not negative; zero has none."""
    top = max([1, *values])
    place = 100 / max(1, len(values))
    bars = [
        Bar(
            x=round((index + _GAP / 2) * place, 3),
            y=round(100 - 100 * value / top, 3),
            width=round((1 - _GAP) * place, 3),
            height=round(100 * value / top, 3),
        )
        for index, value in enumerate(values)
        if value > 0
    ]
    return BarChart(bars, max(values, default=0))


@dataclass(frozen=True)
class Series:
    """What becomes a line: points (x, value), by ascending x; None where there is no value.

    `before` is the value that it began from, if there is one.
    """

    name: str
    points: Sequence[tuple[int, float | None]]
    before: float | None = None


def line_chart(
    series: Sequence[Series],
    *,
    bounds: tuple[float, float] | None = None,
    least_span: float = 0.0,
    right: int = 0,
) -> LineChart | None:
    """Lines, each without the points that it lacks.

    Args:
        series: that have a line each, if they have a point.
        bounds: that the axis of values never goes past.
        least_span: that it covers, so that small differences look small.
        right: how far the other axis goes at least, such as a budget.

    Returns:
        None where there is nothing to draw.
    """
    drawn = [(one, points) for one in series if (points := _drawn(one))]
    if not drawn:
        return None
    before = [one.before for one, _ in drawn if one.before is not None]
    every = [value for _, points in drawn for _, value in points] + before
    low, high = min(every), max(every)
    more = max(0.0, least_span - (high - low)) / 2
    low, high = low - more, high + more
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    y_marks = marks(low, high)
    low, high = y_marks[0], y_marks[-1]
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    right = max(*(at for _, points in drawn for at, _ in points), right, 1)
    x_marks = marks(0, right)

    def across(at: float) -> float:
        return round(100 * at / right, 3)

    def down(value: float) -> float:
        return round(100 - 100 * (value - low) / (high - low), 3)

    lines = []
    for one, points in drawn:
        places = [(across(at), down(value)) for at, value in points]
        lines.append(Line(one.name, " ".join(f"{a},{b}" for a, b in places), *places[-1]))
    return LineChart(
        lines,
        [
            Level(one.name, down(one.before), number)
            for number, (one, _) in enumerate(drawn, 1)
            if one.before is not None
        ],
        [Tick(across(mark), text) for mark, text in _texts(x_marks) if mark <= right],
        [Tick(down(mark), text) for mark, text in _texts(y_marks) if low <= mark <= high],
    )


def marks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, in equal steps of 1, 2 or 5 x 10^n."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - abs(low) / 10 - 0.01, high + abs(high) / 10 + 0.01
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _drawn(series: Series) -> list[tuple[int, float]]:
    points = [
        (at, min(max(value, -_FARTHEST), _FARTHEST))
        for at, value in series.points
        if value is not None
    ]
    return [points[row] for row in thinned_rows(len(points), most=_MOST_DRAWN)]


def thinned_rows(count: int, *, most: int) -> list[int]:
    """Which of so many rows to show: all, or about `most`, evenly, the last one among them."""
    step = max(1, math.ceil(count / most))
    return sorted({*range(0, count, step), *([count - 1] if count else [])})


def _texts(axis: Sequence[float]) -> list[tuple[float, str]]:
    """The marks with their texts, all with as many digits as the step between them needs."""
    step = axis[1] - axis[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [
        (mark, f"{mark:,.{digits}f}" if abs(mark) < _LONGEST else f"{mark:.3g}") for mark in axis
    ]
