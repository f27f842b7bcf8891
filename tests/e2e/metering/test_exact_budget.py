"""64 clients at once on one key get exactly its budget, in every run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.metering.caller import FULL, Caller

RUNS = 20 if FULL else 2
CLIENTS, BUDGET = 64, 1000


@pytest.mark.parametrize(
    ("store", "processes"), [("sqlite", 1), ("postgresql", 1), ("postgresql", 4)]
)
def test_64_clients_get_exactly_the_budget(start_servers: Any, store: str, processes: int) -> None:
    servers = start_servers(store, processes=processes)
    for run in range(RUNS):
        key = servers.key(BUDGET)
        with ThreadPoolExecutor(CLIENTS) as threads:
            calls = [threads.submit(_use_up, servers.port, key, n) for n in range(CLIENTS)]
            delivered = sum(call.result() for call in calls)
        caller = Caller(servers.port, key)
        (budget,) = caller.get("/v1/budget")["budgets"]
        total = caller.get("/v1/usage")["total"]["queries"]
        caller.close()
        counted = (delivered, budget["spent"], budget["reserved"], total)
        assert counted == (BUDGET, BUDGET, 0, BUDGET), f"run {run}"


def _use_up(port: int, key: str, client: int, user: str | None = None) -> int:
    """Asks until not one more query is given; how many were delivered."""
    caller, delivered = Caller(port, key, user=user), 0
    for prompts in (1 + client % 24, 1):
        while (answer := caller.predict(prompts)).status == 200:
            delivered += len(answer.body["log_probs"])
    caller.close()
    return delivered


@pytest.mark.parametrize(("store", "processes"), [("sqlite", 1), ("postgresql", 4)])
def test_clients_for_four_users_get_exactly_each_ones_share(
    start_servers: Any, store: str, processes: int
) -> None:
    share, users = 50, [f"user-{number}" for number in range(4)]
    servers = start_servers(store, processes=processes)
    key = servers.key(10_000, per_user=share)
    with ThreadPoolExecutor(16) as threads:
        calls = [
            threads.submit(_use_up, servers.port, key, n, users[n % len(users)]) for n in range(16)
        ]
        delivered = sum(call.result() for call in calls)
    caller = Caller(servers.port, key)
    for user in users:
        of_key, of_user = caller.get(f"/v1/budget?user={user}")["budgets"]
        assert (of_user["spent"], of_user["reserved"], of_user["remaining"]) == (share, 0, 0)
        assert caller.get(f"/v1/usage?user={user}")["total"]["queries"] == share
    caller.close()
    assert delivered == of_key["spent"] == share * len(users)
