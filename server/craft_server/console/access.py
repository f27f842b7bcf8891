"""Who looks at a page: the session behind the browser's cookie, and what its key may see."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import Depends, Request

from craft_server.api.middleware import KEY_ID
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console import cookies, sessions
from craft_server.console.sessions import Session
from craft_server.problems import ProblemError
from craft_shared.problems import FORBIDDEN, NOT_FOUND


class SignedOut(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Nobody is signed in; `wanted` is the address of the page that was asked for."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


async def current_session(request: Request, services: WithServices) -> Session | None:
    """The session of who asks, if there is one."""
    token = cookies.read_token(request)
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


async def _predictor(session: WithSession) -> Session:
    if "predict" not in session.caller.scopes:
        raise ProblemError(FORBIDDEN, "this page needs a key with the scope 'predict'")
    return session


WithPredictor = Annotated[Session, Depends(_predictor)]


async def _admin(session: WithSession) -> Session:
    if "admin" not in session.caller.scopes:
        # As if the page did not exist, which for this key it does not.
        raise ProblemError(NOT_FOUND, "there is no such page")
    return session


WithAdmin = Annotated[Session, Depends(_admin)]
