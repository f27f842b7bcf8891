"""A call's context, and so its id in the log, goes along to the threads that work for it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import sqlalchemy as sa
import structlog
from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars
from structlog.testing import capture_logs

from craft_server.database import Database
from craft_server.engine import Overloaded


def test_transactions_on_threads_know_the_call(store: Database) -> None:
    def known(connection: sa.Connection) -> Any:
        connection.execute(sa.select(1))
        return get_contextvars()["request_id"]

    async def ask(number: int) -> list[Any]:
        with bound_contextvars(request_id=number):
            ways = (store.read, store.query, store.write, store.write_deferred)
            return [await way(known) for way in ways]

    async def ask_at_once() -> list[list[Any]]:
        return await asyncio.gather(*(ask(number) for number in range(8)))

    assert asyncio.run(ask_at_once()) == [[number] * 4 for number in range(8)]


class Telling:
    """An engine that logs that it decodes, and is full then."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def decode_images(self, files: Sequence[bytes], **named: Any) -> Any:
        structlog.get_logger().info("decoding")
        return await self._engine.decode_images(files, **named)

    async def score(self, *_: Any, **__: Any) -> Any:
        raise Overloaded("full")


def test_every_line_of_a_call_has_its_id(
    serve: Any, tiny_engine: Any, picture: Callable[..., bytes]
) -> None:
    with serve(engine=Telling(tiny_engine)) as server, server.client() as client:
        (card,) = client.get("/v1/models").json()["models"]
        question = {
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a {}"],
            "images": [base64.b64encode(picture(shade)).decode() for shade in (1, 2)],
        }
        with capture_logs([merge_contextvars]) as lines:
            answer: httpx.Response = client.post(
                "/v1/predictions", json=question, headers={"X-Request-Id": "the-one"}
            )
            # A call's own line may come after its answer.
            deadline = time.monotonic() + 10
            while not any(line.get("path") == "/v1/predictions" for line in lines):
                assert time.monotonic() < deadline, "the call's line did not come"
                time.sleep(0.01)
    assert answer.status_code == 503
    lines = [line for line in lines if line.get("path") != "/v1/models"]
    assert [line["event"] for line in lines] == ["decoding", "call not done", "call"]
    assert {line["request_id"] for line in lines} == {"the-one"}
