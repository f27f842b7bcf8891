"""The first page: what the key has left, and what it was charged over time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.console.access import WithSession
from craft_server.console.charts import BarChart, bar_chart
from craft_server.console.rendering import page, redirect
from craft_server.ledger import account
from craft_server.ledger.account import Day, usage
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.keys import Caller
from craft_shared.units import MEASURES, UNITS, Measure
from craft_shared.wire import Budget, Charge, Usage

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


@dataclass(frozen=True)
class Account:
    """All that the page shows of a key."""

    budgets: list[Budget]
    usage: Usage
    days: list[Day]
    newest: list[Charge]


@router.get("/console")
async def console() -> Response:
    """The address that people try."""
    return redirect("/")


@router.get("/")
async def show(request: Request, services: WithServices, session: WithSession) -> Response:
    """Budgets, usage by day, and the newest lines of the ledger."""
    account = await services.database.read(_read, session.caller, now_ms())
    return await page(
        request,
        "overview.html.jinja",
        account=account,
        spent=_spent(account),
        labels=[_day(day.start) for day in account.days],
        units=UNITS,
    )


def _read(connection: Connection, caller: Caller, at: int) -> Account:
    return Account(
        list_budgets(connection, caller.key_id, caller.team_id, at),
        usage(connection, caller.key_id, after=0, limit=1),
        account.daily(connection, caller.key_id, days=_DAYS, at=at),
        account.newest(connection, caller.key_id, limit=_LINES),
    )


def _spent(account: Account) -> list[Spent]:
    found = []
    for measure in MEASURES:
        amounts = [
            day.cost_micros if measure == "cost_micros" else day.units[measure]
            for day in account.days
        ]
        # Most providers charge no money.
        if measure != "cost_micros" or any(amounts):
            found.append(Spent(measure, amounts, sum(amounts), bar_chart(amounts)))
    return found


def _day(start: int) -> str:
    at = datetime.fromtimestamp(start / 1000, UTC)
    return f"{at.day} {at:%b}"
