"""The time as the database and the API write it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """The time in UTC as RFC 3339 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
