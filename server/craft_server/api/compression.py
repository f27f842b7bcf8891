"""Compresses large answers with zstd where the client asks for it.

Sources: RFC 8878 (zstd), RFC 9110, sections 8.4 and 12.5.3 (codings and who accepts them).

It sees an answer on its way out, after it was stored: what is kept under an idempotency key is
never compressed, and one stored answer serves clients of either kind. It knows sizes and media
types; it does not know what an answer means.

Not a package, because those for ASGI (starlette-compress, zstd-asgi) compress on the event loop,
which the 30 MB of an answer would block for every other call.
"""

from __future__ import annotations

import asyncio

import zstandard
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api.answer_body import JSON_TYPE
from craft_server.api.negotiation import names
from craft_shared import codec

CODING = "zstd"
LEAST_BYTES = 64 * 1024  # less is sent about as fast as it is compressed
# docs/performance.md: on log-probabilities higher levels take longer and give no less.
LEVEL = 1
_MEDIA_TYPES = (codec.MEDIA_TYPE, JSON_TYPE)


class CompressionMiddleware:
    """Compresses answers that are large, whole, JSON or safetensors, and not encoded yet.

    Only `zstd` by name counts: a client that accepts any coding has not said that it wants to spend
    the time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = names(", ".join(Headers(scope=scope).getlist("accept-encoding")), CODING)
        start: Message | None = None

        async def send_compressed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # held back: its headers depend on the body
                return
            if start is not None:
                head, start = start, None
                if _is_large(head, message):
                    MutableHeaders(scope=head).add_vary_header("Accept-Encoding")
                    if wanted:
                        message = await _compressed(head, message)
                await send(head)
            await send(message)

        await self._app(scope, receive, send_compressed)


def _is_large(start: Message, message: Message) -> bool:
    if message["type"] != "http.response.body" or message.get("more_body", False):
        return False
    headers = Headers(raw=start["headers"])
    media_type = headers.get("content-type", "").partition(";")[0].strip()
    return (
        len(message.get("body", b"")) > LEAST_BYTES
        and media_type in _MEDIA_TYPES
        and "content-encoding" not in headers
    )


async def _compressed(start: Message, message: Message) -> Message:
    """The body's message compressed, and the start's headers changed to say so."""
    # The compressor lets the interpreter lock go.
    body = await asyncio.to_thread(zstandard.ZstdCompressor(LEVEL).compress, message["body"])
    headers = MutableHeaders(scope=start)
    headers["Content-Encoding"] = CODING
    headers["Content-Length"] = str(len(body))
    return {**message, "body": body}
