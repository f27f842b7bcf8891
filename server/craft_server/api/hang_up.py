"""Cancels a call whose client has hung up before its answer was ready.

Nobody would read the answer, so what it waits for is dropped from the model's queue and its
reservation given back. It knows ASGI; what cancellation means to a call is the call's affair.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HangUpMiddleware:
    """Watches the connection from the end of the request's body to the start of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
