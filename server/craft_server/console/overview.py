"""The first page: what the key has left, and what it was charged over time."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server.api.services import WithServices
from craft_server.clock import DAY_MS, now_ms, rfc3339
from craft_server.console.access import WithSession
from craft_server.console.rendering import page, redirect
from craft_server.console.spending import shown_measures, spent_over
from craft_server.ledger import account, exports, sums
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.keys import Caller
from craft_server.ledger.selection import Selection

router = APIRouter(include_in_schema=False)

_DAYS = 30
_LINES = 10


@router.get("/console")
async def console() -> Response:
    """The address that people try."""
    return redirect("/")


@router.get("/")
async def show(request: Request, services: WithServices, session: WithSession) -> Response:
    """Budgets, usage by day, and the newest lines of the ledger."""
    caller = session.caller
    values = await services.database.read_long(caller.key_id, _read, caller, now_ms())
    return await page(request, "overview.html.jinja", **values)


def _read(connection: Connection, caller: Caller, at: int) -> dict[str, Any]:
    since = (at // DAY_MS - _DAYS + 1) * DAY_MS
    days = [rfc3339(start)[:10] for start in range(since, at + 1, DAY_MS)]
    found = sums.charged(connection, Selection(prefix=caller.prefix, since=since), ["day"])
    newest = exports.page(
        connection, Selection(prefix=caller.prefix), limit=_LINES, newest_first=True
    )
    usage = account.usage(connection, caller.key_id, after=0, limit=1)
    return {
        "budgets": list_budgets(connection, caller.key_id, caller.team_id, at),
        "total": {**usage.total.model_dump(), "cost_micros": usage.cost_micros},
        "charges": newest.lines,
        "measures": shown_measures(bool(usage.cost_micros)),
        "spent": spent_over(found, "day", days),
        "days": days,
    }
