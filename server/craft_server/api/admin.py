"""`/v1/admin`: keys, budgets, prices and usage, for keys with the scope `admin`.

No such key exists until `craft-server keys create --scope admin` has made one. A key's secret is
shown once and stored nowhere: the answer that made it, given again under its `Idempotency-Key`,
holds null in its place, and the key can be rotated for a new secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import Field
from sqlalchemy import Connection

from craft_server.api.addresses import DIGITS
from craft_server.api.answers import json_response
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of
from craft_server.api.downloads import MEDIA_TYPES, download
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import free_of_charge, remember
from craft_server.api.openapi import answer, example_of, refusals
from craft_server.api.services import WithServices
from craft_server.clock import epoch_ms, now_ms
from craft_server.ledger import administration, exports, keys, prices
from craft_server.ledger.administration import Holder, key_holder, team_holder
from craft_server.ledger.keys import Caller
from craft_server.ledger.selection import Selection
from craft_shared import wire
from craft_shared.amounts import MAX_INTEGER
from craft_shared.problems import (
    NOT_FOUND,
)
from craft_shared.wire.messages import NewName, NonEmptyLabel, Time

router = APIRouter(prefix="/v1/admin", tags=["administration"])

WithAdminKey = Annotated[Caller, Depends(caller_with("admin"))]
WithCall = Annotated[Call, Depends(call_of("admin", repeatable=False))]
Prefix = Annotated[
    str, Path(description="The eight characters after craft_ in the key.", examples=["k3v9x2ma"])
]
Team = Annotated[NonEmptyLabel, Path(description="The team's name.", examples=["research"])]
Model = Annotated[NewName, Path(description="The model's name.", examples=["pocket"])]
KeyLimits = Annotated[Body[wire.BudgetLimits], Depends(body_of(wire.BudgetLimits))]
TeamLimits = Annotated[Body[wire.TeamBudgetLimits], Depends(body_of(wire.TeamBudgetLimits))]
TopUps = Annotated[Body[wire.BudgetTopUps], Depends(body_of(wire.BudgetTopUps))]
FindHolder = Callable[[Connection, str], Holder]

_NAMED = refusals(NOT_FOUND)
_LINE = wire.UsageLine.model_validate(example_of(wire.UsageLine))


@router.post("/keys", status_code=201, summary="Make a key", response_model=wire.KeySecret)
async def create_key(
    call: WithCall,
    body: Annotated[Body[wire.KeyCreate], Depends(body_of(wire.KeyCreate))],
) -> Response:
    """Makes a key with its budgets. Its secret is in this answer and nowhere else."""

    def make(connection: Connection) -> wire.KeySecret:
        return administration.create(connection, body.message, now_ms())

    return await _shown_once(call, 201, make)


@router.get("/keys", summary="All keys")
async def list_keys(
    services: WithServices,
    _caller: WithAdminKey,
    after: Annotated[
        int,
        Field(ge=0, le=MAX_INTEGER),
        DIGITS,
        Query(description="Keys after the one with this id."),
    ] = 0,
    limit: Annotated[
        int | None, Field(ge=1, le=1000), DIGITS, Query(description="So many keys, not all.")
    ] = None,
) -> wire.KeyList:
    """All keys, without their secrets, the oldest first."""
    page = await services.database.read(keys.list_page, after=after, limit=limit)
    return wire.KeyList(
        keys=[keys.as_card(entry) for entry in page.entries], next_after=page.next_after
    )


@router.post(
    "/keys/{prefix}/rotate",
    summary="Give a key a new secret",
    response_model=wire.KeySecret,
    responses=_NAMED,
)
async def rotate_key(
    call: WithCall,
    prefix: Prefix,
    body: Annotated[Body[wire.KeyRotate], Depends(body_of(wire.KeyRotate))],
) -> Response:
    """The new secret is in this answer and nowhere else; the old ones end after the overlap."""
    overlap_ms = body.message.overlap_seconds * 1000

    def make(connection: Connection) -> wire.KeySecret:
        return administration.rotate(connection, prefix, overlap_ms=overlap_ms, at=now_ms())

    return await _shown_once(call, 200, make)


@router.delete("/keys/{prefix}", summary="Revoke a key", responses=_NAMED)
async def revoke_key(services: WithServices, _caller: WithAdminKey, prefix: Prefix) -> wire.KeyCard:
    """Makes the key useless from its next call on, all its secrets. It stays listed."""
    return keys.as_card(await services.database.write(keys.revoke_key, prefix, now_ms()))


@router.get("/keys/{prefix}/policy", summary="A key's policies", responses=_NAMED)
async def get_key_policy(
    services: WithServices, _caller: WithAdminKey, prefix: Prefix
) -> wire.KeyPolicies:
    """What the key's answers may show."""
    return await services.database.read(administration.show_policies, prefix)


@router.put("/keys/{prefix}/policy", summary="Set a key's policy", responses=_NAMED)
async def set_key_policy(
    services: WithServices,
    _caller: WithAdminKey,
    prefix: Prefix,
    body: Annotated[Body[wire.KeyPolicy], Depends(body_of(wire.KeyPolicy))],
) -> wire.KeyPolicies:
    """Sets what answers of one model, or of every model without a policy, may show. At once.

    Answers that were stored under an Idempotency-Key are given again as they were.
    """
    return await services.database.write(administration.set_policy, prefix, body.message)


@router.put("/keys/{prefix}/budgets", summary="Set a key's budgets", responses=_NAMED)
async def set_key_budgets(
    services: WithServices, _caller: WithAdminKey, prefix: Prefix, body: KeyLimits
) -> wire.BudgetList:
    """Sets the budgets that the body names. The answer also lists the budgets of the key's team."""
    return await services.database.write(_set, key_holder, prefix, body.message.budgets)


@router.put("/teams/{name:text}/budgets", summary="Set a team's budgets", responses=_NAMED)
async def set_team_budgets(
    services: WithServices, _caller: WithAdminKey, name: Team, body: TeamLimits
) -> wire.BudgetList:
    """Sets the budgets that the body names; all keys of the team share them."""
    wanted = [wire.BudgetLimit(**one.model_dump()) for one in body.message.budgets]
    return await services.database.write(_set, team_holder, name, wanted)


@router.post(
    "/keys/{prefix}/budgets/top-up",
    summary="Add to a key's budgets",
    response_model=wire.BudgetList,
    responses=_NAMED,
)
async def top_up_key(call: WithCall, prefix: Prefix, body: TopUps) -> Response:
    """Adds to the limits that the body names, all or none. Send an Idempotency-Key."""
    return await _topped_up(call, key_holder, prefix, body.message)


@router.post(
    "/teams/{name:text}/budgets/top-up",
    summary="Add to a team's budgets",
    response_model=wire.BudgetList,
    responses=_NAMED,
)
async def top_up_team(call: WithCall, name: Team, body: TopUps) -> Response:
    """Adds to the limits that the body names, all or none. Send an Idempotency-Key."""
    return await _topped_up(call, team_holder, name, body.message)


@router.get("/prices", summary="All prices")
async def list_prices(services: WithServices, _caller: WithAdminKey) -> wire.PriceLists:
    """Every model's prices in micros; a unit without one is free."""
    return wire.PriceLists(models=await services.database.read(prices.list_prices))


@router.put("/prices/{model:text}", summary="Set a model's prices")
async def set_prices(
    services: WithServices,
    _caller: WithAdminKey,
    model: Model,
    body: Annotated[Body[wire.PriceList], Depends(body_of(wire.PriceList))],
) -> wire.PriceList:
    """Sets the prices that the body names, from the next call on. What was charged stays."""

    def change(connection: Connection) -> prices.Prices:
        prices.set_prices(connection, model, body.message.micros)
        return prices.list_prices(connection)

    return wire.PriceList(micros=(await services.database.write(change)).get(model, {}))


@router.get(
    "/usage",
    summary="Export usage",
    response_class=StreamingResponse,
    responses={
        **answer(
            "One line a charge; refunded ones charge nothing and are left out.",
            {
                media_type: exports.header(form) + exports.text(_LINE, form)
                for form, media_type in MEDIA_TYPES.items()
            },
        ),
        **_NAMED,
    },
)
async def export_usage(
    services: WithServices,
    caller: WithAdminKey,
    form: Annotated[exports.Format, Query(alias="format")] = "csv",
    key: Annotated[str | None, Query(description="Only of the key with this prefix.")] = None,
    team: Annotated[NonEmptyLabel | None, Query(description="Only of this team's keys.")] = None,
    model: Annotated[NewName | None, Query(description="Only of this model.")] = None,
    adapter: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=500,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="Only of this adapter: OWNER/NAME, or OWNER/NAME@VERSION.",
        ),
    ] = None,
    since: Annotated[Time | None, Query(description="Calls made then or later.")] = None,
    until: Annotated[Time | None, Query(description="Calls made before.")] = None,
) -> StreamingResponse:
    """All lines of the ledger, streamed."""
    selection = Selection(
        prefix=key,
        team=team,
        model=model,
        adapter=adapter,
        since=None if since is None else epoch_ms(since),
        until=None if until is None else epoch_ms(until),
    )
    return await download(services, caller.key_id, selection, form)


async def _shown_once(
    call: Call,
    status: int,
    make: Callable[[Connection], wire.KeySecret],
) -> Response:
    """Makes a secret and remembers the call without it."""

    def all_of_it(connection: Connection) -> wire.KeySecret:
        made = make(connection)
        without = json_response(made.model_copy(update={"key": None}), status=status)
        remember(connection, call, without)
        return made

    return json_response(await call.services.database.write(all_of_it), status=status)


def _set(
    connection: Connection, find: FindHolder, name: str, wanted: Sequence[wire.BudgetLimit]
) -> wire.BudgetList:
    at, holder = now_ms(), find(connection, name)
    administration.set_budgets(connection, holder, wanted, at)
    return wire.BudgetList(budgets=administration.show_budgets(connection, holder, at))


async def _topped_up(
    call: Call, find: FindHolder, name: str, wanted: wire.BudgetTopUps
) -> Response:
    def top_up(connection: Connection) -> Response:
        holder = find(connection, name)
        administration.top_up(connection, holder, wanted.budgets)
        budgets = administration.show_budgets(connection, holder, now_ms())
        return json_response(wire.BudgetList(budgets=budgets))

    return await free_of_charge(call, top_up)
