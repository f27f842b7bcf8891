"""`DELETE /v1/answers/{idempotency_key}`: a client says that it has stored an answer safely."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from craft_server.api.auth import WithCallerAtAnyRate
from craft_server.api.idempotency import EXAMPLE_KEY, KEY
from craft_server.api.openapi import refusals
from craft_server.api.services import WithServices
from craft_server.ledger.calls import acknowledge
from craft_shared.problems import UNAUTHENTICATED

router = APIRouter(prefix="/v1/answers", tags=["account"])


@router.delete(
    "/{idempotency_key:text}",
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

    The same call is from then on computed anew, free of charge. A key that names no answered
    prediction changes nothing, so that this may be sent again.
    """
    if KEY.fullmatch(idempotency_key):
        await services.database.write(acknowledge, caller.key_id, idempotency_key)
