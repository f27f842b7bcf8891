from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_server.clock import (
    WINDOWS,
    Period,
    epoch_ms,
    ms_in,
    now_ms,
    rfc3339,
    run_at,
    window_end,
    window_start,
)

TIMES = st.integers(0, 4_102_444_800_000)  # to the year 2100


def ms(text: str) -> int:
    return epoch_ms(datetime.fromisoformat(text))


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("hour", "2027-12-31T23:00:00Z", "2028-01-01T00:00:00Z"),
        ("day", "2027-12-31T00:00:00Z", "2028-01-01T00:00:00Z"),
        ("week", "2027-12-27T00:00:00Z", "2028-01-03T00:00:00Z"),
        ("month", "2027-12-01T00:00:00Z", "2028-01-01T00:00:00Z"),
    ],
)
def test_calendar_windows_at_the_end_of_a_year(window: str, start: str, end: str) -> None:
    at = ms("2027-12-31T23:59:59.999Z")
    assert window_start(window, at) == ms(start)
    assert window_end(window, at) == ms(end)
    assert window_start(window, at + 1) == (ms(end) if window != "week" else ms(start))


def test_february_of_a_leap_year_has_29_days() -> None:
    assert window_end("month", ms("2028-02-01T00:00:00Z")) == ms("2028-03-01T00:00:00Z")
    assert window_start("day", ms("2028-02-29T12:00:00Z")) == ms("2028-02-29T00:00:00Z")


def test_a_week_begins_on_monday() -> None:
    assert datetime.fromtimestamp(window_start("week", now_ms()) / 1000, UTC).weekday() == 0


def test_a_lifetime_never_ends() -> None:
    assert window_start("lifetime", now_ms()) == 0
    assert window_end("lifetime", now_ms()) is None


@given(at=TIMES, window=st.sampled_from([window for window in WINDOWS if window != "lifetime"]))
def test_windows_tile_time(at: int, window: str) -> None:
    start, end = window_start(window, at), window_end(window, at)
    assert end is not None
    assert start <= at < end
    assert window_start(window, start) == start
    assert window_start(window, end - 1) == start
    assert window_start(window, end) == end


@given(at=TIMES, hours=st.integers(-12, 14))
def test_times_are_written_to_the_millisecond_and_read_back(at: int, hours: int) -> None:
    text = rfc3339(at)
    assert text.endswith("Z")
    assert ms(text) == at
    elsewhere = datetime.fromisoformat(text).astimezone(timezone(timedelta(hours=hours)))
    assert epoch_ms(elsewhere) == at


@pytest.fixture
def fast() -> Iterator[None]:
    run_at(86_400)
    yield
    run_at(1)


def test_time_may_run_faster_than_the_real_one(fast: None) -> None:
    began, real = now_ms(), time.time()
    time.sleep(0.2)
    days = (now_ms() - began) / 86_400_000
    assert days == pytest.approx(time.time() - real, rel=0.05)
    assert ms_in(2) == 2 * 86_400_000


def test_time_is_the_real_one_otherwise() -> None:
    assert abs(now_ms() - time.time() * 1000) < 1000
    assert ms_in(2) == 2000


@pytest.mark.parametrize(
    ("name", "since", "until", "around"),
    [
        ("2026-11", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", ("2026-10", "2026-12")),
        ("2026-12", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z", ("2026-11", "2027-01")),
        ("1970-01", "1970-01-01T00:00:00Z", "1970-02-01T00:00:00Z", ("1969-12", "1970-02")),
        ("2026", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", ("2025", "2027")),
    ],
)
def test_a_month_and_a_year_have_a_beginning_and_an_end(
    name: str, since: str, until: str, around: tuple[str, str]
) -> None:
    period = Period.named(name)
    assert (period.since, period.until, period.neighbours) == (ms(since), ms(until), around)
    assert Period.month_at(period.since).since == period.since
    assert period.is_month == ("-" in name)


@pytest.mark.parametrize("name", ["", "2026-13", "2026-1", "1969", "9999", "26", "2026-11-01", "x"])
def test_what_is_neither_a_month_nor_a_year_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no month"):
        Period.named(name)
