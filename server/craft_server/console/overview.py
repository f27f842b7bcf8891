"""The first page: what the key has left, and what it was charged over time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console.access import WithSession
from craft_server.console.charts import BarChart, bar_chart
from craft_server.console.rendering import page, redirect
from craft_server.ledger import account
from craft_server.ledger.account import Day
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.keys import Caller
from craft_shared.units import MEASURES, UNITS, Measure

router = APIRouter(include_in_schema=False)

_DAYS = 30
_LINES = 10


@dataclass(frozen=True)
class Spent:
    """A measure over the days: what was charged on each, in all, and on the day of most."""

    measure: Measure
    amounts: list[int]
    total: int
    chart: BarChart


@router.get("/console")
async def console() -> Response:
    """The address that people try."""
    return redirect("/")


@router.get("/")
async def show(request: Request, services: WithServices, session: WithSession) -> Response:
    """Budgets, usage by day, and the newest lines of the ledger."""
    values = await services.database.read(_read, session.caller, now_ms())
    return await page(request, "overview.html.jinja", units=UNITS, **values)


def _read(connection: Connection, caller: Caller, at: int) -> dict[str, Any]:
    days = account.daily(connection, caller.key_id, days=_DAYS, at=at)
    starts = [datetime.fromtimestamp(day.start / 1000, UTC) for day in days]
    return {
        "budgets": list_budgets(connection, caller.key_id, caller.team_id, at),
        "usage": account.usage(connection, caller.key_id, after=0, limit=1),
        "newest": account.newest(connection, caller.key_id, limit=_LINES),
        "spent": _spent(days),
        "labels": [f"{start.day} {start:%b}" for start in starts],
    }


def _spent(days: list[Day]) -> list[Spent]:
    found = []
    for measure in MEASURES:
        amounts = [
            day.cost_micros if measure == "cost_micros" else day.units[measure] for day in days
        ]
        # Most providers charge no money.
        if measure != "cost_micros" or any(amounts):
            found.append(Spent(measure, amounts, sum(amounts), bar_chart(amounts)))
    return found
