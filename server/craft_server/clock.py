"""The time as the ledger counts it and as the database and the API write it.

A process's time may run faster than the real one, so that days of quota can be seen to pass. What
must last for a real while, such as a lease, is measured by `ms_in`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

from craft_shared.amounts import Window

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_PERIOD = re.compile(r"([0-9]{4})(?:-(0[1-9]|1[0-2]))?", re.ASCII)
WINDOWS: tuple[Window, ...] = get_args(Window)
DAY_MS = 86_400_000


@dataclass(frozen=True)
class _Pace:
    speed: float
    since_ns: int


_pace: _Pace | None = None


def run_at(speed: float) -> None:
    """Makes this process's time run so many times as fast as the real one, from now on.

    At 1 it is the real time again.
    """
    global _pace
    _pace = None if speed == 1 else _Pace(speed, time.time_ns())


def now_ms() -> int:
    """Milliseconds since the Unix epoch. Servers that share a database need clocks in step."""
    now_ns, pace = time.time_ns(), _pace
    if pace is not None:
        now_ns = pace.since_ns + round((now_ns - pace.since_ns) * pace.speed)
    return now_ns // 1_000_000


def ms_in(seconds: float) -> int:
    """How many milliseconds this process's time goes on in so many real seconds."""
    return round(seconds * 1000 * (1 if _pace is None else _pace.speed))


def rfc3339(at_ms: int) -> str:
    """A time in UTC as RFC 3339 with milliseconds."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """The present time as `rfc3339` writes it."""
    return rfc3339(now_ms())


def window_start(window: Window, at_ms: int) -> int:
    """When the calendar window that holds a time began, in UTC milliseconds; 0 for lifetime.

    Weeks begin on Monday (ISO 8601).
    """
    if window == "lifetime":
        return 0
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    start = moment.replace(minute=0, second=0, microsecond=0)
    if window != "hour":
        start = start.replace(hour=0)
    if window == "week":
        start -= timedelta(days=start.weekday())
    if window == "month":
        start = start.replace(day=1)
    return int(start.timestamp() * 1000)


def window_end(window: Window, at_ms: int) -> int | None:
    """When that window ends and the next begins; None for lifetime."""
    if window == "lifetime":
        return None
    start = datetime.fromtimestamp(window_start(window, at_ms) / 1000, UTC)
    if window == "month":
        following = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    else:
        following = start + timedelta(**{f"{window}s": 1})
    return int(following.timestamp() * 1000)


def epoch_ms(moment: datetime) -> int:
    """A time that has a zone in whole milliseconds since the Unix epoch, less what is over."""
    return (moment - _EPOCH) // _MILLISECOND


@dataclass(frozen=True)
class Period:
    """A calendar month or year (UTC), from `since` until `until` in milliseconds."""

    name: str  # 2026-11, or 2026
    since: int
    until: int

    @classmethod
    def named(cls, name: str) -> Period:
        """The month or the year that is called so.

        Raises:
            ValueError: none is.
        """
        found = _PERIOD.fullmatch(name)
        year, month = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
        if not _EPOCH.year <= year < datetime.max.year:
            raise ValueError(f"{name!r} is no month such as 2026-11")
        end = (year, month + 1) if 0 < month < 12 else (year + 1, 1)
        first, last = (epoch_ms(datetime(*day, 1, tzinfo=UTC)) for day in ((year, month or 1), end))
        return cls(name, first, last)

    @classmethod
    def month_at(cls, at_ms: int) -> Period:
        """The month that holds a time."""
        return cls.named(rfc3339(at_ms)[:7])

    @property
    def is_month(self) -> bool:
        """Whether it is one; otherwise it is a year."""
        return "-" in self.name

    @property
    def year(self) -> str:
        """Which it is in, such as 2026."""
        return self.name[:4]

    @property
    def neighbours(self) -> tuple[str, str]:
        """The names of the periods of the same kind before and after it."""
        before, after = (rfc3339(at)[: len(self.name)] for at in (self.since - 1, self.until))
        return before, after
