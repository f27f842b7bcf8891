"""What a key was charged and has left, and answers that it need not have stored any more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from craft_server.api.addresses import DIGITS
from craft_server.api.auth import WithCaller, WithCallerAtAnyRate
from craft_server.api.idempotency import EXAMPLE_KEY, KEY
from craft_server.api.openapi import refusals
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.calls import acknowledge
from craft_shared.problems import UNAUTHENTICATED
from craft_shared.wire import BudgetList, Usage

router = APIRouter(tags=["account"])


@router.get("/v1/usage", summary="What was charged")
async def get_usage(
    services: WithServices,
    caller: WithCaller,
    after: Annotated[
        int, Field(ge=0, lt=2**63), DIGITS, Query(description="List lines after this id.")
    ] = 0,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query(description="Lines a page.")] = 100,
) -> Usage:
    """The key's totals, and a page of its ledger. Free."""
    return await services.database.read(usage, caller.key_id, after=after, limit=limit)


@router.get("/v1/budget", summary="What is left")
async def get_budget(services: WithServices, caller: WithCaller) -> BudgetList:
    """The key's budgets. A unit without one is not bounded. Free."""
    return BudgetList(
        budgets=await services.database.read(list_budgets, caller.key_id, caller.team_id, now_ms())
    )


@router.delete(
    "/v1/answers/{idempotency_key:text}",
    status_code=204,
    summary="Acknowledge an answer",
    responses=refusals(UNAUTHENTICATED),
)
async def acknowledge_answer(
    services: WithServices,
    caller: WithCallerAtAnyRate,
    idempotency_key: Annotated[str, Path(examples=[EXAMPLE_KEY])],
) -> None:
    """Lets the bytes of a prediction's answer go; the call stays known under its key.

    Free, and not counted against the key's rate limit: it spares the server memory.

    The same call is from then on computed again, free of charge. A key that names no answered
    prediction changes nothing, so that this may be sent again.
    """
    if KEY.fullmatch(idempotency_key):
        await services.database.write(acknowledge, caller.key_id, idempotency_key)
