from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import zstandard

from craft_client import compression
from craft_client.api import Client
from craft_client.exceptions import CraftError, MissingPackage, ProtocolError
from craft_client.remote import RemoteBlackBox

from .wire_server import KEY, WireServer

BODY = bytes(range(256)) * 1000


def answer(content: bytes, **headers: str) -> httpx.Response:
    """A streamed response, as `httpx.Client.send(stream=True)` gives it."""

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield content[:10]
            yield content[10:]

    request = httpx.Request("GET", "http://server/")
    return httpx.Response(206, headers=headers, stream=Stream(), request=request)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_compressed_answer_reads_as_what_it_was(frames: int) -> None:
    compressed = zstandard.compress(BODY) * frames
    sent = answer(compressed, **{"Content-Encoding": "zstd", "X-Request-Id": "7"})
    found = compression.read(sent)
    assert found.content == BODY * frames
    assert found.status_code == 206
    assert found.request is sent.request
    assert found.headers["X-Request-Id"] == "7"
    assert "Content-Encoding" not in found.headers


def test_other_answers_are_read_as_they_are() -> None:
    assert compression.read(answer(BODY)).content == BODY


def test_an_answer_that_decompresses_to_too_much_is_not_held() -> None:
    compressed = zstandard.compress(bytes(2**26))
    assert len(compressed) < 10_000
    sent = answer(compressed, **{"Content-Encoding": "zstd"})
    with pytest.raises(ProtocolError, match="decompress to more than 5000000"):
        compression.read(sent, most_bytes=5_000_000)


def test_an_answer_that_is_no_zstd_is_told() -> None:
    with pytest.raises(ProtocolError, match="no zstd"):
        compression.read(answer(BODY, **{"Content-Encoding": "zstd"}))


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
    monkeypatch.setattr(compression, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r'pip install "craftbox\[client,zstd\]"'):
        Client("http://server", KEY, compress=True)
    Client("http://server", KEY, compress=False).close()
