"""Clients that hang up, on real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

DEADLINE = 10.0

Picture = Callable[..., bytes]


class Gate:
    """An engine that waits before it scores."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._open = threading.Event()
        self.entered = threading.Event()
        self.scored = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def let_through(self) -> None:
        self._open.set()

    async def score(self, *arguments: Any, **named: Any) -> Any:
        self.entered.set()
        while not self._open.is_set():
            await asyncio.sleep(0.005)
        self.scored += 1
        return await self._engine.score(*arguments, **named)


@pytest.fixture
def gate(tiny_engine: Any) -> Iterator[Gate]:
    made = Gate(tiny_engine)
    yield made
    made.let_through()


def ask_and_hang_up(client: httpx.Client, picture: Picture, gate: Gate, key: str) -> None:
    """Sends a prediction, waits until the model is asked, and closes the connection."""
    body = question(client, picture)
    address = urlsplit(str(client.base_url))
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: {client.headers['authorization']}\r\nIdempotency-Key: {key}\r\n"
        f"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        assert gate.entered.wait(DEADLINE)


def question(client: httpx.Client, picture: Picture) -> bytes:
    (card,) = client.get("/v1/models").json()["models"]
    fields = {
        "model": card["name"],
        "classes": ["cat", "dog"],
        "templates": ["a photo of a {}."],
        "images": [base64.b64encode(picture()).decode()],
    }
    return json.dumps(fields).encode()


def queries(client: httpx.Client) -> tuple[int, int, int]:
    (budget,) = client.get("/v1/budget").json()["budgets"]
    return budget["spent"], budget["reserved"], budget["remaining"]


def test_what_nobody_waits_for_is_not_computed_and_not_charged(
    serve: Any, gate: Gate, picture: Picture
) -> None:
    with serve(engine=gate) as server, server.client(queries=5) as client:
        ask_and_hang_up(client, picture, gate, "one")
        deadline = time.monotonic() + DEADLINE
        while queries(client) != (0, 0, 5):
            assert time.monotonic() < deadline, "the reservation was not given back"
            time.sleep(0.01)
        assert gate.scored == 0
        gate.let_through()
        assert client.get("/v1/usage").json()["charges"] == []


def test_the_call_may_be_made_again_under_its_key(serve: Any, gate: Gate, picture: Picture) -> None:
    with serve(engine=gate) as server, server.client(queries=5) as client:
        ask_and_hang_up(client, picture, gate, "one")
        gate.let_through()
        headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}
        deadline = time.monotonic() + DEADLINE
        while True:
            again = client.post(
                "/v1/predictions", content=question(client, picture), headers=headers
            )
            if again.status_code != 409:
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert again.status_code == 200
        assert queries(client) == (1, 0, 4)


def test_answers_on_a_kept_connection_are_all_delivered(client: httpx.Client) -> None:
    for _ in range(20):
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/image-sets", json={"model": "none"}).status_code == 404
