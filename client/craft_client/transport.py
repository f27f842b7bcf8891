"""What httpx leaves open: a server that says nothing, one that drips, and an answer without end.

`transport.py` is written from `async_transport.py` by `tools/unasync_client.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

from craft_client.calls import GrowingAnswer
from craft_client.network import SENT_AT_ONCE, Pace, Route

# Servers close idle connections (uvicorn after 5 s). A request on a connection that is being closed
# would have to be sent again, so the client closes it earlier.
_LIMITS = httpx.Limits(keepalive_expiry=2.0)
# What is given to a decompressor at once. Zstandard makes at most 128 KiB of four bytes, gzip far
# less.
_PIECE_BYTES = 64


def transport_to(route: Route) -> httpx.HTTPTransport:
    """Connections by a route, whose pace is watched."""
    transport = httpx.HTTPTransport(
        verify=route.context, trust_env=False, limits=_LIMITS, proxy=route.proxy
    )
    # httpx has no option for what makes its connections.
    pool: Any = transport._pool
    pool._network_backend = _WatchedBackend(pool._network_backend)
    return transport


def read(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Reads a streamed answer whole, holding no more of it than it may come to.

    Raises:
        ProtocolError: it comes to more than `most_bytes`, or is in an unknown coding.
        httpx.DecodingError: it cannot be decompressed.
        httpx.TransportError: the connection broke.
    """
    answer = GrowingAnswer(response, most_bytes)
    if answer.compressed:
        # A few kilobytes may decompress to gigabytes, and httpx decompresses whatever it is given.
        response.stream = _SmallPieces(response.stream)
    for piece in response.iter_bytes():
        answer.add(piece)
    return answer.whole()


class _SmallPieces(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            for start in range(0, len(data), _PIECE_BYTES):
                yield data[start : start + _PIECE_BYTES]

    def close(self) -> None:
        self._stream.close()


class _WatchedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, name: str) -> None:
        self._stream, self._name, self._pace = stream, name, Pace(name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        wait = self._pace.first_wait(timeout)
        try:
            data = self._stream.read(max_bytes, wait)
        except httpcore.ReadTimeout:
            if wait == timeout:
                raise
            data = self._stream.read(max_bytes, self._pace.further_wait(timeout))
        return self._pace.got(data)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._pace.asked()
        for start in range(0, len(buffer), SENT_AT_ONCE):
            data = buffer[start : start + SENT_AT_ONCE]
            self._stream.write(data, timeout)
            self._pace.sent(data)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _WatchedStream(inner, self._name)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _WatchedBackend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _WatchedStream(stream, f"{host}:{port}")

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)
