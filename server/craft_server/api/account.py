"""What a key was charged and has left, signed receipts of it, and answers that it has received."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Connection

from craft_server.api.addresses import DIGITS
from craft_server.api.auth import WithCaller, WithCallerAtAnyRate
from craft_server.api.idempotency import EXAMPLE_KEY, KEY, USER
from craft_server.api.openapi import answer, refusals
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import in_order, list_budgets
from craft_server.ledger.calls import acknowledge
from craft_server.ledger.keys import Caller
from craft_server.ledger.users import list_user_budgets
from craft_server.problems import ProblemError, invalid_field
from craft_server.receipts import NothingCharged, Selection
from craft_shared.problems import NOT_FOUND, RUN_IN_PROGRESS, UNAUTHENTICATED
from craft_shared.receipt import KEYS_MEDIA_TYPE, MEDIA_TYPE
from craft_shared.wire import Budget, BudgetList, Usage
from craft_shared.wire.messages import Time

router = APIRouter()

EndUserName = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=128,
        pattern=f"^{USER.pattern}$",
        description="Of this end user alone, as calls name it in Craft-User.",
    ),
]


@router.get("/v1/usage", tags=["account"], summary="What was charged")
async def get_usage(
    services: WithServices,
    caller: WithCaller,
    after: Annotated[
        int, Field(ge=0, lt=2**63), DIGITS, Query(description="List lines after this id.")
    ] = 0,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query(description="Lines a page.")] = 100,
    user: EndUserName = None,
) -> Usage:
    """The key's totals, and a page of its ledger. Free."""
    return await services.database.read(usage, caller.key_id, after=after, limit=limit, user=user)


@router.get("/v1/budget", tags=["account"], summary="What is left")
async def get_budget(
    services: WithServices, caller: WithCaller, user: EndUserName = None
) -> BudgetList:
    """The key's budgets, and with `user` those of this end user, too.

    A unit without one is not bounded. Free.
    """
    return BudgetList(budgets=await services.database.read(_budgets, caller, user, now_ms()))


def _budgets(connection: Connection, caller: Caller, user: str | None, at: int) -> list[Budget]:
    budgets = list_budgets(connection, caller.key_id, caller.team_id, at)
    if user is not None:
        budgets += list_user_budgets(connection, caller.key_id, user, at)
    return in_order(budgets)


@router.delete(
    "/v1/answers/{idempotency_key:text}",
    status_code=204,
    tags=["account"],
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


_KEYS_MAX_AGE_SECONDS = 300
_KEY_EXAMPLE = {
    "crv": "Ed25519",
    "x": "tJTihVaAEqnrizKjOKA5Euv7Ec4H_8VZYSqkqsgdOyY",
    "kty": "OKP",
    "kid": "kB0ELXGndcAP21NLLwaWtAA5vEg1292khzvHG8aVPx0",
    "use": "sig",
    "alg": "EdDSA",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9999, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@router.get(
    "/v1/receipts",
    tags=["receipts"],
    summary="A signed receipt",
    response_class=Response,
    responses={
        **answer(
            "A compact JWS (RFC 7515); docs/receipts.md describes its payload",
            # Shortened: a whole one has about 2,000 characters.
            {MEDIA_TYPE: "eyJhbGciOiJFZERTQSJ9.eyJ2ZXJzaW9uIjoxfQ.mnsvQSwqTkvBHzyrcVFXsQ"},
            "Cache-Control",
        ),
        **refusals(NOT_FOUND, RUN_IN_PROGRESS),
    },
)
async def get_receipt(
    services: WithServices,
    caller: WithCaller,
    run: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=255,
            pattern=r"^[\x20-\x7e]+$",
            description="Only calls that were made with this header Craft-Run.",
        ),
    ] = None,
    since: Annotated[
        Time | None, Query(description="Only calls at or after this time (RFC 3339).")
    ] = None,
    until: Annotated[
        Time | None, Query(description="Only calls before this time (RFC 3339).")
    ] = None,
) -> Response:
    """What the key was charged, for a run or a period, signed. Free.

    A receipt is final: it is refused while calls that it would cover are running.
    """
    if since is not None and until is not None and since >= until:
        raise invalid_field("until", "it is not after 'since'", "Send a later time.")
    selection = Selection(run, _milliseconds("since", since), _milliseconds("until", until))
    try:
        text = await services.receipts.issue(caller, selection)
    except NothingCharged as error:
        of_run = "" if run is None else f" in the run '{run}'"
        raise ProblemError(NOT_FOUND, f"the key was charged nothing{of_run}") from error
    return Response(text, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


@router.get(
    "/v1/receipts/keys",
    tags=["receipts"],
    summary="The keys that verify receipts",
    response_class=Response,
    responses=answer(
        "A JWK set (RFC 7517); each key's id is its thumbprint (RFC 7638)",
        {KEYS_MEDIA_TYPE: {"keys": [_KEY_EXAMPLE]}},
        "Cache-Control",
    ),
)
async def get_receipt_keys(services: WithServices) -> Response:
    """The server's public keys, the one that signs now first. Free, and without a key."""
    return Response(
        json.dumps(services.receipts.signer.public_keys),
        media_type=KEYS_MEDIA_TYPE,
        headers={"Cache-Control": f"public, max-age={_KEYS_MAX_AGE_SECONDS}"},
    )


def _milliseconds(field: str, moment: datetime | None) -> int | None:
    """The first whole millisecond of the ledger's clock that is not before a time."""
    if moment is None:
        return None
    if not _EPOCH <= moment < _END:
        raise invalid_field(field, "no charge is that old or new", "Send a time in this century.")
    return -((_EPOCH - moment) // _MILLISECOND)
