"""Servers killed with SIGKILL: each share of a budget that is spent is told, under one id."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.metering.caller import Caller
from e2e.metering.slow_servers import SlowServers
from e2e.metering.stub_server import KILL_POINTS
from server.test_notices import receiving
from waiting import until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_at_a_charge_tells_of_it_once(
    start_servers: Any, store: str
) -> None:
    points = list(KILL_POINTS)
    with receiving() as receiver:
        servers = start_servers(
            store,
            lease_seconds=0.5,
            notice_urls=receiver.url,
            notice_percents="1,25,50,75,100",
            notice_secret=SECRET,
        )
        caller = Caller(servers.port, servers.key(len(points)))
        for point in points:
            assert caller.predict(kill_at=point).status == 200
        caller.close()
        until(lambda: len(set(receiver.ids)) == 5)
    # One that was being sent when its server died may have come twice.
    assert len(set(zip(receiver.ids, receiver.percents, strict=True))) == 5
    assert set(receiver.percents) == {1, 25, 50, 75, 100}


def test_a_server_that_is_killed_between_two_attempts_leaves_the_notice_to_the_next(
    slow_servers: SlowServers,
) -> None:
    with receiving(500, 204) as receiver:
        settings = {"CRAFT_NOTICE_URLS": receiver.url, "CRAFT_NOTICE_SECRET": SECRET}
        first = slow_servers.start(**settings)
        caller = Caller(slow_servers.port, slow_servers.key(queries=2))
        assert caller.predict().status == 200
        until(lambda: receiver.seen)
        first.kill()
        first.wait()
        caller.close()
        assert len(receiver.seen) == 1
        slow_servers.start(**settings)
        until(lambda: len(receiver.seen) == 2)
    assert receiver.percents == [50, 50]
    assert len(set(receiver.ids)) == 1
    assert "secret-path" not in slow_servers.log.read_text()
