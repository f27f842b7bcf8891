"""Who calls, and whether it may: the bearer key of a request (RFC 6750), its scopes and rate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from craft_server.api.middleware import KEY_ID
from craft_server.api.openapi import refuses
from craft_server.api.provider_terms import under_terms
from craft_server.api.rate_limits import use_request
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.ledger.calls import Record
from craft_server.ledger.keys import Caller, admit
from craft_server.problems import ProblemError
from craft_shared.problems import (
    FORBIDDEN,
    INTERNAL_ERROR,
    OVERLOADED,
    RATE_LIMITED,
    UNAUTHENTICATED,
)
from craft_shared.wire import Scope

IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"

_bearer = HTTPBearer(auto_error=False, description="An API key, `craft_...`.")


@dataclass(frozen=True)
class Admission:
    """A call whose key is good.

    Attributes:
        caller: who makes it.
        record: of the call that was made before under the same idempotency key.
    """

    caller: Caller
    record: Record | None


@refuses(UNAUTHENTICATED, INTERNAL_ERROR, OVERLOADED)
async def _admitted(
    request: Request,
    services: WithServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Admission:
    if credentials is None:
        raise _unauthenticated("the call shows no bearer key")
    idempotency_key = request.headers.get(IDEMPOTENCY_KEY_HEADER)
    caller, record = await services.database.query(
        admit, credentials.credentials, idempotency_key, now_ms()
    )
    if caller is not None:
        caller = await under_terms(services, caller)
    if caller is None:
        raise _unauthenticated("the key is unknown, expired or revoked")
    structlog.contextvars.bind_contextvars(key=caller.prefix)
    setattr(request.state, KEY_ID, caller.key_id)
    return Admission(caller, record)


WithAdmission = Annotated[Admission, Depends(_admitted)]


async def _caller_at_any_rate(admission: WithAdmission) -> Caller:
    return admission.caller


WithCallerAtAnyRate = Annotated[Caller, Depends(_caller_at_any_rate)]


@refuses(RATE_LIMITED)
async def _caller(request: Request, services: WithServices, admission: WithAdmission) -> Caller:
    await use_request(request, services, admission.caller)
    return admission.caller


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})


WithCaller = Annotated[Caller, Depends(_caller)]


def caller_with(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency on a caller whose key has a scope."""

    @refuses(FORBIDDEN)
    async def check(caller: WithCaller) -> Caller:
        if scope not in caller.scopes:
            raise ProblemError(FORBIDDEN, f"the call needs a key with the scope '{scope}'")
        return caller

    return check
