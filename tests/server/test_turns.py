"""Calls that arrive by the hundred at once, over real sockets: what one round of the loop does."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn

from craft_server.api import auth, middleware
from craft_server.serving import listening
from craft_server.serving.turns import Turns
from craft_server.settings import Settings

DEADLINE = 15
MANY = 100


class Loop:
    """A server's event loop: its rounds, and which calls began and ended in each."""

    def __init__(self) -> None:
        self.loop: Any = None
        self.round = 0
        self.begun: list[tuple[int, str]] = []
        self.ended: list[tuple[int, str]] = []
        self.begun_before_probe = 0

    def tick(self) -> None:
        self.round += 1
        self.loop.call_soon(self.tick)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the loop does nothing, so that what is sent meets it all at once."""
        holding, done = threading.Event(), threading.Event()

        def hold() -> None:
            holding.set()
            done.wait(DEADLINE)

        self.loop.call_soon_threadsafe(hold)
        assert holding.wait(DEADLINE)
        try:
            yield
        finally:
            done.set()


@pytest.fixture
def watched(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Loop]]:
    seen = Loop()
    admit, operation_of = auth.admit, middleware.operation_of

    def noting_begin(connection: Any, secret: str, *rest: Any) -> Any:
        if seen.loop is None:
            seen.loop = asyncio.get_running_loop()
        seen.begun.append((seen.round, secret))
        return admit(connection, secret, *rest)

    def noting_end(scope: Any) -> str:
        seen.ended.append((seen.round, scope["path"]))
        if scope["path"] == "/livez":
            seen.begun_before_probe = len(seen.begun)
        return operation_of(scope)

    monkeypatch.setattr(auth, "admit", noting_begin)
    monkeypatch.setattr(middleware, "operation_of", noting_end)
    with serve() as server:
        with server.client() as client:
            client.get("/v1/usage")
        seen.loop.call_soon_threadsafe(seen.tick)
        seen.begun.clear()
        seen.ended.clear()
        yield server, seen


def connect(held: ExitStack, server: Any, source: str = "127.0.0.1") -> socket.socket:
    """A connection that the server has accepted."""
    connection = held.enter_context(socket.socket())
    connection.bind((source, 0))
    connection.settimeout(DEADLINE)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    return connection


def unfinished(key: str) -> bytes:
    return (
        "POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: 1000\r\n\r\n{{"
    ).encode()


def until(count: int, seen: list[Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} of {count}"
        time.sleep(0.01)


def most_in_a_round(seen: list[tuple[int, str]]) -> int:
    return max(Counter(number for number, _ in seen).values())


def test_calls_that_arrive_at_once_begin_and_end_in_a_round_each(watched: Any) -> None:
    server, seen = watched
    call = unfinished(server.key())
    with ExitStack() as held:
        callers = [connect(held, server) for _ in range(MANY)]
        seen.ended.clear()
        with seen.held():
            for caller in callers:
                caller.sendall(call)
        until(MANY, seen.begun)
        assert most_in_a_round(seen.begun) == 1
        with seen.held():
            held.close()  # all of them hang up
        until(MANY, seen.ended)
    assert most_in_a_round(seen.ended) == 1


def test_who_sends_hundreds_of_calls_waits_for_himself(watched: Any) -> None:
    server, seen = watched
    many, one = server.key(), server.key()
    with ExitStack() as held:
        attackers = [connect(held, server, "127.0.0.2") for _ in range(MANY)]
        victim, probe = connect(held, server, "127.0.0.3"), connect(held, server)
        seen.ended.clear()
        with seen.held():
            for attacker in attackers:
                attacker.sendall(unfinished(many))
            probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            victim.sendall(unfinished(one))
        until(MANY + 1, seen.begun)
        until(1, seen.ended)
    # Whoever was read first, an attacker's call or two began before theirs.
    assert [secret for _, secret in seen.begun].index(one) < 4
    assert seen.begun_before_probe < 4


def test_what_was_loaded_is_not_looked_through_for_garbage_while_calls_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    spared: list[int] = []

    def serving(_server: Any, sockets: Any = None) -> None:
        spared.append(gc.get_freeze_count())

    monkeypatch.setattr(uvicorn.Server, "run", serving)
    try:
        with socket.socket() as listener:
            listening.run(_nothing, Settings(data_dir=tmp_path), listener)
    finally:
        gc.unfreeze()
    assert spared[0] > 10_000


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


def test_while_connections_arrive_by_the_hundred_a_turn_waits_but_not_for_long() -> None:
    async def tried() -> None:
        crowded = True
        turns = Turns(lambda: crowded)
        first, second = (asyncio.ensure_future(turns.take(address)) for address in "ab")
        for _ in range(50):
            await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        await asyncio.wait_for(first, DEADLINE)
        assert not second.done()
        crowded = False
        for _ in range(5):
            await asyncio.sleep(0)
        assert second.done()

    asyncio.run(tried())
