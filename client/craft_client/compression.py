"""Answers that travel compressed (zstd, RFC 8878): what to ask for, and how to undo it in bounds.

httpx would undo it too, but a few kilobytes can decompress to gigabytes, and httpx holds whatever
comes out. It knows codings and sizes; it does not know what an answer means.
"""

from __future__ import annotations

from importlib.util import find_spec

import httpx

from craft_client.exceptions import MissingPackage, ProtocolError

CODING = "zstd"
# Four times what a server sends at once unless its operator allows more.
MOST_BYTES = 2**30
_STEP_BYTES = 2**20


def accepted_codings(*, compress: bool) -> str:
    """The header `Accept-Encoding`: httpx's own, in which zstd stands only if it is asked for.

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
    return f"{CODING}, gzip, deflate"


def read(response: httpx.Response, *, most_bytes: int = MOST_BYTES) -> httpx.Response:
    """Reads a streamed answer whole; of one in zstd, what it decompresses to.

    Raises:
        ProtocolError: it cannot be decompressed, or comes to more than `most_bytes`.
        httpx.TransportError: the connection broke.
    """
    if not _in_zstd(response):
        response.read()
        return response
    return _undone(response, b"".join(response.iter_raw()), most_bytes)


async def read_async(response: httpx.Response, *, most_bytes: int = MOST_BYTES) -> httpx.Response:
    """`read`, of an answer that an asynchronous client streams."""
    if not _in_zstd(response):
        await response.aread()
        return response
    data = b"".join([chunk async for chunk in response.aiter_raw()])
    return _undone(response, data, most_bytes)


def _in_zstd(response: httpx.Response) -> bool:
    coding: str = response.headers.get("Content-Encoding", "")
    return coding.strip().lower() == CODING


def _undone(response: httpx.Response, data: bytes, most_bytes: int) -> httpx.Response:
    headers = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in ("content-encoding", "content-length")
    ]
    return httpx.Response(
        response.status_code,
        headers=headers,
        content=_decompressed(data, most_bytes),
        request=response.request,
    )


def _decompressed(data: bytes, most_bytes: int) -> bytes:
    try:
        # Optional, and needed only where an answer is compressed.
        import zstandard
    except ImportError as error:
        raise ProtocolError("The server sent an answer in zstd unasked.") from error
    pieces: list[bytes] = []
    size = 0
    try:
        # It does not tell an end that is missing; what reads the answer does.
        reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        while piece := reader.read(_STEP_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise ProtocolError(
                    f"The server sent {len(data)} bytes that decompress to more than {most_bytes}.",
                    remedy="If so much was asked for, ask for less at once, or uncompressed.",
                )
    except zstandard.ZstdError as error:
        raise ProtocolError(f"The server sent an answer that is no zstd: {error}.") from error
    return b"".join(pieces)
