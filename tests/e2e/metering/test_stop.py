"""SIGTERM under load: no call fails, none is charged without its answer, nothing stays reserved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from craft_client.api import Client
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger.keys import create_key
from craft_server.ledger.tables import CHARGES, HOLDERS
from craft_shared.wire import PredictionRequest
from e2e.metering.caller import FULL
from quickstart import free_port

CLIENTS = 12
RESTARTS = 10 if FULL else 3
CALLS_BETWEEN = 60
PATIENCE_SECONDS = 60
REQUEST = PredictionRequest(model="stub", classes=["cat", "dog"], templates=["a {}", "the {}"])


@dataclass
class SlowServers:
    """One server after another at the same address, on the same database."""

    folder: Path
    port: int
    started: list[subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a server and waits until it is ready."""
        command = [sys.executable, "-m", "e2e.metering.slow_server", "serve"]
        env = {**os.environ, "CRAFT_DATA_DIR": str(self.folder), "CRAFT_PORT": str(self.port)}
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**env, **environment},
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        self.started.append(process)
        wait_for(lambda: self.status("/readyz") == 200)
        return process

    def status(self, path: str) -> int | None:
        """What a single attempt without a kept connection is answered; None if nothing."""
        try:
            return httpx.get(self.url + path, trust_env=False).status_code
        except httpx.TransportError:
            return None

    def database(self) -> Database:
        return Database.open(None, self.folder)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[SlowServers]:
    made = SlowServers(tmp_path, free_port(), [])
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not so in {PATIENCE_SECONDS} s"
        time.sleep(0.01)


def new_key(servers: SlowServers) -> str:
    database = servers.database()
    with database.writing() as connection:
        secret = create_key(connection, owner="e2e", at=now_ms())
    database.close()
    return secret


def test_servers_replaced_under_load_fail_no_call_and_charge_each_once(
    servers: SlowServers,
) -> None:
    key, answered, enough = new_key(servers), [0] * CLIENTS, threading.Event()
    process = servers.start(CRAFT_DRAIN_SECONDS="0.5")

    def call_on(number: int) -> None:
        with Client(servers.url, key) as client:
            while not enough.is_set():
                client.predict(REQUEST, images=[b"\0"])
                answered[number] += 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        calling = [threads.submit(call_on, number) for number in range(CLIENTS)]
        try:
            for _ in range(RESTARTS):
                goal = sum(answered) + CALLS_BETWEEN
                wait_for(lambda goal=goal: sum(answered) >= goal or _failed(calling))
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_SECONDS) == 0
                process = servers.start(CRAFT_DRAIN_SECONDS="0.5")
        finally:
            enough.set()
        for call in calling:
            call.result()
    with Client(servers.url, key) as client:
        charged = client.usage()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    calls = sum(answered)
    assert (charged.total.requests, charged.total.queries) == (calls, 2 * calls)
    assert {line.state for line in charged.charges} == {"settled"}
    assert len(charged.charges) == calls
    database = servers.database()
    with database.reading() as connection:
        states = connection.execute(sa.select(CHARGES.c.state).distinct()).scalars().all()
        leases = connection.execute(sa.select(HOLDERS)).all()
    database.close()
    # What was accepted was finished, too: nothing had to be given back.
    assert states == ["settled"]
    assert leases == []


def test_a_server_told_to_stop_serves_on_while_it_says_that_it_is_not_ready(
    servers: SlowServers,
) -> None:
    key = new_key(servers)
    process = servers.start(CRAFT_DRAIN_SECONDS="30")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=servers.url, headers=headers, trust_env=False) as kept:
        assert "connection" not in kept.get("/v1/budget").headers
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: servers.status("/readyz") == 503)
        answer = kept.get("/v1/budget")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert servers.status("/livez") == 200
    # Who cannot wait says so again.
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert time.monotonic() - began < 15


def test_a_call_that_was_accepted_is_answered_after_the_socket_is_closed(
    servers: SlowServers,
) -> None:
    key = new_key(servers)
    process = servers.start(CRAFT_DRAIN_SECONDS="0", SLOW_SERVER_WORK_SECONDS="3")
    question = {**REQUEST.model_dump(exclude_none=True), "images": ["AA=="]}
    headers = {"Authorization": f"Bearer {key}"}

    def ask() -> httpx.Response:
        return httpx.post(
            f"{servers.url}/v1/predictions",
            json=question,
            headers=headers,
            timeout=30,
            trust_env=False,
        )

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(ask)
        wait_for(lambda: _reserved(servers))
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: servers.status("/livez") is None)
        assert not call.done()
        assert call.result().status_code == 200
    assert process.wait(PATIENCE_SECONDS) == 0


def _failed(calling: list[Any]) -> bool:
    return any(call.done() for call in calling)


def _reserved(servers: SlowServers) -> bool:
    database = servers.database()
    with database.reading() as connection:
        states = connection.execute(sa.select(CHARGES.c.state)).scalars().all()
    database.close()
    return states == ["reserved"]
