"""Refuses a body that is too large, before more of it is read than allowed."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.problems import ProblemError
from craft_shared.problems import BODY_TOO_LARGE


class BodyLimitMiddleware:
    """Counts the body's bytes as they stream in; whoever reads past the limit gets the problem.

    An announced length beyond the limit is refused at the first read. Nothing is refused that
    nobody reads, so that a missing key is told first.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        received = 0

        async def receive_counting() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced[:20]) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_counting, send)

    def _too_large(self) -> ProblemError:
        return ProblemError(BODY_TOO_LARGE, f"the body has more than {self._max_bytes} bytes")
