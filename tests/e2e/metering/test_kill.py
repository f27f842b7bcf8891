"""Servers killed with SIGKILL at every point of a call: every answer arrives, charged once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.metering.caller import FULL, Caller
from e2e.metering.conftest import Servers
from e2e.metering.stub_server import KILL_POINTS

KILLS = 25 if FULL else 2
BYSTANDERS = 2
LEASE_SECONDS = 0.5


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_killed_server_loses_no_answer_and_charges_none_twice(
    start_servers: Any, store: str
) -> None:
    # Each point has a server and a database of its own; they spend their time waiting for leases.
    lanes = {point: start_servers(store, lease_seconds=LEASE_SECONDS) for point in KILL_POINTS}
    with ThreadPoolExecutor(len(lanes)) as threads:
        failures = list(threads.map(lambda point: _kill(lanes[point], point), lanes))
    assert not any(failures), dict(zip(lanes, failures, strict=True))


def _kill(servers: Servers, point: str) -> str:
    """Kills the server again and again; what was wrong after it."""
    calls = KILLS * (1 + BYSTANDERS)
    key = servers.key(calls, per_user=calls)
    callers = [Caller(servers.port, key, user="ann") for _ in range(1 + BYSTANDERS)]
    first, *others = callers
    with ThreadPoolExecutor(BYSTANDERS) as threads:
        for _ in range(KILLS):
            before = first.retries
            waiting = [threads.submit(caller.predict) for caller in others]
            answers = [first.predict(kill_at=point), *(call.result() for call in waiting)]
            if first.retries == before:
                return "the server was not killed"
            if [answer.status for answer in answers] != [200] * len(answers):
                return f"not answered: {answers}"
    budgets = first.get("/v1/budget?user=ann")["budgets"]
    usage = first.get("/v1/usage?limit=1000")
    for caller in callers:
        caller.close()
    lines = [line["state"] for line in usage["charges"]]
    held = {budget["of"]: (budget["spent"], budget["reserved"]) for budget in budgets}
    counted = (lines, usage["total"]["queries"], held)
    expected = (["settled"] * calls, calls, {"key": (calls, 0), "user": (calls, 0)})
    return "" if counted == expected else f"{counted}"
