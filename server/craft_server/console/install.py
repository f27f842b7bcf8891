"""The console's entrance: signing in and out, what protects its pages, and problems as pages.

A key travels in a form's body, once, and is stored nowhere. The policy lets a page load the
console's own style, script and images, send forms to the console, and nothing else: no inline
script or style, no frame around it, no other site.

Sources: W3C Content Security Policy Level 3; W3C Referrer Policy, whose `same-origin` names no
address to other sites and still lets the browser name the origin of a form.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import Response
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from craft_server.api.errors import PROBLEM_PAGE
from craft_server.api.middleware import Middleware
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console import (
    access,
    adapters,
    administration,
    overview,
    rendering,
    runs,
    sessions,
    usage,
)
from craft_server.console.access import SignedOut, WithSession, WithSessionIfAny
from craft_server.console.forms import (
    FOREIGN_FORM,
    FORM_PAGE,
    FormPage,
    WithForm,
    read_form,
    text_of,
)
from craft_server.console.rendering import page, redirect, render
from craft_server.problems import ProblemError
from craft_server.root_path import root_path
from craft_shared import problems
from craft_shared.problems import Problem, ProblemType

router = APIRouter(include_in_schema=False)

SIGN_IN = "/console/sign-in"
_HOUR_SECONDS = 3600
# A page of this console and nothing that a browser might take for another site.
_PAGE = re.compile(r"/console(/[A-Za-z0-9_.@-]*[A-Za-z0-9_@-])+", re.ASCII)

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


@router.get(SIGN_IN)
async def show_sign_in(
    request: Request, session: WithSessionIfAny, wanted: Annotated[str, Query(alias="next")] = ""
) -> Response:
    """The form, for who is not signed in."""
    if session is not None:
        return redirect("/")
    return await page(request, "sign_in.html.jinja", wanted=_safe(wanted), refused=False)


@router.post(SIGN_IN)
async def sign_in(request: Request, services: WithServices) -> Response:
    """Makes a session, and sends the browser to the page that was wanted."""
    address = request.client.host if request.client else "unknown"
    settings = services.settings
    await services.rate_limits.use("sign-ins", address, 1, settings.sign_ins_per_minute)
    async with read_form(request) as form:
        secret, wanted = text_of(form, "key"), _safe(text_of(form, "next"))
    at = now_ms()
    seconds = round(settings.console_session_hours * _HOUR_SECONDS)
    token = await services.database.write(
        sessions.sign_in, secret, at=at, until=at + 1000 * seconds
    )
    if token is None:
        return render(request, "sign_in.html.jinja", status=401, wanted=wanted, refused=True)
    response = redirect(wanted or "/")
    access.set_token(request, response, token, seconds=seconds)
    return response


@router.post("/console/sign-out")
async def sign_out(
    request: Request, services: WithServices, session: WithSession, _form: WithForm
) -> Response:
    """Ends the session."""
    await services.database.write(sessions.sign_out, session)
    response = redirect(SIGN_IN)
    access.forget_token(request, response)
    return response


@router.get("/docs")
async def show_description(request: Request) -> Response:
    """The page of the API's description; its script reads `/openapi.json`."""
    return render(request, "docs.html.jinja")


async def _no_such_page(_session: WithSessionIfAny) -> Response:
    raise ProblemError(problems.NOT_FOUND, "there is no such page")


def install(app: FastAPI) -> None:
    """Adds the console's routes and handlers."""
    for part in (
        router,
        *(m.router for m in (overview, usage, runs, adapters, administration, rendering)),
    ):
        app.include_router(part)
    # Last: addresses without a page are answered on a page that has the menu.
    app.get("/console/{_rest:path}", include_in_schema=False)(_no_such_page)
    app.exception_handler(SignedOut)(_on_signed_out)


def _safe(wanted: str) -> str:
    """The address, if it is one of this console's pages; empty otherwise."""
    return wanted if len(wanted) <= 300 and _PAGE.fullmatch(wanted) else ""


async def _on_signed_out(request: Request, error: SignedOut) -> Response:
    query = f"?{urlencode({'next': error.wanted})}" if error.wanted not in ("", "/") else ""
    response = redirect(f"{SIGN_IN}{query}")
    if access.read_token(request) is not None:
        access.forget_token(request, response)
    return response


class ConsoleMiddleware(Middleware):
    """Adds the headers to the console's answers, errors included; its problems become pages.

    Addresses to which browsers are sent get the root path here.
    """

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not (path in ("/", "/console", "/docs") or path.startswith("/console/")):
            await self._app(scope, receive, send)
            return
        scope["state"][PROBLEM_PAGE] = _problem_page

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if location := headers.get("Location"):  # a page of the console
                    headers["Location"] = root_path(Request(scope)) + location
            await send(message)

        await self._app(scope, receive, send_protected)


def _problem_page(request: Request, problem: Problem, headers: dict[str, str]) -> Response:
    detail, remedy = problem.detail, _BY_URI.get(problem.type, problem.remedy)
    if problem.type == problems.INVALID_IMAGE.uri:
        detail = f"The picture cannot be used: {problem.errors[0].message}"
    form_page: FormPage | None = getattr(request.state, FORM_PAGE, None)
    if problem.type == FOREIGN_FORM.uri:
        form_page = None
    if form_page is not None and problem.type == problems.INVALID_REQUEST.uri:
        detail, remedy = problem.errors[0].message, problem.errors[0].remedy
    detail = detail[:1].upper() + detail[1:]
    if not detail.endswith((".", "!", "?")):
        detail += "."
    if form_page is not None:
        response = form_page(f"{detail} {remedy}", problem.status)
    else:
        response = render(
            request,
            "problem.html.jinja",
            status=problem.status,
            problem=problem,
            detail=detail,
            remedy=remedy,
            back=getattr(request.state, "back", "/"),
        )
    response.headers.update(headers)
    return response
