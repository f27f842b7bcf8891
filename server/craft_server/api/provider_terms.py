"""What a simulated provider grants each key: its profile's rate limits and quotas.

Limits bind together with the key's own. Quotas become budgets of the key when it is first seen,
unless it has one on the same unit and window. It knows the ledger's words for both; it does not
know how either is kept.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from craft_server.api.services import Services
from craft_server.clock import now_ms
from craft_server.ledger.budgets import add_budget
from craft_server.ledger.keys import Caller, Rates
from craft_server.simulate import Profile


async def under_terms(services: Services, caller: Caller) -> Caller:
    """The caller, as it is bound by the profile too."""
    profile = services.provider.profile
    if profile is None:
        return caller
    if profile.quotas and services.provider.is_new(caller.key_id):
        await services.database.write(_grant, profile, caller.key_id)
        services.provider.known(caller.key_id)
    own, of_all = caller.rates, profile.limits
    rates = Rates(
        _least(own.requests_per_minute, of_all.requests_per_minute),
        _least(own.predictions_per_minute, of_all.predictions_per_minute),
        _least(own.concurrency, of_all.concurrency),
    )
    return replace(caller, rates=rates)


def _grant(connection: Connection, profile: Profile, key_id: int) -> None:
    for quota in profile.quotas:
        add_budget(
            connection,
            key_id=key_id,
            unit=quota.unit,
            window=quota.window,
            limit=quota.limit,
            at=now_ms(),
        )


def _least(own: int | None, of_all: int | None) -> int | None:
    bounds = [bound for bound in (own, of_all) if bound is not None]
    return min(bounds, default=None)
