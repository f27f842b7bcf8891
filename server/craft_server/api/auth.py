"""Who calls, and what it may: the bearer key of a request (RFC 6750), its scopes and rates.

Rates are stated in the fields `RateLimit` and `RateLimit-Policy` of every answer
(draft-ietf-httpapi-ratelimit-headers-10). A simulated provider's profile grants each key rate
limits, which bind together with the key's own, and quotas, which become budgets of the key when it
is first seen, unless it has one on the same unit and window.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from craft_server.api.middleware import KEY_ID, Middleware
from craft_server.api.openapi import refuses
from craft_server.api.services import Services, WithServices
from craft_server.clock import now_ms
from craft_server.ledger.budgets import add_budget
from craft_server.ledger.calls import Record
from craft_server.ledger.keys import Caller, Rates, admit
from craft_server.policy import Policy, policy_of
from craft_server.problems import ProblemError
from craft_server.rate_limits import WINDOW_SECONDS, Quota, RateLimited
from craft_server.simulate.profile import Profile
from craft_shared import problems, wire

IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"

_bearer = HTTPBearer(auto_error=False, description="An API key, `craft_...`.")


@dataclass(frozen=True)
class Admission:
    """Who calls, and the record of the call made before under the same idempotency key."""

    caller: Caller
    record: Record | None


@refuses(problems.UNAUTHENTICATED, problems.INTERNAL_ERROR, problems.OVERLOADED)
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
        caller = await _under_terms(services, caller)
    if caller is None:
        raise _unauthenticated("the key is unknown, expired or revoked")
    structlog.contextvars.bind_contextvars(key=caller.prefix)
    setattr(request.state, KEY_ID, caller.key_id)
    return Admission(caller, record)


WithAdmission = Annotated[Admission, Depends(_admitted)]


async def _caller_at_any_rate(admission: WithAdmission) -> Caller:
    return admission.caller


WithCallerAtAnyRate = Annotated[Caller, Depends(_caller_at_any_rate)]


@refuses(problems.RATE_LIMITED)
async def _caller(request: Request, services: WithServices, admission: WithAdmission) -> Caller:
    await use_rate(request, services, admission.caller, "requests", 1)
    return admission.caller


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(problems.UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})


WithCaller = Annotated[Caller, Depends(_caller)]


def caller_with(scope: wire.Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency on a caller whose key has a scope."""

    @refuses(problems.FORBIDDEN)
    async def check(caller: WithCaller) -> Caller:
        if scope not in caller.scopes:
            raise ProblemError(problems.FORBIDDEN, f"the call needs a key with the scope '{scope}'")
        return caller

    return check


class RateLimitHeadersMiddleware(Middleware):
    """Says in an answer's headers which quotas `use_rate` has used."""

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        quotas: list[Quota] = scope.setdefault("state", {}).setdefault("quotas", [])

        async def send_with_quotas(message: Message) -> None:
            if message["type"] == "http.response.start" and quotas:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"] = ", ".join(
                    f'"{quota.name}";q={quota.limit};w={WINDOW_SECONDS}' for quota in quotas
                )
                headers["RateLimit"] = ", ".join(
                    f'"{quota.name}";r={quota.remaining};t={quota.reset_seconds}'
                    for quota in quotas
                )
            await send(message)

        await self._app(scope, receive, send_with_quotas)


async def use_rate(
    request: Request,
    services: Services,
    caller: Caller,
    name: Literal["requests", "predictions"],
    amount: int,
) -> None:
    """Counts an amount against what the key may use in a minute."""
    rates = caller.rates
    limit = rates.requests_per_minute if name == "requests" else rates.predictions_per_minute
    if limit is None:
        return
    try:
        quota = await services.rate_limits.use(name, caller.key_id, amount, limit)
    except RateLimited as error:
        request.state.quotas.append(error.quota)
        raise
    request.state.quotas.append(quota)


async def _under_terms(services: Services, caller: Caller) -> Caller:
    """The caller, as it is bound by the profile too."""
    profile = services.provider.profile
    if profile is None:
        return caller
    granted = services.provider.granted
    if profile.quotas and caller.key_id not in granted:
        await services.database.write(_grant, profile, caller.key_id)
        granted.add(caller.key_id)
    own, of_all = caller.rates, profile.limits
    pairs = (
        (own.requests_per_minute, of_all.requests_per_minute),
        (own.predictions_per_minute, of_all.predictions_per_minute),
        (own.concurrency, of_all.concurrency),
    )
    least = (min((one for one in pair if one is not None), default=None) for pair in pairs)
    return replace(caller, rates=Rates(*least))


def _grant(connection: Connection, profile: Profile, key_id: int) -> None:
    for quota in profile.quotas:
        add_budget(connection, key_id=key_id, at=now_ms(), **quota.model_dump())


def policy_for(services: Services, caller: Caller) -> Policy:
    """What the caller's key may see of the hosted model: by its own policy, or the provider's."""
    profile = services.provider.profile
    otherwise = Policy() if profile is None else Policy(profile.output)
    return policy_of(caller.policies, services.engine.name, otherwise)
