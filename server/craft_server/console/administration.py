"""Keys and their policies, for admins: a list, budgets, new keys, revocation.

It does what `/v1/admin` does, from forms. A new key's secret is on one page, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection
from starlette.datastructures import FormData

from craft_server.api.services import WithServices
from craft_server.clock import WINDOWS, now_ms
from craft_server.console.access import WithAdmin
from craft_server.console.forms import (
    DoneBefore,
    WithForm,
    amount_of,
    do_once,
    message_of,
    new_once,
    text_of,
)
from craft_server.console.rendering import measure, page, redirect, render, unit_name
from craft_server.console.sessions import Session, set_notice
from craft_server.ledger import administration, keys
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.users import list_limits
from craft_shared.amounts import MAX_INTEGER
from craft_shared.units import MEASURES
from craft_shared.wire import Budget, BudgetLimit, BudgetTopUp, KeyCard, KeyCreate, KeySecret, Scope

router = APIRouter(prefix="/console/admin/keys", include_in_schema=False)

_LIST = "/console/admin/keys"
_SHOWN = 1000


@router.get("")
async def show_page(
    request: Request,
    services: WithServices,
    _session: WithAdmin,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
) -> Response:
    """Keys, some at a time, the newest first, and a form for a new one."""
    listed, next_after = await services.database.read(_read_page, after)
    return await page(
        request,
        "keys.html.jinja",
        keys=listed,
        after=after,
        next_after=next_after,
        scopes=get_args(Scope),
        units=MEASURES,
        once=new_once(),
    )


@router.post("")
async def create(
    request: Request, services: WithServices, session: WithAdmin, form: WithForm
) -> Response:
    """Makes a key; its secret is on this page and nowhere else."""
    request.state.back = _LIST
    scopes = [scope for scope in form.getlist("scopes") if isinstance(scope, str)]
    wanted = message_of(
        KeyCreate,
        {
            "owner": text_of(form, "owner"),
            "name": text_of(form, "name"),
            "team": text_of(form, "team"),
            "scopes": scopes or "",
            **{
                name: amount_of(form, name)
                for name in ("requests_per_minute", "predictions_per_minute", "concurrency")
                if text_of(form, name)
            },
            "budgets": [
                BudgetLimit(unit=unit, limit=amount_of(form, f"budget_{unit}"))
                for unit in MEASURES
                if text_of(form, f"budget_{unit}")
            ],
        },
    )
    made: list[KeySecret] = []

    def make(connection: Connection) -> None:
        made.append(administration.create(connection, wanted, now_ms()))

    try:
        await services.database.write(do_once, request, session, form, make)
    except DoneBefore:
        notice = "This key was made already. Its secret was shown then; revoke it if it is lost."
        await services.database.write(set_notice, session, notice)
        return redirect(_LIST)
    return render(request, "new_key.html.jinja", made=made[0], status=201)


@router.get("/{prefix}")
async def show(
    request: Request, services: WithServices, _session: WithAdmin, prefix: str
) -> Response:
    """A key: its policy, its budgets, and forms to change them."""
    card, budgets, of_users = await services.database.read(_read, prefix)
    return await page(
        request,
        "key.html.jinja",
        card=card,
        budgets=budgets,
        of_users=of_users,
        units=MEASURES,
        windows=WINDOWS,
        once=new_once(),
    )


@router.post("/{prefix}/top-up")
async def top_up(request: Request, session: WithAdmin, form: WithForm, prefix: str) -> Response:
    """Adds to a budget's limit."""
    request.state.back = f"{_LIST}/{prefix}"
    wanted = message_of(BudgetTopUp, _budget_fields(form) | {"amount": amount_of(form, "amount")})

    def action(connection: Connection) -> None:
        administration.top_up(connection, administration.key_holder(connection, prefix), [wanted])

    amount = f"{measure(wanted.amount, wanted.unit)} {unit_name(wanted.unit)}"
    return await _done(request, session, form, prefix, action, f"Added {amount} to the budget.")


@router.post("/{prefix}/budgets")
async def set_budget(request: Request, session: WithAdmin, form: WithForm, prefix: str) -> Response:
    """Sets a budget, new or known."""
    request.state.back = f"{_LIST}/{prefix}"
    wanted = message_of(BudgetLimit, _budget_fields(form) | {"limit": amount_of(form, "limit")})

    def action(connection: Connection) -> None:
        administration.set_budgets(
            connection, administration.key_holder(connection, prefix), [wanted], now_ms()
        )

    amount = f"{measure(wanted.limit, wanted.unit)} {unit_name(wanted.unit)}"
    notice = f"The budget is {amount} ({wanted.window}) now."
    return await _done(request, session, form, prefix, action, notice)


@router.post("/{prefix}/revoke")
async def revoke(request: Request, session: WithAdmin, form: WithForm, prefix: str) -> Response:
    """Makes a key useless, all its secrets and sessions."""

    def action(connection: Connection) -> None:
        keys.revoke_key(connection, prefix, now_ms())

    notice = f"The key {prefix} is revoked."
    return await _done(request, session, form, prefix, action, notice)


async def _done(
    request: Request,
    session: Session,
    form: FormData,
    prefix: str,
    action: Callable[[Connection], None],
    notice: str,
) -> Response:
    """Runs an action once, and sends the browser to the key's page, which shows the notice."""

    def all_of_it(connection: Connection) -> None:
        do_once(connection, request, session, form, action)
        set_notice(connection, session, notice)

    database = request.app.state.services.database
    try:
        await database.write(all_of_it)
    except DoneBefore:
        await database.write(set_notice, session, "This was done already, once.")
    return redirect(f"{_LIST}/{prefix}")


def _read_page(
    connection: Connection, after: int
) -> tuple[list[tuple[KeyCard, list[Budget]]], int | None]:
    found = keys.list_page(connection, after=after, limit=_SHOWN, newest_first=True)
    return [_with_budgets(connection, entry) for entry in found.entries], found.next_after


def _read(connection: Connection, prefix: str) -> tuple[KeyCard, list[Budget], list[BudgetLimit]]:
    entry = keys.find_key(connection, prefix)
    return *_with_budgets(connection, entry), list_limits(connection, entry.key_id)


def _with_budgets(connection: Connection, entry: keys.KeyEntry) -> tuple[KeyCard, list[Budget]]:
    budgets = list_budgets(connection, entry.key_id, entry.team_id, now_ms())
    return keys.as_card(entry), budgets


def _budget_fields(form: FormData) -> dict[str, object]:
    """Unit and window, as one field holds both: `queries lifetime`."""
    unit, _, window = text_of(form, "budget").partition(" ")
    return {"unit": unit or text_of(form, "unit"), "window": window or text_of(form, "window")}
