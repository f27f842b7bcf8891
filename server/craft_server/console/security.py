"""What every page of the console carries: headers that bind the browser, and problems as pages.

The policy lets a page load the console's own style, script and pictures, send forms to the console,
and nothing else: no inline script or style, no frame around it, no other site. It knows addresses
and headers; it does not know what a page shows.

Sources: W3C Content Security Policy Level 3; W3C Referrer Policy, whose `same-origin` tells other
sites nothing and still lets the browser name the origin of a form.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api.errors import PROBLEM_PAGE, ProblemPage

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ConsoleMiddleware:
    """Adds the headers to the console's answers; its problems become pages."""

    def __init__(self, app: ASGIApp, *, problem_page: ProblemPage) -> None:
        self._app = app
        self._problem_page = problem_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or not is_console(scope["path"]):
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})[PROBLEM_PAGE] = self._problem_page

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_protected)


def is_console(path: str) -> bool:
    """Whether an address belongs to the console, as the page of the API's description does."""
    return path in ("/", "/console", "/docs") or path.startswith("/console/")
