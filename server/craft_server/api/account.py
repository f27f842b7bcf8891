"""`GET /v1/usage` and `GET /v1/budget`: what a key was charged, and what is left."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from craft_server.api.addresses import DIGITS
from craft_server.api.auth import WithCaller
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import list_budgets
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
