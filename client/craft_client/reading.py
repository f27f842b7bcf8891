"""Reading answers in bounds: of each no more is held than it may come to, however it travels.

httpx undoes what travels compressed. A few kilobytes of that can come to gigabytes, so that it is
given a sip at a time, and an answer that grows too large is let go of. It knows codings and sizes;
it does not know what an answer means.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import Any

import httpx

from craft_client.exceptions import MissingPackage, ProtocolError

# What says why there is no answer: a problem names each picture of a call at most.
MOST_PROBLEM_BYTES = 4 * 2**20
# Zstandard makes at most 128 KiB of four bytes, gzip far less.
_SIP_BYTES = 64


def accepted_codings(*, compress: bool) -> str:
    """The header `Accept-Encoding`, in which zstd stands only if it is asked for.

    Raises:
        MissingPackage: zstd is asked for and cannot be undone here.
    """
    if not compress:
        return "gzip, deflate"
    if find_spec("zstandard") is None:
        raise MissingPackage(
            "Compressed answers need the package zstandard.",
            remedy='Install it: pip install "craftbox[client,zstd]". Or do without compression: it '
            "pays on slow networks only.",
        )
    return "zstd, gzip, deflate"


def read(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Reads a streamed answer whole.

    Raises:
        ProtocolError: it comes to more than `most_bytes`, or travels in an unknown way.
        httpx.DecodingError: it cannot be decompressed.
        httpx.TransportError: the connection broke.
    """
    whole = _Whole(response, most_bytes)
    for piece in response.iter_bytes():
        whole.add(piece)
    return whole.response()


async def read_async(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """`read`, of an answer that an asynchronous client streams."""
    whole = _Whole(response, most_bytes)
    async for piece in response.aiter_bytes():
        whole.add(piece)
    return whole.response()


class _Whole:
    """An answer as it grows."""

    def __init__(self, response: httpx.Response, most_bytes: int) -> None:
        self._streamed = response
        self._most = most_bytes if response.is_success else MOST_PROBLEM_BYTES
        self._content = bytearray()
        codings = response.headers.get_list("Content-Encoding", split_commas=True)
        names = [name for name in map(str.lower, codings) if name not in ("", "identity")]
        asked = response.request.headers.get("Accept-Encoding", "").split(", ")
        if len(names) > 1 or not set(names) <= set(asked):
            raise ProtocolError(
                f"{response.url.host} sent an answer in the coding '{', '.join(names)}', which "
                "was not asked for.",
                remedy="Is there a proxy in between? Have it leave answers as they are.",
            )
        stated = response.headers.get("Content-Length", "")
        if stated.isdecimal() and len(stated) < 20 and int(stated) > self._most:
            raise self._too_large()
        if names:
            response.stream = _Sips(response.stream)

    def add(self, piece: bytes) -> None:
        if len(self._content) + len(piece) > self._most:
            raise self._too_large()
        self._content += piece

    def response(self) -> httpx.Response:
        content = bytes(self._content)
        self._content = bytearray()
        headers = [
            (name, value)
            for name, value in self._streamed.headers.raw  # which need not be ASCII
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        return httpx.Response(
            self._streamed.status_code,
            headers=headers,
            content=content,
            request=self._streamed.request,
        )

    def _too_large(self) -> ProtocolError:
        request = self._streamed.request
        return ProtocolError(
            f"The answer {self._streamed.status_code} of {request.method} {request.url.path} comes "
            f"to more than {self._most:,} bytes, which is more than it may.",
            remedy="Is this the address of a craftbox server, and of the same version as the "
            "client?",
        )


class _Sips(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A stream in small pieces."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            yield from _sips(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            for sip in _sips(data):
                yield sip

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _sips(data: bytes) -> Iterator[bytes]:
    return (data[start : start + _SIP_BYTES] for start in range(0, len(data), _SIP_BYTES))
