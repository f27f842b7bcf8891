"""Rate limits: how much of what in a minute, on this server or, with Redis, on all of them.

The sliding window counter is approximate: just after a minute's boundary it may let one call more
through, or a few percent of a large limit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

WINDOW_SECONDS = 60


@dataclass(frozen=True)
class Quota:
    """One limit as it stands after a call."""

    name: str  # what it counts
    limit: int  # in a minute
    remaining: int  # now
    reset_seconds: int  # until more is left


class RateLimited(Exception):  # noqa: N818 - the problem type's name
    """The key may not do so much in a minute. Nothing of the limit was used."""

    def __init__(self, quota: Quota, needed: int) -> None:
        super().__init__(quota, needed)
        self.quota = quota
        self.needed = needed


class NotCounted(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The storage of the counts does not answer."""


class RateLimits:
    """Counts what keys do.

    All servers that name one `url` (`redis://...`) share them; without it they are counted in this
    process.

    Raises:
        ValueError: the URL does not name a storage.
    """

    def __init__(self, url: str | None) -> None:
        try:
            storage = storage_from_string(
                f"async+{url or 'memory://'}", implementation="redispy", wrap_exceptions=True
            )
        except ConfigurationError as error:
            raise ValueError(f"no storage of rate limits is at '{url}'") from error
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def use(self, name: str, who: int | str, amount: int, limit: int) -> Quota:
        """Takes `amount` of the limit of `name` that a key has, or whoever else is named.

        Raises:
            RateLimited: it is not left.
            NotCounted: the storage does not answer; the call must not go on uncounted.
        """
        item = RateLimitItemPerMinute(limit, namespace=f"craftbox/{name}")
        try:
            taken = await self._limiter.hit(item, str(who), cost=amount)
            reset, remaining = await self._limiter.get_window_stats(item, str(who))
        except StorageError as error:
            raise NotCounted(str(error)) from error
        quota = Quota(name, limit, remaining, max(0, math.ceil(reset - time.time())))
        if not taken:
            raise RateLimited(quota, amount)
        return quota
