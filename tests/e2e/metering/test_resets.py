"""Calls whose connections are reset at random and that are sent again: charged once each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.metering.caller import FULL, Caller
from e2e.metering.cutting_proxy import cutting_proxy

CALLS = 10_000 if FULL else 480
CLIENTS = 16
SHARE = 0.2  # of pieces, requests and answers alike, after which the connection is reset


@pytest.mark.parametrize(("store", "processes"), [("sqlite", 1), ("postgresql", 2)])
def test_retried_calls_are_charged_once_each(
    start_servers: Any, store: str, processes: int
) -> None:
    servers = start_servers(store, processes=processes)
    key = servers.key(CALLS)

    def call_often(port: int) -> int:
        caller = Caller(port, key)
        for _ in range(CALLS // CLIENTS):
            assert caller.predict().status == 200
        caller.close()
        return caller.retries

    with (
        cutting_proxy(servers.port, share=SHARE, seed=7) as proxy,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        retries = sum(threads.map(call_often, [proxy.port] * CLIENTS))
    caller = Caller(servers.port, key)
    (budget,) = caller.get("/v1/budget")["budgets"]
    total = caller.get("/v1/usage")["total"]
    caller.close()
    assert retries >= CALLS // 3, "the connections were hardly cut"
    assert (budget["spent"], budget["reserved"]) == (CALLS, 0)
    assert (total["queries"], total["requests"]) == (CALLS, CALLS)
