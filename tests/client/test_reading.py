from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import zstandard

from craft_client import reading
from craft_client.api import Client
from craft_client.exceptions import CraftError, MissingPackage, ProtocolError
from craft_client.remote import RemoteBlackBox

from .wire_server import KEY, WireServer

BODY = bytes(range(256)) * 1000


CODINGS = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "deflate": lambda data: zlib.compress(data, 9),
    "zstd": zstandard.compress,
}


def answer(content: bytes, status: int = 206, **headers: str) -> httpx.Response:
    """A streamed response, as `httpx.Client.send(stream=True)` gives it."""

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            view = memoryview(content)
            for start in range(0, len(view), 2**16):
                yield bytes(view[start : start + 2**16])

    asked = {"Accept-Encoding": reading.accepted_codings(compress=True)}
    request = httpx.Request("GET", "http://server/v1/x", headers=asked)
    return httpx.Response(status, headers=headers, stream=Stream(), request=request)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_answer_reads_as_what_it_was(coding: str, frames: int) -> None:
    if frames > 1 and coding != "zstd":
        pytest.skip("httpx reads one member")
    compressed = CODINGS[coding](BODY) * frames
    sent = answer(compressed, **{"Content-Encoding": coding, "X-Request-Id": "7"})
    found = reading.read(sent, len(BODY) * frames)
    assert found.content == BODY * frames
    assert found.status_code == 206
    assert found.request is sent.request
    assert found.headers["X-Request-Id"] == "7"
    assert "Content-Encoding" not in found.headers


def test_other_answers_are_read_as_they_are() -> None:
    assert reading.read(answer(BODY), len(BODY)).content == BODY
    coded = answer(BODY, **{"Content-Encoding": "identity"})
    assert reading.read(coded, len(BODY)).content == BODY


@pytest.mark.parametrize("coding", ["", *CODINGS])
def test_of_an_answer_that_comes_to_too_much_little_is_held(coding: str) -> None:
    """Whatever it travels as: 256 MB are asked to be held, where 5 may be."""
    zeros = bytes(2**28)
    sent = answer(CODINGS[coding](zeros) if coding else zeros, **{"Content-Encoding": coding})
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="comes to more than 5,000,000 bytes"):
            reading.read(sent, 5_000_000)
        assert tracemalloc.get_traced_memory()[1] < 3 * 5_000_000
    finally:
        tracemalloc.stop()


def test_an_answer_that_says_it_is_too_large_is_not_read() -> None:
    sent = answer(b"", **{"Content-Length": "5000001"})
    with pytest.raises(ProtocolError, match="more than 5,000,000"):
        reading.read(sent, 5_000_000)


def test_why_a_call_is_refused_is_bounded_too() -> None:
    sent = answer(bytes(reading.MOST_PROBLEM_BYTES + 1), status=400)
    with pytest.raises(ProtocolError, match="comes to more than"):
        reading.read(sent, 2**30)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd, gzip", "x-gzip", "compress"])
def test_codings_that_were_not_asked_for_are_not_undone(coding: str) -> None:
    with pytest.raises(ProtocolError, match=r"coding '.*', which was not asked for"):
        reading.read(answer(b"", **{"Content-Encoding": coding}), 100)


@pytest.mark.parametrize("coding", CODINGS)
def test_an_answer_that_is_not_in_its_coding_is_an_error(coding: str) -> None:
    with pytest.raises(httpx.DecodingError):
        reading.read(answer(BODY, **{"Content-Encoding": coding}), 2**20)


@pytest.mark.parametrize(("compress", "asked"), [(True, True), (False, False), (None, False)])
def test_zstd_is_asked_for_only_on_demand_and_changes_no_number(
    connected: WireServer, fast_retries: None, compress: bool | None, asked: bool
) -> None:
    with Client(compress=compress) as client:
        pictures = [f"{number:06}".encode() for number in range(200)]
        image_set = client.create_image_set("fake")
        connected.limits = connected.limits.model_copy(update={"images_per_call": 200})
        image_set = client.upload_images(image_set, pictures)
        scores = RemoteBlackBox(client, image_set, ("cat", "dog", "owl")).score(templates=["a {}."])
    assert ("zstd" in connected.seen[-1].headers["Accept-Encoding"]) == asked
    assert scores.log_probs.shape == (1, 200, 3)
    np.testing.assert_allclose(np.exp(scores.log_probs).sum(-1), 1, atol=1e-2)


@pytest.mark.parametrize(
    ("value", "asked"), [("1", True), ("Yes", True), ("0", False), ("", False)]
)
def test_the_environment_says_it_where_the_caller_does_not(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch, value: str, asked: bool
) -> None:
    monkeypatch.setenv("CRAFT_COMPRESS", value)
    for compress, expected in ((None, asked), (False, False), (True, True)):
        with Client(compress=compress) as client:
            client.models()
        assert ("zstd" in connected.seen[-1].headers["Accept-Encoding"]) == expected


def test_an_environment_that_says_neither_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFT_COMPRESS", "maybe")
    with pytest.raises(CraftError, match=r"CRAFT_COMPRESS is 'maybe'.\n.*1 or 0"):
        Client("http://server", KEY)


def test_without_the_package_compression_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r'pip install "craftbox\[client,zstd\]"'):
        Client("http://server", KEY, compress=True)
    Client("http://server", KEY, compress=False).close()
