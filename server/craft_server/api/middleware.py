"""What stands around every call, as ASGI middlewares; none of them knows what a call means.

CallMiddleware         names the call, logs and counts it
CompressionMiddleware  compresses large answers
BodyGateMiddleware     bounds bodies before they are parsed
HangUpMiddleware       cancels the call of a client that has hung up
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import structlog
import zstandard
from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.problems import ProblemError
from craft_server.telemetry import REGISTRY
from craft_shared import codec
from craft_shared.problems import BODY_TOO_LARGE, OVERLOADED, RATE_LIMITED
from craft_shared.wire import Limits

JSON_TYPE = "application/json"
REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

# From an answer out of a cache to a large upload on a slow machine.
_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REQUESTS = Counter(
    "craft_http_requests_total",
    "HTTP calls that ended, by what was asked and answered.",
    ["operation", "status"],
    registry=REGISTRY,
)
_SECONDS = Histogram(
    "craft_http_request_duration_seconds",
    "From a call's first byte to its answer's last.",
    ["operation"],
    buckets=_BUCKETS_SECONDS,
    registry=REGISTRY,
)
_IN_FLIGHT = Gauge(
    "craft_http_requests_in_flight",
    "HTTP calls that are being answered, this one included.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)

ZSTD = "zstd"
COMPRESSED_FROM_BYTES = 64 * 1024  # less is sent about as fast as it is compressed
# docs/evidence/performance.md: on log-probabilities higher levels take longer and give no less.
ZSTD_LEVEL = 1
_COMPRESSED_TYPES = (codec.MEDIA_TYPE, JSON_TYPE)

FORM_BYTES = 16 * 1024
# A request's state says whose body it is, and how large a form's file may be.
KEY_ID = "key_id"
FILE_BYTES = "file_bytes"

_log = structlog.get_logger()


class Middleware:
    """Passes on what is not HTTP; `_call` is a call's way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http":
            await self._call(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class CallMiddleware(Middleware):
    """Names each call, logs it and counts it for Prometheus.

    The id is the client's `X-Request-Id` or a new one; it is in `request.state.request_id`, the
    log's context and the answer. The log holds method, path, status and milliseconds; never a body,
    a header or a query string.

    Once the server is about to stop (`closing`), connections are closed (RFC 9112, section 9.6): a
    client that opens a new one may reach another server.
    """

    def __init__(self, app: ASGIApp, *, closing: Callable[[], bool] = lambda: False) -> None:
        super().__init__(app)
        self._closing = closing

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if self._closing():
                    headers["Connection"] = "close"
            await send(message)

        _IN_FLIGHT.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_named)
            finally:
                seconds = time.perf_counter() - began
                operation = operation_of(scope)
                _IN_FLIGHT.dec()
                _REQUESTS.labels(operation, "none" if status is None else status).inc()
                _SECONDS.labels(operation).observe(seconds)
                _log.info(
                    "call",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(1000 * seconds, 1),
                )


class CompressionMiddleware(Middleware):
    """Compresses answers that are large, whole, JSON or safetensors, and not encoded yet (zstd).

    It sees an answer after it was stored: what is stored under an idempotency key is never
    compressed, and one stored answer serves clients of either kind. Only `zstd` by name counts: a
    client that accepts any coding has not said that it wants to spend the time.

    Not a package, because those for ASGI (starlette-compress, zstd-asgi) compress on the event
    loop, which the 30 MB of an answer would block for every other call.

    Sources: RFC 8878 (zstd), RFC 9110, sections 8.4 and 12.5.3 (codings and who accepts them).
    """

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = accepts(", ".join(Headers(scope=scope).getlist("accept-encoding")), ZSTD)
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


class BodyGate:
    """Counts the bytes of bodies that are being received or worked on.

    No key takes more than half of what the others leave: however many keys there are, there is room
    for one more.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._total = 0
        self._of_key: dict[int | None, int] = {}

    @property
    def nbytes(self) -> int:
        """Of all together, now."""
        return self._total

    def check(self, key_id: int | None, more: int) -> None:
        """Raises ProblemError unless a key may have so many bytes more in flight.

        Without a key, in a form that signs in, `key_id` is None.
        """
        held = self._of_key.get(key_id, 0)
        if 2 * (held + more) <= self._most - (self._total - held):
            return
        if held:
            detail = f"bodies of {held} bytes of the key are being worked on, as many as may be"
            raise ProblemError(RATE_LIMITED, detail, retry_after=1)
        detail = "the server is at work on as many bytes of bodies as it may"
        raise ProblemError(OVERLOADED, detail, retry_after=5)

    def take(self, key_id: int | None, more: int) -> None:
        """Counts bytes that have arrived, or raises as `check` does."""
        self.check(key_id, more)
        self._total += more
        self._of_key[key_id] = self._of_key.get(key_id, 0) + more

    def release(self, key_id: int | None, count: int) -> None:
        """Stops counting bytes."""
        self._total -= count
        self._of_key[key_id] -= count
        if not self._of_key[key_id]:
            del self._of_key[key_id]


class BodyGateMiddleware(Middleware):
    """Refuses a body before more of it is read than may be.

    JSON costs far more to parse than the tensors of a safetensors file, and a form far more than
    JSON, so that each has a bound of its own; any other type has a form's. An announced length is
    refused at the first read. A body that nobody reads is not refused, so that a missing key comes
    first.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, gate: BodyGate) -> None:
        super().__init__(app)
        self._limits = limits
        self._gate = gate

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        most: int | None = None
        key_id: int | None = None
        received = 0

        async def receive_bounded() -> Message:
            nonlocal most, key_id, received
            if most is None:
                headers, state = Headers(scope=scope), scope.get("state", {})
                most, key_id = self._most(headers, state), state.get(KEY_ID)
                length = headers.get("content-length", "")
                announced = int(length[:20]) if length.isascii() and length.isdecimal() else 0
                _check_size(announced, most)
                self._gate.check(key_id, announced)
            message = await receive()
            if size := len(message.get("body", b"")):
                _check_size(received + size, most)
                self._gate.take(key_id, size)
                received += size
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            if received:
                self._gate.release(key_id, received)

    def _most(self, headers: Headers, state: dict[str, int]) -> int:
        media_type = media_type_of(headers)
        if media_type == codec.MEDIA_TYPE:
            return self._limits.body_bytes
        if media_type == JSON_TYPE:
            return min(self._limits.json_bytes, self._limits.body_bytes)
        return min(state.get(FILE_BYTES, 0) + FORM_BYTES, self._limits.body_bytes)


class HangUpMiddleware(Middleware):
    """Cancels a call whose client has hung up before its answer was ready.

    Nobody would read the answer, so its work is dropped from the model's queue and its reservation
    refunded. The connection is watched from the end of the request's body to the start of the
    answer.
    """

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch: asyncio.Task[Message] | None = None
        answering = hung_up = False

        def on_hang_up(_watch: asyncio.Task[Message]) -> None:
            nonlocal hung_up
            if not (answering or _watch.cancelled()):
                hung_up = True
                call.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watch
            if watch is not None:
                return await asyncio.shield(watch)
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                watch = asyncio.ensure_future(receive())
                watch.add_done_callback(on_hang_up)
            return message

        async def send_noting_start(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        call = asyncio.ensure_future(self._app(scope, receive_and_watch, send_noting_start))
        try:
            await call
        except asyncio.CancelledError:
            if not hung_up:
                raise
        finally:
            if watch is not None:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch


def operation_of(scope: Scope) -> str:
    """The operation's id, or the name of a page of the console; an address could be anything."""
    return getattr(scope.get("route"), "name", None) or "none"


def media_type_of(headers: Headers) -> str:
    """The body's media type without parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def accepts(header: str, choice: str) -> bool:
    """Whether a header of weighted choices names `choice` itself, not a wildcard or with q=0.

    Source: RFC 9110, section 12.4.2.
    """
    for item in header.split(","):
        value, *parameters = (part.strip().lower() for part in item.split(";"))
        if value == choice:
            weights = (parameter.partition("=") for parameter in parameters)
            return not any(name.strip() == "q" and not w.strip(" 0.") for name, _, w in weights)
    return False


def _is_large(start: Message, message: Message) -> bool:
    if message["type"] != "http.response.body" or message.get("more_body", False):
        return False
    headers = Headers(raw=start["headers"])
    media_type = headers.get("content-type", "").partition(";")[0].strip()
    return (
        len(message.get("body", b"")) > COMPRESSED_FROM_BYTES
        and media_type in _COMPRESSED_TYPES
        and "content-encoding" not in headers
    )


async def _compressed(start: Message, message: Message) -> Message:
    """The body's message compressed, and the start's headers changed to say so."""
    # The compressor releases the interpreter lock.
    body = await asyncio.to_thread(zstandard.ZstdCompressor(ZSTD_LEVEL).compress, message["body"])
    headers = MutableHeaders(scope=start)
    headers["Content-Encoding"] = ZSTD
    headers["Content-Length"] = str(len(body))
    return {**message, "body": body}


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ProblemError(BODY_TOO_LARGE, f"the body has more than {most} bytes")
