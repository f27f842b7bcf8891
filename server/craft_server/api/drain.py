"""Whether the server is about to stop, and how its clients' connections learn of it.

While it drains it goes on serving, but calls itself not ready and keeps no connection: a client
that opens a new one may be led to another server. It knows neither signals nor how long draining
takes.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """Begins once and never ends.

    Attributes:
        begun: whether the server is about to stop.
    """

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """May be called by a signal's handler."""
        self.begun = True


class DrainMiddleware:
    """Answers with `Connection: close` once the drain has begun (RFC 9112, section 9.6)."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing)
