"""How many bytes a request's body may have, and all of them together: looked at before any parsing.

JSON costs far more to read than the tensors of a safetensors file, and a form far more than JSON,
so that each has a bound of its own; what is none of them has a form's. Bodies that are being
received or worked on share a bound, of which no key takes more than half of what the others leave:
however many keys fill it, there is room for one more. It knows sizes and media types; it does not
know what a body means.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.problems import ProblemError
from craft_shared import codec
from craft_shared.problems import BODY_TOO_LARGE, OVERLOADED, RATE_LIMITED
from craft_shared.wire import Limits

JSON_TYPE = "application/json"
FORM_BYTES = 16 * 1024
# What a request's state tells the gate: whose body it is, and how large a form's file may be.
KEY_ID = "key_id"
FILE_BYTES = "file_bytes"


class BodyGate:
    """The bytes of all bodies that are being received or worked on.

    Args:
        most_bytes: of all together.
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

    def give_back(self, key_id: int | None, count: int) -> None:
        """Counts bytes no more."""
        self._total -= count
        self._of_key[key_id] -= count
        if not self._of_key[key_id]:
            del self._of_key[key_id]


class BodyGateMiddleware:
    """Refuses a body before more of it is read than may be.

    An announced length is refused at the first read. Nothing is refused that nobody reads, so that
    a missing key comes first.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, gate: BodyGate) -> None:
        self._app = app
        self._limits = limits
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most: int | None = None
        key_id: int | None = None
        received = 0

        async def receive_bounded() -> Message:
            nonlocal most, key_id, received
            if most is None:
                headers, state = Headers(scope=scope), scope.get("state", {})
                most, key_id = self._most(headers, state), state.get(KEY_ID)
                announced = _announced(headers)
                _check(announced, most)
                self._gate.check(key_id, announced)
            message = await receive()
            if size := len(message.get("body", b"")):
                _check(received + size, most)
                self._gate.take(key_id, size)
                received += size
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            if received:
                self._gate.give_back(key_id, received)

    def _most(self, headers: Headers, state: dict[str, int]) -> int:
        media_type = media_type_of(headers)
        if media_type == codec.MEDIA_TYPE:
            return self._limits.body_bytes
        if media_type == JSON_TYPE:
            return min(self._limits.json_bytes, self._limits.body_bytes)
        return min(state.get(FILE_BYTES, 0) + FORM_BYTES, self._limits.body_bytes)


def media_type_of(headers: Headers) -> str:
    """The body's media type without parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length[:20]) if length.isascii() and length.isdecimal() else 0


def _check(size: int, most: int) -> None:
    if size > most:
        raise ProblemError(BODY_TOO_LARGE, f"the body has more than {most} bytes")
