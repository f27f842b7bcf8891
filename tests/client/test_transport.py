from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import httpx
import pytest

from craft_client.calls import MOST_PROBLEM_BYTES
from craft_client.exceptions import ProtocolError
from craft_client.transport import read

BODY = bytes(range(256)) * 1000


CODINGS = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "deflate": lambda data: zlib.compress(data, 9),
}


def answer(content: bytes, status: int = 206, **headers: str) -> httpx.Response:
    """A streamed response, as `httpx.Client.send(stream=True)` gives it."""

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            view = memoryview(content)
            for start in range(0, len(view), 2**16):
                yield bytes(view[start : start + 2**16])

    request = httpx.Request("GET", "http://server/v1/x")
    return httpx.Response(status, headers=headers, stream=Stream(), request=request)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_answer_reads_as_what_it_was(coding: str) -> None:
    compressed = CODINGS[coding](BODY)
    sent = answer(compressed, **{"Content-Encoding": coding, "X-Request-Id": "7"})
    found = read(sent, len(BODY))
    assert found.content == BODY
    assert found.status_code == 206
    assert found.request is sent.request
    assert found.headers["X-Request-Id"] == "7"
    assert "Content-Encoding" not in found.headers


def test_other_answers_are_read_as_they_are() -> None:
    assert read(answer(BODY), len(BODY)).content == BODY
    coded = answer(BODY, **{"Content-Encoding": "identity"})
    assert read(coded, len(BODY)).content == BODY


@pytest.mark.parametrize("coding", ["", *CODINGS])
def test_of_an_answer_that_comes_to_too_much_little_is_held(coding: str) -> None:
    """Whatever it travels as: 256 MB are asked to be held, where 5 may be."""
    zeros = bytes(2**28)
    sent = answer(CODINGS[coding](zeros) if coding else zeros, **{"Content-Encoding": coding})
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="comes to more than 5,000,000 bytes"):
            read(sent, 5_000_000)
        assert tracemalloc.get_traced_memory()[1] < 3 * 5_000_000
    finally:
        tracemalloc.stop()


def test_an_answer_that_says_it_is_too_large_is_not_read() -> None:
    sent = answer(b"", **{"Content-Length": "5000001"})
    with pytest.raises(ProtocolError, match="more than 5,000,000"):
        read(sent, 5_000_000)


def test_why_a_call_is_refused_is_bounded_too() -> None:
    sent = answer(bytes(MOST_PROBLEM_BYTES + 1), status=400)
    with pytest.raises(ProtocolError, match="comes to more than"):
        read(sent, 2**30)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd", "x-gzip", "compress"])
def test_codings_that_were_not_asked_for_are_not_undone(coding: str) -> None:
    with pytest.raises(ProtocolError, match=r"coding '.*', which was not asked for"):
        read(answer(b"", **{"Content-Encoding": coding}), 100)


@pytest.mark.parametrize("coding", CODINGS)
def test_an_answer_that_is_not_in_its_coding_is_an_error(coding: str) -> None:
    with pytest.raises(httpx.DecodingError):
        read(answer(BODY, **{"Content-Encoding": coding}), 2**20)
