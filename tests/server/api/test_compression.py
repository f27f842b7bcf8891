"""zstd of large answers: who gets it, and that it changes nothing else."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zstandard
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message

from craft_server.api import middleware
from craft_server.api.middleware import COMPRESSED_FROM_BYTES, CompressionMiddleware
from craft_shared import codec

Picture = Callable[..., bytes]
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
