"""Signing in with a key, and out. The key travels in a form's body, once, and is stored nowhere."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console import sessions
from craft_server.console.access import (
    WithSession,
    WithSessionIfAny,
    forget_token,
    set_token,
)
from craft_server.console.forms import WithForm, read_form, text_of
from craft_server.console.rendering import page, redirect, render

router = APIRouter(include_in_schema=False)

ADDRESS = "/console/sign-in"
_HOUR_SECONDS = 3600
# A page of this console and nothing that a browser might take for another site.
_PAGE = re.compile(r"/console(/[A-Za-z0-9_.@-]*[A-Za-z0-9_@-])+", re.ASCII)


@router.get(ADDRESS)
async def show(
    request: Request, session: WithSessionIfAny, wanted: Annotated[str, Query(alias="next")] = ""
) -> Response:
    """The form, for who is not signed in."""
    if session is not None:
        return redirect("/")
    return await page(request, "sign_in.html.jinja", wanted=_safe(wanted), refused=False)


@router.post(ADDRESS)
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
    set_token(request, response, token, seconds=seconds)
    return response


@router.post("/console/sign-out")
async def sign_out(
    request: Request, services: WithServices, session: WithSession, _form: WithForm
) -> Response:
    """Ends the session."""
    await services.database.write(sessions.sign_out, session)
    response = redirect(ADDRESS)
    forget_token(request, response)
    return response


def _safe(wanted: str) -> str:
    """The address, if it is one of this console's pages; empty otherwise."""
    return wanted if len(wanted) <= 300 and _PAGE.fullmatch(wanted) else ""
