"""Who calls: the bearer key of a request (RFC 6750)."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError

from craft_server.api.services import WithServices
from craft_server.ledger.keys import Caller, authenticate
from craft_server.problems import ProblemError
from craft_shared.problems import OVERLOADED, UNAUTHENTICATED

RETRY_AFTER_SECONDS = "5"

_log = structlog.get_logger()
_bearer = HTTPBearer(auto_error=False, description="An API key, `craft_...`.")


async def _caller(
    services: WithServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    if credentials is None:
        raise _unauthenticated("the call shows no bearer key")
    try:
        caller = await services.database.read(authenticate, credentials.credentials)
    except SQLAlchemyError as error:
        # Nothing has been done yet, so that the client may safely try again.
        _log.error("database does not answer", error=str(error))
        raise ProblemError(
            OVERLOADED,
            "the server's database does not answer",
            headers={"Retry-After": RETRY_AFTER_SECONDS},
        ) from error
    if caller is None:
        raise _unauthenticated("the key is unknown or revoked")
    structlog.contextvars.bind_contextvars(key=caller.prefix)
    return caller


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})


WithCaller = Annotated[Caller, Depends(_caller)]
