"""Large answers in zstd, and clients that hang up, on real sockets."""

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
import zstandard
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message

from craft_server.api import middleware
from craft_server.api.middleware import COMPRESSED_FROM_BYTES, CompressionMiddleware
from craft_shared import codec

Picture = Callable[..., bytes]
DEADLINE = 10.0
LARGE = b"0.12" * COMPRESSED_FROM_BYTES


def answered(response: Response, accept: str = "zstd") -> tuple[dict[str, str], bytes]:
    """Headers and raw body of what the middleware sends of a response."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    scope = {"type": "http", "method": "POST", "headers": [(b"accept-encoding", accept.encode())]}
    asyncio.run(CompressionMiddleware(response)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("media_type", [codec.MEDIA_TYPE, "application/json"])
def test_a_large_answer_is_compressed_and_says_so(media_type: str) -> None:
    headers, body = answered(Response(LARGE, media_type=media_type))
    assert headers["content-encoding"] == "zstd"
    assert headers["vary"] == "Accept-Encoding"
    assert int(headers["content-length"]) == len(body) < len(LARGE)
    assert zstandard.decompress(body) == LARGE


@pytest.mark.parametrize(
    "accept", ["zstd", "gzip, zstd", "br;q=1.0, ZSTD;q=0.1", "identity;q=0, zstd;q=1.000"]
)
def test_zstd_is_sent_to_whom_names_it(accept: str) -> None:
    headers, _ = answered(Response(LARGE, media_type=codec.MEDIA_TYPE), accept)
    assert headers["content-encoding"] == "zstd"


@pytest.mark.parametrize("accept", ["", "*", "gzip", "zstd;q=0", "zstd; q=0.000, *", "xzstd"])
def test_nobody_else_gets_zstd_but_caches_are_told_that_it_depends(accept: str) -> None:
    headers, body = answered(Response(LARGE, media_type=codec.MEDIA_TYPE), accept)
    assert "content-encoding" not in headers
    assert headers["vary"] == "Accept-Encoding"
    assert body == LARGE


@pytest.mark.parametrize(
    "response",
    [
        Response(LARGE[:COMPRESSED_FROM_BYTES], media_type=codec.MEDIA_TYPE),
        PlainTextResponse(LARGE),
        Response(LARGE, media_type=codec.MEDIA_TYPE, headers={"Content-Encoding": "br"}),
        StreamingResponse(iter([LARGE]), media_type=codec.MEDIA_TYPE),
        Response(status_code=204),
    ],
    ids=["small", "text", "encoded", "streamed", "empty"],
)
def test_what_does_not_pay_is_left_alone(response: Response) -> None:
    headers, body = answered(response)
    assert headers.get("content-encoding") in (None, "br")
    assert "vary" not in headers
    assert body == getattr(response, "body", LARGE)


def test_what_else_an_answer_varies_by_stays() -> None:
    response = Response(LARGE, media_type=codec.MEDIA_TYPE, headers={"Vary": "Accept"})
    assert answered(response)[0]["vary"] == "Accept, Accept-Encoding"


def test_the_event_loop_is_not_what_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    class Compressor:
        def __init__(self, _level: int) -> None:
            pass

        def compress(self, data: bytes) -> bytes:
            threads.append(threading.current_thread())
            return data

    monkeypatch.setattr(middleware.zstandard, "ZstdCompressor", Compressor)
    answered(Response(LARGE, media_type=codec.MEDIA_TYPE))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.fixture
def large(client: httpx.Client, picture: Picture) -> dict[str, Any]:
    """A call whose answer is large."""
    (card,) = client.get("/v1/models").json()["models"]
    image_set = client.post("/v1/image-sets", json={"model": card["name"]}).json()["id"]
    images = [base64.b64encode(picture(seed)).decode() for seed in range(10)]
    client.post(
        f"/v1/image-sets/{image_set}/images", json={"first_row": 0, "images": images}
    ).raise_for_status()
    return {
        "model": card["name"],
        "classes": [f"thing {number}" for number in range(40)],
        "templates": ["{}"],
        "image_set": image_set,
        "rows": list(range(10)) * 50,
    }


@pytest.mark.parametrize("accept", [codec.MEDIA_TYPE, "application/json"])
def test_a_stored_answer_is_given_again_byte_for_byte_in_either_coding(
    client: httpx.Client, large: dict[str, Any], accept: str
) -> None:
    headers = {"Accept": accept, "Idempotency-Key": f"large {accept}".replace(" ", "-")}

    def post(coding: str) -> tuple[httpx.Response, bytes]:
        with client.stream(
            "POST", "/v1/predictions", json=large, headers={**headers, "Accept-Encoding": coding}
        ) as answer:
            return answer, b"".join(answer.iter_raw())

    first, compressed = post("zstd")
    again, plain = post("identity")
    assert first.status_code == again.status_code == 200
    assert first.headers["content-encoding"] == "zstd"
    assert "content-encoding" not in again.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(compressed) < len(plain)
    assert zstandard.decompress(compressed) == plain
    assert post("zstd")[1] == compressed


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
