"""Puts the console into the application: its pages, what protects them, and problems as pages.

The policy lets a page load the console's own style, script and images, send forms to the console,
and nothing else: no inline script or style, no frame around it, no other site.

Sources: W3C Content Security Policy Level 3; W3C Referrer Policy, whose `same-origin` names no
address to other sites and still lets the browser name the origin of a form.
"""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from craft_server.api.errors import PROBLEM_PAGE
from craft_server.api.middleware import Middleware
from craft_server.console import (
    adapters,
    administration,
    assets,
    overview,
    runs,
    sign_in,
)
from craft_server.console.access import SignedOut, WithSessionIfAny, forget_token, read_token
from craft_server.console.rendering import redirect, render
from craft_server.problems import ProblemError
from craft_shared import problems
from craft_shared.problems import NOT_FOUND, Problem, ProblemType

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_description(request: Request) -> Response:
    """The page; its script reads `/openapi.json`."""
    return render(request, "docs.html.jinja")


def install(app: FastAPI) -> None:
    """Adds the console's routes and handlers."""
    for module in (sign_in, overview, runs, adapters, administration, assets):
        app.include_router(module.router)
    app.include_router(router)
    # Last: addresses without a page are answered on a page that has the menu.
    app.get("/console/{_rest:path}", include_in_schema=False)(_no_such_page)
    app.exception_handler(SignedOut)(_on_signed_out)


def add_middleware(app: FastAPI) -> None:
    """Adds what must stand outside of all that answers, errors included."""
    app.add_middleware(ConsoleMiddleware)


async def _no_such_page(_session: WithSessionIfAny) -> Response:
    raise ProblemError(NOT_FOUND, "there is no such page")


async def _on_signed_out(request: Request, error: SignedOut) -> Response:
    query = f"?{urlencode({'next': error.wanted})}" if error.wanted not in ("", "/") else ""
    response = redirect(f"{sign_in.ADDRESS}{query}")
    if read_token(request) is not None:
        forget_token(request, response)
    return response


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


class ConsoleMiddleware(Middleware):
    """Adds the headers to the console's answers; its problems become pages."""

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Middleware.call`."""
        if not _is_console(scope["path"]):
            await self._app(scope, receive, send)
            return
        scope["state"][PROBLEM_PAGE] = problem_page

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_protected)


def _is_console(path: str) -> bool:
    """Whether an address belongs to the console, as the page of the API's description does."""
    return path in ("/", "/console", "/docs") or path.startswith("/console/")


# Where the API's own words are for programs.
_REMEDIES: dict[ProblemType, str] = {
    problems.NOT_FOUND: "Check the address, or start from the overview.",
    problems.ADAPTER_NOT_FOUND: "Choose one from the list of adapters.",
    problems.METHOD_NOT_ALLOWED: "Start from the overview.",
    problems.BUDGET_EXHAUSTED: (
        "Nothing was charged. Ask your provider for a top-up, or wait until the budget begins anew "
        "if it has a date. The overview shows what is left."
    ),
    problems.FORBIDDEN: "Sign in with a key that may do this, or ask your provider for the scope.",
    problems.RATE_LIMITED: "Nothing was charged. Wait a minute and try again.",
    problems.OVERLOADED: "Nothing was charged. Try again in a few seconds.",
    problems.BODY_TOO_LARGE: "Choose a smaller file.",
    problems.INVALID_IMAGE: "Nothing was charged. Choose another picture.",
    problems.INVALID_REQUEST: "Nothing was changed. Go back and correct what is named here.",
    problems.INTERNAL_ERROR: (
        "Nothing was charged. Try again; if it happens again, tell your provider the number below."
    ),
}
_BY_URI = {kind.uri: remedy for kind, remedy in _REMEDIES.items()}


def problem_page(request: Request, problem: Problem, headers: dict[str, str]) -> Response:
    """The page of a problem, with the problem's status."""
    detail = problem.detail[:1].upper() + problem.detail[1:]
    response = render(
        request,
        "problem.html.jinja",
        status=problem.status,
        problem=problem,
        detail=detail if detail.endswith((".", "!", "?")) else f"{detail}.",
        remedy=_BY_URI.get(problem.type, problem.remedy),
        back=getattr(request.state, "back", "/"),
    )
    response.headers.update(headers)
    return response
