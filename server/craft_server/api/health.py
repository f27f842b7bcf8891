"""Whether the process lives, and whether it can serve. Needs no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from craft_server.api.openapi import refusals
from craft_server.api.services import WithServices
from craft_server.engine import WorkerDied
from craft_server.problems import ProblemError
from craft_shared.problems import OVERLOADED

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


@router.get("/livez", summary="Whether the process lives")
async def get_liveness() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", summary="Whether the server can serve", responses=refusals(OVERLOADED))
async def get_readiness(services: WithServices) -> Health:
    """Answers 200 while the model runs and the ledger can be read and written, 503 otherwise.

    A server that was told to stop answers 503 while it still serves, so that new calls are sent to
    others.
    """
    if services.drain.begun:
        raise _not_ready("the server is about to stop")
    if not services.engine.alive:
        raise _not_ready("the model is not running")
    try:
        await services.engine.state()
    except WorkerDied as error:
        raise _not_ready("the model is not running") from error
    if not await services.database.answers():
        raise _not_ready("the database does not answer")
    # Its renewal is a write, so that no probe has to be one.
    if ailment := services.lease.ailment:
        raise _not_ready(ailment)
    return Health()


def _not_ready(detail: str) -> ProblemError:
    return ProblemError(OVERLOADED, detail, retry_after=10)
