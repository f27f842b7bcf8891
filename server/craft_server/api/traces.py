"""Spans of a call: its HTTP side, and the model's part in it, where traces are on.

It knows operations and what an engine is asked; it does not know where spans go. The ledger's spans
are made by `craft_server.api.metering`.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api.middleware import operation_of
from craft_server.engine import HostedModel
from craft_shared.tracing import span, wanted


class TraceMiddleware:
    """One span a call, a part of the client's trace if the client says which (`traceparent`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with span(scope["method"], "SERVER", carrier=Headers(scope=scope)) as call:
            request_id = scope["state"]["request_id"]
            call.note({"http.request.method": scope["method"], "craft.request_id": request_id})

            async def send_noting_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.note({"http.response.status_code": message["status"]})
                await send(message)

            try:
                await self._app(scope, receive, send_noting_status)
            finally:
                call.rename(operation_of(scope))


class TracedEngine:
    """An engine each of whose answers is a span; all else is the engine's own."""

    def __init__(self, engine: HostedModel) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def encode_images(self, *args: Any, **kwargs: Any) -> Any:
        """See `HostedModel.encode_images`."""
        with span("engine.encode_images"):
            return await self._engine.encode_images(*args, **kwargs)

    async def encode_prompts(self, *args: Any, **kwargs: Any) -> Any:
        """See `HostedModel.encode_prompts`."""
        with span("engine.encode_prompts"):
            return await self._engine.encode_prompts(*args, **kwargs)

    async def score(self, *args: Any, **kwargs: Any) -> Any:
        """See `HostedModel.score`."""
        with span("engine.score"):
            return await self._engine.score(*args, **kwargs)


def traced(engine: HostedModel) -> HostedModel:
    """The engine, with spans where the environment asks for them."""
    made: Any = TracedEngine(engine) if wanted() else engine
    return made  # type: ignore[no-any-return] # it does all that a hosted model does
