"""SIGTERM under load: no call fails, none is charged without its answer, nothing stays reserved."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import sqlalchemy as sa

from craft_client.api import Client
from craft_server.ledger.tables import CHARGES, HOLDERS
from craft_shared.wire import PredictionRequest
from e2e.metering.caller import FULL
from e2e.metering.slow_servers import PATIENCE_SECONDS, SlowServers
from waiting import until

CLIENTS = 12
RESTARTS = 10 if FULL else 2
CALLS_BETWEEN = 60
REQUEST = PredictionRequest(model="stub", classes=["cat", "dog"], templates=["a {}", "the {}"])


def test_servers_replaced_under_load_fail_no_call_and_charge_each_once(
    slow_servers: SlowServers,
) -> None:
    key, answered, enough = slow_servers.key(), [0] * CLIENTS, threading.Event()
    process = slow_servers.start(CRAFT_DRAIN_SECONDS="0.5")

    def call_on(number: int) -> None:
        with Client(slow_servers.url, key) as client:
            while not enough.is_set():
                client.predict(REQUEST, images=[b"\0"])
                answered[number] += 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        calling = [threads.submit(call_on, number) for number in range(CLIENTS)]
        try:
            for _ in range(RESTARTS):
                goal = sum(answered) + CALLS_BETWEEN
                until(lambda goal=goal: sum(answered) >= goal or _failed(calling))
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_SECONDS) == 0
                process = slow_servers.start(CRAFT_DRAIN_SECONDS="0.5")
        finally:
            enough.set()
        for call in calling:
            call.result()
    with Client(slow_servers.url, key) as client:
        charged = client.usage()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    calls = sum(answered)
    assert (charged.total.requests, charged.total.queries) == (calls, 2 * calls)
    assert {line.state for line in charged.charges} == {"settled"}
    assert len(charged.charges) == calls
    database = slow_servers.database()
    with database.reading() as connection:
        states = connection.execute(sa.select(CHARGES.c.state).distinct()).scalars().all()
        leases = connection.execute(sa.select(HOLDERS)).all()
    database.close()
    # What was accepted was finished, too: nothing had to be given back.
    assert states == ["settled"]
    assert leases == []


def test_a_server_told_to_stop_serves_on_while_it_says_that_it_is_not_ready(
    slow_servers: SlowServers,
) -> None:
    key = slow_servers.key()
    process = slow_servers.start(CRAFT_DRAIN_SECONDS="30")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=slow_servers.url, headers=headers, trust_env=False) as kept:
        assert "connection" not in kept.get("/v1/budget").headers
        process.send_signal(signal.SIGTERM)
        until(lambda: slow_servers.status("/readyz") == 503)
        answer = kept.get("/v1/budget")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert slow_servers.status("/livez") == 200
    # Who cannot wait says so again.
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert time.monotonic() - began < 15


def test_a_call_that_was_accepted_is_answered_after_the_socket_is_closed(
    slow_servers: SlowServers,
) -> None:
    key = slow_servers.key()
    process = slow_servers.start(CRAFT_DRAIN_SECONDS="0", SLOW_SERVER_WORK_SECONDS="3")
    question = {**REQUEST.model_dump(exclude_none=True), "images": ["AA=="]}
    headers = {"Authorization": f"Bearer {key}"}

    def ask() -> httpx.Response:
        return httpx.post(
            f"{slow_servers.url}/v1/predictions",
            json=question,
            headers=headers,
            timeout=30,
            trust_env=False,
        )

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(ask)
        until(lambda: _reserved(slow_servers))
        process.send_signal(signal.SIGTERM)
        until(lambda: slow_servers.status("/livez") is None)
        assert not call.done()
        assert call.result().status_code == 200
    assert process.wait(PATIENCE_SECONDS) == 0


def _failed(calling: list[Any]) -> bool:
    return any(call.done() for call in calling)


def _reserved(slow_servers: SlowServers) -> bool:
    database = slow_servers.database()
    with database.reading() as connection:
        states = connection.execute(sa.select(CHARGES.c.state)).scalars().all()
    database.close()
    return states == ["reserved"]
