"""Which pages of other origins may call the API from a browser (CORS, the Fetch standard).

The console is not among what they may call, and no cookie counts: a page sends a key, as every
other client does.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from craft_server.api.middleware import Middleware

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SECONDS = 600  # that a browser may keep the permission


class CorsMiddleware(Middleware):
    """Lets pages of these origins call the API and read its answers, problems included."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        super().__init__(app)
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=_SECONDS,
        )

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        shared = path.startswith("/v1/") or path == "/openapi.json"
        await (self._shared if shared else self._app)(scope, receive, send)
