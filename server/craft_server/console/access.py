"""Who looks at a page: the session behind the browser's cookie, and what its key may see.

Scripts cannot read the cookie, other sites' pages cannot send it, and over TLS a page that was not
encrypted can neither set nor read it (`__Host-`; below a path, where what else the host offers is
not to be sent it, `__Secure-`).

Source: RFC 6265bis, sections 4.1.3 (`__Secure-`, `__Host-`) and 5.6.7 (`SameSite`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.responses import Response

from craft_server.api.middleware import KEY_ID
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console import sessions
from craft_server.console.sessions import Session
from craft_server.problems import ProblemError
from craft_server.root_path import root_path
from craft_shared.problems import FORBIDDEN, NOT_FOUND
from craft_shared.wire import Scope

_COOKIE = "craft_session"


class SignedOut(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Nobody is signed in; `wanted` is the address of the page that was asked for."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


async def current_session(request: Request, services: WithServices) -> Session | None:
    """The session of who asks, if there is one."""
    token = read_token(request)
    if token is None:
        return None
    session = await services.database.read(sessions.find, token, now_ms())
    if session is not None:
        structlog.contextvars.bind_contextvars(key=session.caller.prefix)
        request.state.console_session = session
        setattr(request.state, KEY_ID, session.caller.key_id)
    return session


WithSessionIfAny = Annotated[Session | None, Depends(current_session)]


async def _session(request: Request, session: WithSessionIfAny) -> Session:
    if session is None:
        raise SignedOut(request.url.path if request.method == "GET" else "")
    return session


WithSession = Annotated[Session, Depends(_session)]


def _session_with(scope: Scope) -> Callable[[Session], Awaitable[Session]]:
    async def check(session: WithSession) -> Session:
        if scope not in session.caller.scopes:
            raise ProblemError(FORBIDDEN, f"this page needs a key with the scope '{scope}'")
        return session

    return check


WithPredictor = Annotated[Session, Depends(_session_with("predict"))]
WithPublisher = Annotated[Session, Depends(_session_with("publish"))]


async def _admin(session: WithSession) -> Session:
    if "admin" not in session.caller.scopes:
        # As if the page did not exist, which for this key it does not.
        raise ProblemError(NOT_FOUND, "there is no such page")
    return session


WithAdmin = Annotated[Session, Depends(_admin)]


def read_token(request: Request) -> str | None:
    """The token that the browser shows."""
    return request.cookies.get(_cookie_name(request))


def set_token(request: Request, response: Response, token: str, *, seconds: int) -> None:
    """Hands the browser a token to keep for so long."""
    response.set_cookie(
        _cookie_name(request),
        token,
        max_age=seconds,
        path=root_path(request) or "/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )


def forget_token(request: Request, response: Response) -> None:
    """Makes the browser forget its token."""
    response.delete_cookie(
        _cookie_name(request),
        path=root_path(request) or "/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )


def _cookie_name(request: Request) -> str:
    if not _is_encrypted(request):
        return _COOKIE
    return f"__Secure-{_COOKIE}" if root_path(request) else f"__Host-{_COOKIE}"


def _is_encrypted(request: Request) -> bool:
    return request.url.scheme == "https"
