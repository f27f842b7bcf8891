"""Rate limits over HTTP: the fields `RateLimit` and `RateLimit-Policy` on every answer.

Source: draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from craft_server.api.middleware import Middleware
from craft_server.api.services import Services
from craft_server.ledger.keys import Caller
from craft_server.rate_limits import WINDOW_SECONDS, Quota, RateLimited


class RateLimitHeadersMiddleware(Middleware):
    """Says in an answer's headers which quotas `use_request` and `use_predictions` have used."""

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Middleware.call`."""
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


async def use_request(request: Request, services: Services, caller: Caller) -> None:
    """Counts a call against the key's requests a minute."""
    await _use(request, services, caller, "requests", 1, caller.rates.requests_per_minute)


async def use_predictions(
    request: Request, services: Services, caller: Caller, amount: int
) -> None:
    """Counts a call's predictions against the key's predictions a minute."""
    limit = caller.rates.predictions_per_minute
    await _use(request, services, caller, "predictions", amount, limit)


async def _use(
    request: Request,
    services: Services,
    caller: Caller,
    name: str,
    amount: int,
    limit: int | None,
) -> None:
    if limit is None:
        return
    try:
        quota = await services.rate_limits.use(name, caller.key_id, amount, limit)
    except RateLimited as error:
        request.state.quotas.append(error.quota)
        raise
    request.state.quotas.append(quota)
