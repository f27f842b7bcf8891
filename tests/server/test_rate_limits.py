"""Rate limits: counted by key and by name, in one process or, over Redis, in several."""

from __future__ import annotations

import asyncio
import os
import secrets
import time

import pytest
import redis

from craft_server.rate_limits import WINDOW_SECONDS, NotCounted, Quota, RateLimited, RateLimits

REDIS = os.environ.get("CRAFT_TEST_REDIS", "redis://127.0.0.1:6379")


@pytest.fixture
def redis_url() -> str:
    try:
        redis.Redis.from_url(REDIS, socket_connect_timeout=3).ping()
    except redis.ConnectionError as error:
        pytest.skip(f"no Redis answers at {REDIS}: {error}")
    return REDIS


@pytest.fixture(autouse=True)
def _within_a_window() -> None:
    """Begins early enough in a window that the test ends in it: the next one counts it in part."""
    left = WINDOW_SECONDS - time.time() % WINDOW_SECONDS
    if left < 5:
        time.sleep(left)


def new_key() -> int:
    """A key that no earlier run has counted."""
    return secrets.randbelow(2**40)


def test_the_call_past_the_limit_is_refused_and_uses_nothing() -> None:
    async def run() -> None:
        limits, key = RateLimits(None), new_key()
        assert (await limits.use("predictions", key, 6, 10)).remaining == 4
        with pytest.raises(RateLimited) as refused:
            await limits.use("predictions", key, 5, 10)
        assert refused.value.needed == 5
        assert refused.value.quota == Quota("predictions", 10, 4, refused.value.quota.reset_seconds)
        assert 0 < refused.value.quota.reset_seconds <= WINDOW_SECONDS
        assert (await limits.use("predictions", key, 4, 10)).remaining == 0

    asyncio.run(run())


def test_keys_and_names_count_apart() -> None:
    async def run() -> None:
        limits, one, two = RateLimits(None), new_key(), new_key()
        for key in (one, two):
            for name in ("requests", "predictions"):
                assert (await limits.use(name, key, 1, 1)).remaining == 0
        with pytest.raises(RateLimited):
            await limits.use("requests", one, 1, 1)

    asyncio.run(run())


def test_more_than_the_limit_at_once_is_never_given() -> None:
    async def run() -> None:
        with pytest.raises(RateLimited):
            await RateLimits(None).use("predictions", new_key(), 11, 10)

    asyncio.run(run())


def test_what_was_used_in_the_last_window_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = (time.time() // WINDOW_SECONDS + 1) * WINDOW_SECONDS
    at = [begin]
    monkeypatch.setattr(time, "time", lambda: at[0])

    async def run() -> None:
        limits, key = RateLimits(None), new_key()
        at[0] = begin + 59.0
        await limits.use("requests", key, 100, 100)
        at[0] = begin + 61.0
        # A fixed window would give another 100 two seconds later.
        with pytest.raises(RateLimited):
            await limits.use("requests", key, 10, 100)
        at[0] = begin + 90.0
        await limits.use("requests", key, 50, 100)
        with pytest.raises(RateLimited):
            await limits.use("requests", key, 10, 100)

    asyncio.run(run())


def test_servers_that_name_one_redis_count_together(redis_url: str) -> None:
    async def run() -> int:
        servers, key, given = [RateLimits(redis_url), RateLimits(redis_url)], new_key(), 0

        async def use(number: int) -> None:
            nonlocal given
            try:
                await servers[number % 2].use("requests", key, 1, 20)
            except RateLimited:
                return
            given += 1

        await asyncio.gather(*(use(number) for number in range(60)))
        return given

    assert asyncio.run(run()) == 20


def test_processes_without_a_redis_count_apart() -> None:
    async def run() -> None:
        key = new_key()
        for limits in (RateLimits(None), RateLimits(None)):
            await limits.use("requests", key, 1, 1)

    asyncio.run(run())


def test_a_storage_that_does_not_answer_is_told_and_does_not_let_calls_through() -> None:
    async def run() -> None:
        with pytest.raises(NotCounted):
            await RateLimits("redis://127.0.0.1:1").use("requests", new_key(), 1, 1)

    asyncio.run(run())


@pytest.mark.parametrize("url", ["redis", "http://127.0.0.1", "bogus://x"])
def test_a_url_of_no_storage_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=url):
        RateLimits(url)
